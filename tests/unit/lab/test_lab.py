# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab on the control node: what is refused before anything starts, and what a VM is told by."""

import fcntl
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import (
    _lab_cache,
    _lab_image,
    _lab_preflight,
    _lab_vm,
)
from ansible_collections.iovlab.storage.plugins.module_utils._errors import CommandFailed, Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._lab_vm import Adapter, Image, LabVm
from ansible_collections.iovlab.storage.plugins.module_utils._sysfs import Sysfs


def make_vm(directory: Path, **changes: Any) -> LabVm:
    settings: dict[str, Any] = {
        "lab": "t",
        "name": "hv1",
        "directory": str(directory),
        "image": Image(str(directory / "root.qcow2"), "/k", "/i"),
        "memory": 512,
        "cpus": 1,
        "accelerator": "tcg",
        "ssh_port": 22999,
        "peers": ("hv2", "hv3"),
        "adapter": Adapter("serial", 4, 2, 2, str(directory / "san.img"), "6a1a3c4e-1111-4222-8333-444455556666"),
        "seed": (("/etc/hosts", "127.0.0.1 localhost\n", 0o644), ("/root/.ssh/id", "secret\n", 0o600)),
    }
    return LabVm(**(settings | changes))


def option(command: list[str], name: str, containing: str) -> str:
    """The value of the option ``name`` that contains ``containing``."""
    values = [value for key, value in itertools.pairwise(command) if key == name and containing in value]
    assert len(values) == 1, (name, containing, values)
    return values[0]


@pytest.fixture
def vms() -> list[dict[str, Any]]:
    return [{"name": "hv1", "memory": 1, "ssh_port": free_port()}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def this_machine() -> Host:
    """Host.of() without a module."""

    def run(arguments: list[str], encoding: str | None) -> tuple[int, Any, Any]:
        done = subprocess.run(arguments, capture_output=True, encoding=encoding, check=False)
        return done.returncode, done.stdout, done.stderr

    return Host(Sysfs("/sys"), "/dev", "/proc", "/run/lock", run)


def found(tmp_path: Path, vms: list[dict[str, Any]]) -> list[str]:
    return _lab_preflight.problems(this_machine(), "t", str(tmp_path), str(tmp_path), vms)


def test_a_machine_with_room_has_no_problem(tmp_path: Path, vms: list[dict[str, Any]]) -> None:
    assert found(tmp_path, vms) == []


def test_a_port_that_is_taken_is_named(tmp_path: Path, vms: list[dict[str, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        vms[0]["ssh_port"] = server.getsockname()[1]
        (problem,) = found(tmp_path, vms)
    assert f"port {vms[0]['ssh_port']}" in problem
    assert "taken" in problem


def test_a_port_given_twice_is_named(tmp_path: Path, vms: list[dict[str, Any]]) -> None:
    (problem,) = found(tmp_path, [vms[0], vms[0] | {"name": "hv2"}])
    assert "more than one VM" in problem


def test_too_little_memory_is_counted_over_all_vms(tmp_path: Path, vms: list[dict[str, Any]]) -> None:
    half = _lab_preflight.available_memory() * 2 // 3
    both = [{"name": name, "memory": half, "ssh_port": free_port()} for name in ("hv1", "hv2")]
    (problem,) = found(tmp_path, both)
    assert f"2 VMs need {2 * half} MiB" in problem


def test_too_little_disk_is_found(tmp_path: Path, vms: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    assert ["only 1 MiB are free" in problem for problem in found(tmp_path, vms)] == [True, True]


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_old_qemu_is_refused_with_the_version_that_is_needed(
    tmp_path: Path, vms: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "qemu-system-x86_64", "echo QEMU emulator version 6.2.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "QEMU 6.2 is too old; install 7.2 or later" in found(tmp_path, vms)


def test_all_problems_are_told_at_once(
    tmp_path: Path, vms: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "timeout", f'exec {shutil.which("timeout")} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path))
    vms[0]["memory"] = 1 << 30
    problems = found(tmp_path, vms)
    assert any("qemu-system-x86" in problem for problem in problems)
    assert any("mmdebstrap" in problem for problem in problems)
    assert any("memory" in problem for problem in problems)


def test_every_link_has_two_ends_that_fit(tmp_path: Path) -> None:
    names = ("hv1", "hv2", "hv3")
    commands = {
        name: make_vm(tmp_path, name=name, peers=tuple(n for n in names if n != name)).command() for name in names
    }
    for one in names:
        for other in names:
            if one != other:
                end = option(commands[one], "-netdev", f"local.path=../links/{one}-{other}.sock")
                assert f"remote.path=../links/{other}-{one}.sock" in end


def test_the_adapter_has_the_resources_its_vfs_need(tmp_path: Path) -> None:
    for vfs in (1, 4, 64):
        adapter = Adapter("s", vfs, 3, 2, "/f", "u")
        nvme = option(make_vm(tmp_path, adapter=adapter).command(), "-device", "sriov_max_vfs")
        values = dict(pair.split("=") for pair in nvme.split(",")[1:])
        assert int(values["sriov_vq_flexible"]) == 3 * vfs
        assert int(values["sriov_vi_flexible"]) == 2 * vfs
        assert int(values["max_ioqpairs"]) >= int(values["sriov_vq_flexible"]) + 2
        assert int(values["msix_qsize"]) >= int(values["sriov_vi_flexible"]) + 1


def test_the_seed_is_the_same_bytes_for_the_same_content(tmp_path: Path) -> None:
    vm = make_vm(tmp_path)
    data = vm.seed_archive()
    assert data == make_vm(tmp_path).seed_archive()
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {m.name: m.mode for m in archive} == {"etc/hosts": 0o644, "root/.ssh/id": 0o600}


def test_only_the_vms_own_qemu_is_taken_for_it(tmp_path: Path) -> None:
    vm = make_vm(tmp_path)
    os.makedirs(vm.home)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            Path(vm.path("qemu.pid")).write_text(str(stranger.pid))
            assert _lab_vm.read(vm)["state"] == "absent"
        finally:
            stranger.kill()
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", "echo; read line", vm.process_name], **pipes) as own:
        try:
            assert own.stdout is not None
            own.stdout.readline()  # from here on its command line is its own
            Path(vm.path("qemu.pid")).write_text(str(own.pid))
            assert _lab_vm.read(vm)["state"] == "started"
        finally:
            own.kill()


def test_info_tells_the_vms_of_a_lab_and_how_to_reach_them(tmp_path: Path) -> None:
    assert _lab_vm.vms_in(str(tmp_path / "nix")) == []
    vm, never_started = make_vm(tmp_path), make_vm(tmp_path, name="hv2")
    for one in (vm, never_started):
        os.makedirs(one.home)
        Path(one.path("overlay.qcow2")).touch()
    (tmp_path / "links").mkdir()
    Path(vm.path("command.json")).write_text(json.dumps(vm.command()))
    known = {"ssh": "127.0.0.1:22999", "accelerator": "tcg", "memory": 512, "cpus": 1, "pid": None, "state": "stopped"}
    unknown = dict.fromkeys(("ssh", "accelerator", "memory", "cpus", "pid")) | {"state": "stopped"}
    assert _lab_vm.vms_in(str(tmp_path)) == [
        {"name": "hv1", "console": vm.path("console.log"), **known},
        {"name": "hv2", "console": never_started.path("console.log"), **unknown},
    ]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["sh", "-c", "echo; read line", vm.process_name], **pipes) as own:
        try:
            assert own.stdout is not None
            own.stdout.readline()
            Path(vm.path("qemu.pid")).write_text(str(own.pid))
            (running, __) = _lab_vm.vms_in(str(tmp_path))
        finally:
            own.kill()
    assert (running["state"], running["pid"]) == ("started", own.pid)


def test_info_refuses_a_record_that_was_cut_short(tmp_path: Path) -> None:
    vm = make_vm(tmp_path)
    os.makedirs(vm.home)
    Path(vm.path("overlay.qcow2")).touch()
    Path(vm.path("command.json")).write_text('["qemu",')
    with pytest.raises(Refused, match=r"command\.json is cut short"):
        _lab_vm.vms_in(str(tmp_path))


@pytest.mark.parametrize(
    ("state", "wanted", "verbs"),
    [
        ("absent", "started", ["create", "start"]),
        ("stopped", "started", ["start"]),
        ("absent", "absent", []),
        ("stopped", "absent", ["remove"]),
        ("started", "absent", ["stop", "remove"]),
        ("started", "stopped", ["stop"]),
        ("stopped", "stopped", []),
    ],
)
def test_the_plan_goes_from_each_state_to_each(tmp_path: Path, state: str, wanted: str, verbs: list[str]) -> None:
    vm = make_vm(tmp_path)
    current = {"state": state, "pid": None, "command": vm.command() if state == "started" else None}
    assert [step.verb for step in _lab_vm.plan(vm, current, wanted).steps] == verbs


def test_a_running_vm_with_other_settings_is_left_alone(tmp_path: Path) -> None:
    current = {"state": "started", "pid": 1, "command": make_vm(tmp_path, memory=256).command()}
    with pytest.raises(Refused, match="256M instead of 512M"):
        _lab_vm.plan(make_vm(tmp_path), current, "started")


def test_a_qemu_that_does_not_start_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "qemu-system-x86_64", "echo 'no such device' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    vm = make_vm(tmp_path)
    os.makedirs(vm.home)
    with pytest.raises(CommandFailed, match="ended with 1 at once: no such device"):
        _lab_vm.start(vm)


def test_an_image_has_another_key_when_anything_in_it_changes(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "packages.txt").write_text("# comment\nfio\n")
    recipe = _lab_image.Recipe(str(files), "trixie")
    keys = [recipe.key(), _lab_image.Recipe(str(files), "bookworm").key()]
    (files / "packages.txt").write_text("fio\nnvme-cli\n")
    keys.append(recipe.key())
    (files / "packages.txt").chmod(0o755)
    keys.append(recipe.key())
    assert len(set(keys)) == len(keys)
    assert recipe.packages() == ["fio", "nvme-cli"]


def test_a_build_that_fails_leaves_no_image_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "mmdebstrap", "echo 'E: no mirror today' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    files, cache = tmp_path / "files", tmp_path / "cache"
    files.mkdir()
    (files / "packages.txt").write_text("fio\n")
    recipe = _lab_image.Recipe(str(files), "trixie")
    with _lab_image.locked(str(cache), 1), pytest.raises(CommandFailed, match="E: no mirror today"):
        _lab_image.build(recipe, str(cache), 10)
    assert [step.verb for step in _lab_image.plan(str(cache), recipe.key(), False, 2).steps] == ["build"]
    assert not [name for name in os.listdir(cache / "images") if "partial" in name]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "images" / "0123.partial-abcd"
    left.mkdir(parents=True)
    with _lab_image.locked(str(tmp_path), 1):
        _lab_cache.remove_leftovers(str(tmp_path))
    assert not left.exists()


def test_a_second_build_waits_and_then_gives_up_in_one_line(tmp_path: Path) -> None:
    second = _lab_image.locked(str(tmp_path), 0.1)
    with _lab_image.locked(str(tmp_path), 1), pytest.raises(Refused, match="another run builds"), second:
        pytest.fail("two builds at once")


# The cache of images


def image(cache: Path, key: str, used: int) -> Path:
    """A whole image that was asked for last at the time ``used``."""
    made = cache / "images" / key
    made.mkdir(parents=True)
    for name in _lab_image.FILES:
        (made / name).write_text(key)
    (cache / "images" / f"{key}.log").write_text("built")
    os.utime(made, (used, used))
    return made


def disk_on(root: Path, overlay: Path) -> None:
    """A VM's disk, as the module makes it."""
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(root), "1M"], check=True)
    vm = make_vm(overlay.parent.parent, name=overlay.parent.name, image=Image(str(root), "/k", "/i"))
    _lab_vm.create(this_machine(), vm)
    assert Path(vm.path("overlay.qcow2")) == overlay


def there(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "images").iterdir() if path.is_dir())


def removed(cache: Path, key: str, keep: int) -> list[str]:
    planned = _lab_image.plan(str(cache), key, False, keep)
    return [step.args["key"] for step in planned.steps if step.verb == "take_away"]


def test_the_images_that_were_used_last_stay(tmp_path: Path) -> None:
    for used, key in enumerate(("c", "a", "b", "d"), 1000):
        image(tmp_path, key, used)
    assert removed(tmp_path, "new", 1) == ["d", "b", "a", "c"]
    assert removed(tmp_path, "new", 3) == ["a", "c"]
    assert removed(tmp_path, "new", 9) == []
    assert removed(tmp_path, "a", 1) == [], "nothing is built, so nothing is removed"
    _lab_image.note_use(str(tmp_path), "c")
    assert removed(tmp_path, "new", 2) == ["d", "b", "a"]
    with _lab_image.locked(str(tmp_path), 1):
        for key in removed(tmp_path, "new", 3):
            _lab_cache.take_away(str(tmp_path), key)
    assert there(tmp_path) == ["c", "d"]
    assert not (tmp_path / "images" / "a.log").exists()


def test_an_image_that_a_vm_is_built_on_stays_until_the_vm_is_gone(tmp_path: Path) -> None:
    old, overlay = image(tmp_path, "old", 1), tmp_path / "lab" / "hv1" / "overlay.qcow2"
    disk_on(old / "root.qcow2", overlay)
    os.utime(old, (1, 1))
    image(tmp_path, "unused", 2)
    assert removed(tmp_path, "new", 1) == ["unused"], "though it is older"
    _lab_cache.take_away(str(tmp_path), "old")  # as if the VM had come after the plan
    assert there(tmp_path) == ["old", "unused"]
    with pytest.raises(Refused, match=rf"image old is in use by {overlay}; take that lab down"):
        _lab_image.plan(str(tmp_path), "old", True, 2)
    newer = image(tmp_path, "newer", 3)
    overlay.unlink()
    disk_on(newer / "root.qcow2", overlay)
    os.utime(old, (1, 1))
    assert removed(tmp_path, "new", 1) == ["unused", "old"], "the VM is built on another one by now"


def test_an_image_that_a_qemu_has_open_stays(tmp_path: Path) -> None:
    """Of a VM whose files are gone, or that nobody has linked: QEMU's locks tell."""
    old = image(tmp_path, "old", 1)
    wish = _lab_cache._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
    with (old / "root.qcow2").open("rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, wish)
        assert removed(tmp_path, "new", 1) == []
    assert removed(tmp_path, "new", 1) == ["old"]


def test_an_image_is_not_removed_while_a_disk_is_made_on_it(tmp_path: Path) -> None:
    old = image(tmp_path, "old", 1)
    with _lab_cache.claimed(str(old / "root.qcow2"), str(tmp_path / "overlay")):
        _lab_cache.take_away(str(tmp_path), "old")
        assert there(tmp_path) == ["old"]
    _lab_cache.take_away(str(tmp_path), "old")
    assert there(tmp_path) == []


def test_killed_while_it_removes_an_image_the_others_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for used, key in enumerate(("a", "b"), 1000):
        image(tmp_path, key, used)

    def killed(path: str) -> None:
        os.unlink(os.path.join(path, "root.qcow2"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            _lab_cache.take_away(str(tmp_path), "a")
    assert _lab_cache.keys(str(tmp_path)) == ["b"]
    assert [step.verb for step in _lab_image.plan(str(tmp_path), "a", False, 2).steps] == ["build"]
    _lab_cache.remove_leftovers(str(tmp_path))
    assert there(tmp_path) == ["b"]
