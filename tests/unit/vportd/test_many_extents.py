# SPDX-License-Identifier: GPL-3.0-or-later
"""Mappings of very many extents: found right, stored once, and back after a restart."""

import json
import random

import pytest

from tests.unit.vportd.engine_process import STORAGE_SIZE, Refusal
from tests.unit.vportd.frontend import IN, OK, OUT
from vportd.extent_table import ExtentTable, disjoint
from vportd.extents import Extents
from vportd.mapping import digest, parse_luns, sha256

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


def test_the_digest_is_that_of_the_canonical_json_of_the_merged_mapping():
    extents = [[0, 8192, 512], [512, 8704, 512], [2048, 1024, 512, "ro"], [4096, 0, 512]]
    luns = parse_luns([{"lun": 3, "vdisk": 'a"\u00e4', "extents": extents}], 512, 1 << 20)
    merged = [[0, 8192, 1024], [2048, 1024, 512, "ro"], [4096, 0, 512]]
    assert digest(luns) == sha256([{"lun": 3, "vdisk": 'a"\u00e4', "readonly": False, "extents": merged}])
    assert digest(luns) == digest(parse_luns(json.loads(json.dumps([one.as_json() for one in luns])), 512, 1 << 20))


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
