# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's end of a worker."""

import asyncio
import gc
import os
import signal
from typing import Any

import pytest

from vportd import channel, worker_client
from vportd.errors import ChannelClosed, WorkerDied
from vportd.worker_client import WorkerClient


def test_trying_a_worker_again_whose_channel_is_closed_does_not_stop_the_engine(tmp_path, monkeypatch):
    """Its end has not been noticed yet; that takes the event loop, which whoever tries again at once would keep."""

    def closed(*__):
        raise ChannelClosed("the worker has ended")

    async def try_until_its_end_is_noticed():
        lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        client = WorkerClient("worker", lock, lambda message: None, lambda: None)
        os.close(lock)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        client.kill()
        monkeypatch.setattr(channel, "send", closed)
        tries = 0
        while client.alive:
            tries += 1
            assert tries < 100
            with pytest.raises(WorkerDied):
                await client.call("suspend")
        await client.gone
        gc.collect()

    complaints: list[dict[str, Any]] = []
    asyncio.run(asyncio.wait_for(try_until_its_end_is_noticed(), 20))
    assert not complaints


def test_a_worker_that_hangs_while_it_is_waited_for_is_ended(tmp_path, monkeypatch):
    """As one does that writes to an eventfd which is full, and whose owner wants that to wait."""

    async def stop():
        lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        client = WorkerClient("worker", lock, lambda message: None, lambda: None)
        os.close(lock)
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(WorkerDied):
            await client.call("stop")
        await client.gone

    monkeypatch.setattr(worker_client, "LOOK_TIME", 0.3)
    asyncio.run(asyncio.wait_for(stop(), 20))
