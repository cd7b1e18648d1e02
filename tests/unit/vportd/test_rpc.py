# SPDX-License-Identifier: GPL-3.0-or-later
"""The RPC: what it answers, and each refusal."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.unit.vportd.engine_process import PACKAGES, PF, STORAGE_SIZE, VF0, VF1, Refusal

MIB = 1 << 20


@contextlib.contextmanager
def refused(reason, words=""):
    """What is inside is refused for ``reason``, in one line that says ``words``."""
    with pytest.raises(Refusal) as refusal:
        yield refusal
    assert refusal.value.reason == reason
    assert "\n" not in refusal.value.message
    assert re.search(words, refusal.value.message), refusal.value.message


def lun(number=0, vdisk="a", start=0, physical=0, length=MIB, *rest, **more):
    return {"lun": number, "vdisk": vdisk, "extents": [[start, physical, length, *rest]], **more}


def test_version_and_adapters(engine):
    rpc = engine.rpc()
    assert rpc.get_version()["protocol"] == 1
    (adapter,) = rpc.adapter_list()
    assert (adapter["adapter"], adapter["size"], adapter["identity"]) == (PF, STORAGE_SIZE, "eui.0011223344556677")
    assert [(one["vf"], one["vport"]) for one in adapter["vfs"]] == [(VF0, None), (VF1, None)]
    assert adapter["device"].endswith("nvme0n1")
    assert adapter["vfs"][1]["device"].endswith("nvme2n1")


def test_a_request_that_is_none_is_answered_with_an_error(engine):
    rpc = engine.rpc()
    assert rpc.raw(b"{")["error"]["code"] == -32700
    assert rpc.raw(b"[]")["error"]["code"] == -32600
    assert rpc.raw(b'{"jsonrpc":"2.0","id":7,"method":"nothing"}')["error"]["code"] == -32601
    answer = rpc.raw(b'{"jsonrpc":"2.0","id":8,"method":"vport_get","params":[1]}')
    assert (answer["id"], answer["error"]["data"]["reason"]) == (8, "INVALID")
    for params, words in (({}, "missing"), ({"vport": 3}, "a string"), ({"vport": "a", "x": 1}, "unknown")):
        with refused("INVALID", words):
            rpc.vport_get(**params)
    with refused("INVALID", "timeout"):
        rpc.vport_suspend(vport="vp0", timeout=0)
    with refused("INVALID", "timeout"):
        rpc.vport_suspend(vport="vp0", timeout=True)
    assert rpc.get_version()["version"]


def test_creating_and_deleting_is_idempotent(engine):
    rpc = engine.rpc()
    for name in ("", "-a", "A", "a" * 16, "a/b", "../a"):
        with refused("INVALID", "vport is"):
            rpc.vport_create(vport=name)
    with refused("NOT_FOUND", "0000:09:00.0"):
        rpc.vport_create(vport="vp0", adapter="0000:09:00.0")
    first = rpc.vport_create(vport="vp0", adapter=PF, incoming=True)
    assert (first["incoming"], first["generation"], first["digest"], first["path"]) == (True, 0, None, "pf")
    assert rpc.vport_create(vport="vp0")["vport"] == "vp0"
    assert [one["vport"] for one in rpc.vport_list()] == ["vp0"]
    assert rpc.vport_delete(vport="vp0") == {}
    assert rpc.vport_delete(vport="vp0") == {}
    with refused("NOT_FOUND", "vp0"):
        rpc.vport_get(vport="vp0")
    assert not (engine.run_dir / "vp0").exists()


def test_a_mapping_that_is_wrong_changes_nothing(engine):
    rpc = engine.rpc()
    rpc.vport_create(vport="vp0")
    good = [lun()]
    assert rpc.mapping_set(vport="vp0", expected_generation=0, luns=good)["changed"]
    before = rpc.mapping_get(vport="vp0")
    wrong = [
        ([lun(256)], "lun is 256"),
        ([lun(True)], "lun is True"),
        ([lun(vdisk="")], "vdisk"),
        ([lun(start=100)], "block size"),
        ([lun(physical=100)], "block size"),
        ([lun(length=100)], "block size"),
        ([lun(length=0)], "above 0"),
        ([lun(length=-512)], "above 0"),
        ([lun(start=-512)], "negative"),
        ([lun(physical=STORAGE_SIZE)], "storage of"),
        ([lun(0, "a", 0, 0, MIB, "rw")], '"ro"'),
        ([lun(), lun(0, "b", physical=MIB)], "there twice"),
        ([lun(), lun(1, "a", physical=MIB)], "vdisk a is there twice"),
        ([lun(), lun(1, "b", physical=MIB - 512)], "the same mapping"),
        ([{"lun": 0, "vdisk": "a", "extents": [[0, 0, MIB], [MIB - 512, 4 * MIB, MIB]]}], "overlap in the vdisk"),
        ([{"lun": 0, "vdisk": "a", "extents": []}], "extents"),
        ([{"lun": 0, "vdisk": "a"}], "extents"),
        ([lun(readonly="yes")], "readonly"),
        ([lun(what=1)], "unknown key"),
        ([3], "not a LUN"),
        ([{"lun": 0, "vdisk": "a", "extents": [["0", 0, 512]]}], "is not"),
    ]
    for luns, words in wrong:
        with refused("INVALID", words):
            rpc.mapping_set(vport="vp0", luns=luns)
    with refused("STALE_GENERATION", "generation 1, not 7"):
        rpc.mapping_set(vport="vp0", expected_generation=7, luns=good)
    assert rpc.mapping_get(vport="vp0") == before


def test_no_two_vports_share_a_byte_of_the_storage(engine):
    rpc = engine.rpc()
    for name in ("vp0", "vp1"):
        rpc.vport_create(vport=name)
    rpc.mapping_set(vport="vp0", luns=[lun(physical=4 * MIB)])
    with refused("INVALID", r"\(a\) of vport vp0"):
        rpc.mapping_set(vport="vp1", luns=[lun(5, "b", physical=5 * MIB - 512)])
    assert rpc.mapping_set(vport="vp1", luns=[lun(5, "b", physical=5 * MIB)])["generation"] == 1


def test_the_digest_tells_content_and_not_how_it_is_cut(engine):
    rpc = engine.rpc()
    rpc.vport_create(vport="vp0")
    one = rpc.mapping_set(vport="vp0", luns=[lun(1, "b", physical=8 * MIB), lun(length=2 * MIB)])
    cut = [{"lun": 0, "vdisk": "a", "extents": [[MIB, MIB, MIB], [0, 0, MIB]]}, lun(1, "b", physical=8 * MIB)]
    two = rpc.mapping_set(vport="vp0", expected_generation=1, luns=cut)
    assert two == {"generation": 1, "digest": one["digest"], "changed": False}
    cut[0]["extents"][1].append("ro")
    three = rpc.mapping_set(vport="vp0", luns=cut)
    assert three["generation"] == 2
    assert three["digest"] != one["digest"]
    assert rpc.mapping_delete(vport="vp0", expected_generation=2) == {}
    assert rpc.mapping_get(vport="vp0")["luns"] == []


def test_what_a_front_end_uses_is_not_taken_away(engine, make_vport, front_end):
    rpc = make_vport(engine, luns=[lun(length=2 * MIB), lun(1, "b", physical=8 * MIB)])
    front = front_end(engine.socket())
    front.start()
    keep = lun(1, "b", physical=8 * MIB)
    with refused("IN_USE", rf"pid {os.getpid()}"):
        rpc.mapping_set(vport="vp0", luns=[keep])
    with refused("IN_USE", "shrink"):
        rpc.mapping_set(vport="vp0", luns=[lun(), keep])
    with refused("IN_USE", "vdisk a to c"):
        rpc.mapping_set(vport="vp0", luns=[lun(0, "c", length=2 * MIB), keep])
    with refused("IN_USE", "connected to vp0:0"):
        rpc.mapping_delete(vport="vp0")
    with refused("IN_USE", "connected to vp0:0"):
        rpc.vport_delete(vport="vp0")
    assert rpc.mapping_set(vport="vp0", luns=[lun(length=2 * MIB)])["generation"] == 2
    assert not engine.socket(lun=1).exists()
    (disk,) = rpc.vport_get(vport="vp0")["luns"]
    assert disk["front_end"]["pid"] == os.getpid()
    assert rpc.vport_delete(vport="vp0", force=True) == {}
    assert front.is_closed()


def test_bindings_that_cannot_be_are_refused(engine, make_vport):
    rpc = engine.rpc()
    rpc.vport_create(vport="vp0")
    with refused("BAD_STATE", "no mapping yet"):
        rpc.vport_bind(vport="vp0", vf=VF0)
    rpc.mapping_set(vport="vp0", luns=[lun()])
    with refused("BAD_STATE", "not bound"):
        rpc.vport_switch(vport="vp0", path="vf")
    with refused("INVALID", "path is"):
        rpc.vport_switch(vport="vp0", path="xf")
    with refused("INVALID", "PCI address"):
        rpc.vport_bind(vport="vp0", vf="one")
    with refused("STORAGE", "not a VF"):
        rpc.vport_bind(vport="vp0", vf="0000:07:00.1")
    with refused("STORAGE", "not a VF"):
        rpc.vport_bind(vport="vp0", vf=PF)
    assert rpc.vport_bind(vport="vp0", vf=VF0)["switch"]["to"] == "vf"
    with refused("IN_USE", f"bound to VF {VF0}"):
        rpc.vport_bind(vport="vp0", vf=VF1)
    make_vport(engine, "vp1", [lun(0, "b", physical=8 * MIB)])
    with refused("IN_USE", "bound to vport vp0"):
        rpc.vport_bind(vport="vp1", vf=VF0)
    with refused("IN_USE", f"bound to VF {VF0}"):
        rpc.vport_delete(vport="vp0")
    with refused("IN_USE", f"bound to VF {VF0}"):
        rpc.mapping_delete(vport="vp0")
    assert rpc.adapter_list()[0]["vfs"][0]["vport"] == "vp0"
    space = engine.devices / VF1 / "nvme/nvme2/nvme2n1"
    (space / "wwid").write_text("eui.other\n")
    with refused("STORAGE", "other storage"):
        rpc.vport_bind(vport="vp1", vf=VF1)
    shutil.move(space, space.with_name("nvme2c2n1"))
    with refused("STORAGE", "nvme_core.multipath=N"):
        rpc.vport_bind(vport="vp1", vf=VF1)
    shutil.rmtree(space.with_name("nvme2c2n1"))
    with refused("STORAGE", "no block device"):
        rpc.vport_bind(vport="vp1", vf=VF1)
    assert rpc.vport_get(vport="vp1")["vf"] is None


def test_a_queue_state_that_does_not_fit_is_refused(engine, make_vport, front_end):
    rpc = make_vport(engine)
    front_end(engine.socket()).start()
    for call in (rpc.vport_get_state, lambda vport: rpc.vport_set_state(vport=vport, state={})):
        with refused("BAD_STATE", "suspend it first"):
            call(vport="vp0")
    rpc.vport_suspend(vport="vp0")
    with refused("BAD_STATE", "FROZEN"):
        rpc.vport_bind(vport="vp0", vf=VF0)
    state = rpc.vport_get_state(vport="vp0")

    def changed(seal=True, **fields):
        other = {**json.loads(json.dumps(state)), **fields}
        if seal:
            del other["checksum"]
            text = json.dumps(other, sort_keys=True, separators=(",", ":")).encode()
            import hashlib

            other["checksum"] = "sha256:" + hashlib.sha256(text).hexdigest()
        return other

    ahead = json.loads(json.dumps(state["luns"]))
    ahead[0]["queues"][0]["last_avail"] = 5
    cases = [
        (changed(version=2), "INVALID", "version 2"),
        (changed(False, features=1), "INVALID", "checksum"),
        (changed(vport="vp9"), "INVALID", "vp9"),
        (changed(generation=9), "STALE_GENERATION", "generation 9"),
        (changed(luns=ahead), "INVALID", "last_avail 5"),
        (changed(luns=[{}]), "INVALID", "not complete"),
        (changed(luns=[{"lun": 7, "queues": [ahead[0]["queues"][0] | {"last_avail": 0}]}]), "INVALID", "no front end"),
    ]
    for other, reason, words in cases:
        with refused(reason, words):
            rpc.vport_set_state(vport="vp0", state=other)
    assert rpc.vport_set_state(vport="vp0", state=state) == {}
    assert rpc.vport_resume(vport="vp0")["state"] == "RUNNING"
    assert rpc.vport_resume(vport="vp0")["state"] == "RUNNING"
    with refused("INVALID", "when is"):
        rpc.vport_fence(vport="vp0", when="later")
    rpc.vport_fence(vport="vp0")
    with refused("REFUSED", "fenced"):
        rpc.vport_resume(vport="vp0")


def test_history_tells_what_happened(engine, make_vport):
    rpc = make_vport(engine, bind=VF0)
    rpc.vport_unbind(vport="vp0")
    events = [one["event"] for one in rpc.vport_get(vport="vp0")["history"]]
    assert events == ["created", "mapping", "bound", "switched", "switched", "unbound"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_only_root_is_answered(engine):
    path = engine.run_dir / "rpc.sock"
    os.chmod(path, 0o666)  # the file's mode is the first door, this is the second
    for parent in path.parents:
        if str(parent).startswith("/tmp/"):
            os.chmod(parent, 0o755)
    ask = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); sock = socket.socket(socket.AF_UNIX);"
        "sock.connect(sys.argv[1]); sock.settimeout(10); print(sock.recv(4096).decode())"
    )
    done = subprocess.run([sys.executable, "-c", ask, str(path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["error"]["data"]["reason"] == "REFUSED"
    assert engine.rpc().get_version()["protocol"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "adapters is missing"),
        ('{"adapters":[{"pf":"x"}]}', "pf is 'x'"),
        ('{"adapters":[{"pf":"0000:01:00.0","nsid":0}]}', "nsid is 0"),
        ('{"adapters":[{"pf":"0000:01:00.0"}],"colour":1}', "unknown key 'colour'"),
        ('{"adapters":[{"pf":"0000:01:00.0","latency":-1}]}', "latency is -1"),
        ('{"adapters":[{"pf":"0000:01:00.0"},{"pf":"0000:01:00.0"}]}', "named twice"),
        ('{"adapters":[{"pf":"0000:01:00.0"}],"run_dir":"here"}', "absolute"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line_and_status_2(text, words, tmp_path):
    path = tmp_path / "vportd.json"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "vportd", "--config", str(path)],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert str(path) in done.stderr
