# SPDX-License-Identifier: GPL-3.0-or-later
"""What a front end needs of the LUN that it is connected to."""

from typing import Protocol

from vportd.apart import Apart
from vportd.front_end_state import Ring


class Owner(Protocol):
    """What a front end needs of its LUN."""

    apart: Apart

    @property
    def block_size(self) -> int:
        """Logical block size, in bytes."""

    @property
    def capacity(self) -> int:
        """Size, in bytes."""

    @property
    def readonly(self) -> bool:
        """True when the guest may not write."""

    @property
    def discards(self) -> bool:
        """True when the storage can discard."""

    @property
    def zeroes(self) -> bool:
        """True when the storage can write zeroes by itself."""

    async def turn(self) -> bool:
        """Wait until this front end's next message may be handled; False = it asks more than is its due."""

    def refuse_log(self) -> None:
        """Raise Refused where the dirty log cannot be kept."""

    async def memory_changed(self) -> None:
        """The memory table was replaced."""

    async def log_changed(self) -> None:
        """The dirty log, or what is to be logged, was changed."""

    async def call_changed(self, ring: Ring) -> None:
        """The call descriptor of a running ring was replaced."""

    async def start_ring(self, ring: Ring) -> None:
        """Have a ring served."""

    async def stop_ring(self, ring: Ring) -> None:
        """Have a ring served no more, everything taken done, ``ring.base`` set."""

    async def rings_stopping(self) -> None:
        """GET_VRING_BASE has come and its ring has stopped; the answer goes out when this returns."""
