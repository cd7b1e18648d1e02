# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a request whose I/O failed: an error for the guest, or another try."""

import errno
import time

from vportd import blk
from vportd.blk_queue import HELD, Queue, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RETRY = 1.0  # seconds between two tries

# Another try, or another path, would end the same way: what the device does not know, a medium that has lost the data,
# a reservation that keeps this host out, and guest memory that its front end has taken away.
FINAL = {errno.EFAULT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODATA, errno.EILSEQ, errno.EBADE}


class StorageErrors:
    """The requests of a worker that are held: taken, failed, neither given back nor under way.

    ``policy`` = "report": the guest gets the error; "wait": its request is tried again until it succeeds; "leave": it
    is held, for another worker is about to take over.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.error = 0  # the errno that the storage fails with, or 0
        self.since = 0.0
        self._held: list[Request] = []
        self._tried: list[tuple[Queue, int]] = []
        self._at = 0.0

    def timeout(self, other: float) -> float:
        """Return the seconds until the next try, or ``other`` (-1: never) if that is sooner."""
        if not self._held:
            return other
        wait = max(0.0, self._at - time.monotonic())
        return wait if other < 0 else min(wait, other)

    def take(self, failed: "Iterable[Request]") -> list[Request]:
        """Hold those of ``failed`` that are not to be given back; return the others."""
        given = []
        for request in failed:
            if request.queue.left:
                blk.leave(request)
                continue
            code = -request.failed or errno.EIO  # a transfer that stayed short
            if self.policy == "report" or code in FINAL:
                given.append(request)
                continue
            if not self.error:
                self.error, self.since = code, time.monotonic()
            if not self._held:
                self._at = time.monotonic() + RETRY
            self._held.append(request)
        self._count(self._held)
        return given

    def _count(self, requests: "Iterable[Request]") -> None:
        for queue in {request.queue for request in requests}:
            queue.counters[HELD] = sum(one.queue is queue for one in self._held)

    def try_again(self, now: bool = False) -> list[Queue]:
        """Begin held requests anew if it is time for it, or ``now``; return their queues. Each is read from the guest
        again, and checked as at the first time.
        """
        if not self._held or not (now or time.monotonic() >= self._at):
            return []
        held, self._held = self._held, []
        self._count(held)
        queues: dict[Queue, list[Request]] = {}
        for request in held:
            queues.setdefault(request.queue, []).append(request)
        for queue, requests in queues.items():
            blk.again(queue, requests)
            self._tried += [(queue, request.head) for request in requests]
        return list(queues)

    def is_back(self) -> bool:
        """True once when nothing that had failed is left to be done."""
        if not self.error or self._held or any(head in queue.outstanding for queue, head in self._tried):
            return False
        self.error = 0
        self._tried.clear()
        return True

    def forget(self, queue: Queue) -> None:
        """Let go of what is held of a queue, of what fails from now on, and of what was not begun. It stays noted in
        the in-flight region.
        """
        queue.left = True
        queue.again = []
        held = [request for request in self._held if request.queue is queue]
        for request in held:
            blk.leave(request)
        self._held = [request for request in self._held if request.queue is not queue]
        self._count(held)
