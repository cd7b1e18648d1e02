# SPDX-License-Identifier: GPL-3.0-or-later
"""Pace: how much one front end may ask of the engine's process, which has other vports to look after."""

import asyncio
import time

CREDIT = 2000  # a start or a migration is some hundred messages, and what has been saved up is done at once
PER_SECOND = 200  # messages for which a front end that asks without pause has its turn
CONNECTION = 10  # what a new connection costs, in messages
DEATH = 500  # what the death of a worker costs that served it
DEBT = 2000  # and no more than this is owed


class Pace:
    """The turns of one LUN's socket, over all its connections: whoever connects anew has saved up nothing by that."""

    def __init__(self) -> None:
        self._credit, self._then = float(CREDIT), time.monotonic()

    async def turn(self, cost: int = 1) -> bool:
        """Wait until it is this front end's turn: after all others who have something to do, and, when it has used up
        what it has to its credit (then the answer is False), no sooner than ``PER_SECOND`` allows.
        """
        now = time.monotonic()
        self._credit = min(CREDIT, self._credit + (now - self._then) * PER_SECOND) - cost
        self._then = now
        await asyncio.sleep(max(0.0, -self._credit / PER_SECOND))
        return self._credit >= 0

    def charge(self, cost: int) -> None:
        """Take ``cost`` messages off what has been saved up."""
        self._credit = max(-float(DEBT), self._credit - cost)
