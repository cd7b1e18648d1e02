# SPDX-License-Identifier: GPL-3.0-or-later
"""Mappings of very many extents: found right, stored once, and back after a restart."""

import base64
import json
import random
import select
import struct
import time
from array import array

import pytest

from tests.unit.vportd.engine_process import STORAGE_SIZE, Refusal
from tests.unit.vportd.frontend import IN, OK, OUT
from vportd.errors import RpcError
from vportd.extent_table import ExtentTable, combined, disjoint
from vportd.extents import Extents
from vportd.mapping import digest, parse_luns

MANY = STORAGE_SIZE // 512


def scattered(count, length=512):
    """Extents of a vdisk whose blocks lie on the storage in another order."""
    order = list(range(count))
    random.Random(1).shuffle(order)
    return [[at * length, order[at] * length, length] for at in range(count)]


def test_many_extents_lead_where_the_mapping_says_and_survive_a_restart(engine, make_vport, front_end):
    extents = scattered(MANY)
    rpc = make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": extents}])
    queue = front_end(engine.socket()).start()
    data = random.Random(2).randbytes(4096)
    assert queue.do(OUT, 1000, data)[0] == OK
    image = engine.storage.read_bytes()
    for at in range(8):
        physical = extents[1000 + at][1]
        assert image[physical : physical + 512] == data[512 * at : 512 * at + 512]
    mapping = rpc.mapping_get(vport="vp0")
    assert mapping["luns"][0]["extents"] == extents
    files = sorted(path.name for path in (engine.state_dir / "vports").iterdir())
    assert len(files) == 2
    assert len((engine.state_dir / "vports/vp0.json").read_bytes()) < 2000
    engine.stop()
    engine.start()
    assert engine.rpc().mapping_get(vport="vp0") == mapping
    assert front_end(engine.socket()).start().do(IN, 1000, length=4096)[:2] == (OK, data)
    engine.rpc().vport_delete(vport="vp0", force=True)
    assert list((engine.state_dir / "vports").iterdir()) == []


def test_a_file_of_extents_that_is_damaged_is_refused(engine, make_vport):
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": scattered(5000)}])
    engine.stop()
    (path,) = (engine.state_dir / "vports").glob("*.extents")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    engine.start()
    with pytest.raises(Refusal, match="does not fit its checksum"):
        engine.rpc().vport_get(vport="vp0")


def test_the_digest_is_of_the_merged_mapping_however_it_was_cut_and_sent():
    def of(extents, **more):
        return digest(parse_luns([{"lun": 3, "vdisk": 'a"\u00e4', "extents": extents, **more}], 512, 1 << 20))

    extents = [[0, 8192, 512], [512, 8704, 512], [2048, 1024, 512, "ro"], [4096, 0, 512]]
    merged = [[0, 8192, 1024], [2048, 1024, 512, "ro"], [4096, 0, 512]]
    assert of(extents) == of(merged) == of(extents[::-1]) == of(packed(extents)) == of(json.loads(json.dumps(merged)))
    others = [of(merged[:2]), of([[0, 8192, 1024], [2048, 1024, 512], [4096, 0, 512]]), of(merged, readonly=True)]
    others += [of(merged, lease=65536), of([[0, 8192, 1024], [2048, 1024, 512, "ro"], [4096, 512, 512]])]
    assert len({of(merged), *others}) == 6


def packed(extents):
    """Extents as ``mapping_set`` takes very many of them; each is little-endian."""
    columns = [struct.pack(f"<{len(extents)}q", *(extent[at] for extent in extents)) for at in range(3)]
    return base64.b64encode(b"".join(columns) + bytes(len(extent) == 4 for extent in extents)).decode()


BAD = {
    "is not a multiple": [[0, 0, 512], [512, 1024, 100]],
    "none may be negative": [[0, 0, 512], [512, -512, 512]],
    "length must be": [[0, 0, 512], [512, 1024, 0]],
    "overlap in the vdisk": [[0, 0, 1024], [512, 4096, 512]],
    "of a storage of": [[0, 0, 512], [512, (1 << 20) - 512, 1024]],
    "beyond any disk": [[0, 0, 512], [1 << 62, 512, 512]],
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_wrong_with_extents_is_found_in_lists_and_in_packed_ones(words):
    for extents in (BAD[words], packed(BAD[words]), [[*one, "ro"] for one in BAD[words]]):
        with pytest.raises(RpcError, match=words):
            parse_luns([{"lun": 0, "vdisk": "a", "extents": extents}], 512, 1 << 20)


def test_what_is_no_packed_extents_is_refused():
    good = base64.b64decode(packed([[0, 0, 512]]))
    for content in (b"", good[:-1], good + good[:1], good[:-1] + b"\2"):
        with pytest.raises(RpcError, match="packed extents"):
            parse_luns([{"lun": 0, "vdisk": "a", "extents": base64.b64encode(content).decode()}], 512, 1 << 20)
    for text in ("not base64!", packed([[0, 0, 512]]) + "=", "\u00e4"):
        with pytest.raises(RpcError, match="packed extents"):
            parse_luns([{"lun": 0, "vdisk": "a", "extents": text}], 512, 1 << 20)


def test_a_push_of_very_many_extents_lets_others_have_their_answers(engine, make_vport):
    rpc, other = make_vport(engine, luns=[]), engine.rpc()
    text = packed(scattered(MANY))
    rpc.begin("mapping_set", vport="vp0", luns=[{"lun": 0, "vdisk": "a", "extents": text}])
    waits = []
    while not select.select([rpc.sock], [], [], 0)[0]:
        began = time.perf_counter()
        other.get_version()
        waits.append(time.perf_counter() - began)
    assert rpc.end()["changed"]
    assert len(waits) > 2
    assert max(waits) < sum(waits) / 2
    assert len(rpc.mapping_get(vport="vp0")["luns"][0]["extents"]) == MANY


def test_bits_that_any_number_of_the_columns_has():
    for numbers in ([1], [1, 2, 4], [-1, 0], [512] * 7 + [1 << 40], []):
        every = 0
        for number in numbers:
            every |= number & (1 << 64) - 1
        assert combined(array("q", numbers)) == combined(array("q", numbers[:1]), array("q", numbers[1:])) == every


def test_extents_that_crowd_in_one_place_are_found():
    crowd = [(at * 512, at * 512, 512, False) for at in range(3000)]
    extents = Extents([*crowd, (1 << 50, 1 << 30, 512, True)], False)
    assert extents.starts
    for at in (0, 1, 1499, 2999):
        assert extents.one(at * 512 + 7) == (at * 512, at * 512 + 512, 0, 0)
    assert extents.one((1 << 50) + 511) == (1 << 50, (1 << 50) + 512, (1 << 30) - (1 << 50), 1)
    assert extents.one(3000 * 512) == (0, 0, 0, 1)
    sizes, content = extents.pack()
    again = Extents.unpack(sizes, memoryview(content))
    assert again.pieces(512, 2048, True) == [(512, 2048)]
    assert again.one(1 << 50)[3] == 1


def test_tables_that_share_a_byte_of_the_storage_are_told_from_those_that_do_not():
    numbers = random.Random(5)
    for __ in range(200):
        spans = [(numbers.randrange(40), numbers.randrange(1, 4)) for __ in range(numbers.randrange(1, 8))]
        taken = [at for start, size in spans for at in range(start, start + size)]
        table = ExtentTable.of([(at * 10, start, size, False) for at, (start, size) in enumerate(spans)])
        assert disjoint([table]) == (len(taken) == len(set(taken)))
