# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker looks for requests for a moment before it waits for a notification, and never when there is nothing."""

import time
from pathlib import Path

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import IN, OK


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_idle_vport_uses_no_cpu_however_busy_it_was(engine, make_vport, front_end):
    make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    for __ in range(500):
        assert queue.do(IN, 0, length=512)[0] == OK
    workers = engine.workers().values()
    before = [cpu_ticks(pid) for pid in workers]
    time.sleep(1)
    assert [cpu_ticks(pid) for pid in workers] == before
    assert queue.do(IN, 0, length=512)[0] == OK
