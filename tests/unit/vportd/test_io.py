# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM's requests do to the storage."""

import os

from engine_process import VF0
from frontend import GET_ID, IN, IOERR, OK, OUT

MIB = 1 << 20


def test_a_request_across_extents_lands_exactly_where_the_mapping_says(engine, make_vport, front_end):
    make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    data = os.urandom(64 << 10)
    assert queue.do(OUT, (3 * MIB - len(data)) // 512, data) == (OK, b"", 1)
    before = engine.storage.read_bytes()
    assert before[6 * MIB - len(data) : 6 * MIB] == data
    assert queue.do(IN, (3 * MIB - len(data)) // 512, length=len(data)) == (OK, data, len(data) + 1)
    assert queue.do(GET_ID, length=20)[:2] == (OK, b"vp0:0".ljust(20, b"\0"))
    assert queue.do(IN, 3 * MIB // 512, length=512)[0] == IOERR
