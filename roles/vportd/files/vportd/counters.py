# SPDX-License-Identifier: GPL-3.0-or-later
"""The counters of a vport: memory that both of its workers and the engine share.

First the queues of all LUNs on path ``pf``, then those on path ``vf``, then a page with two words for each path. While
the first is not 0, the worker says once when it has something to do, so that whoever looks at the counters need not
look again and again at those of an idle vport. When the second is not 0, a command waits that is worth an interruption.
"""

import mmap
import os
from dataclasses import dataclass

from vportd.blk_config import QUEUES
from vportd.blk_queue import BUCKETS, COUNTERS_SIZE, HISTOGRAM

PATHS = ("pf", "vf")
LUNS = 256
COUNTERS = (  # words 3 and on of a queue
    "reads",
    "writes",
    "flushes",
    "errors",
    "bytes_read",
    "bytes_written",
    "dirty_pages",
    "discards",
    "write_zeroes",
)
_FIRST = 3
_WORDS = COUNTERS_SIZE // 8
_PATH_SIZE = LUNS * QUEUES * COUNTERS_SIZE
SIZE = len(PATHS) * _PATH_SIZE + mmap.PAGESIZE


def part(memory: memoryview, path: str) -> tuple[memoryview, memoryview, memoryview]:
    """Return the bytes of one path's queues, and its two words, of all the memory."""
    at = PATHS.index(path)
    begin, word = at * _PATH_SIZE, len(PATHS) * _PATH_SIZE + at * 16
    words = memory[word : word + 16].cast("Q")
    return memory[begin : begin + _PATH_SIZE], words[:1], words[1:]


@dataclass(frozen=True, slots=True)
class Sums:
    """The counters of some queues together: by name, the latencies by bucket, and their sum in microseconds."""

    counts: dict[str, int]
    histogram: list[int]
    microseconds: int


class Counters:
    """The engine's view; ``fd`` is what workers are handed."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("vportd-counters", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        memory = memoryview(mmap.mmap(self.fd, SIZE))
        self._words = {path: part(memory, path)[0].cast("Q") for path in PATHS}
        self._wake = [part(memory, path)[1] for path in PATHS]
        self.hurry = {path: part(memory, path)[2] for path in PATHS}

    def word(self, path: str, lun: int, queue: int, word: int) -> int:
        """Return one word of one queue."""
        return int(self._words[path][(lun * QUEUES + queue) * _WORDS + word])

    def take(self, path: str, lun: int, queue: int, word: int) -> int:
        """Return one word of one queue, and set it to 0."""
        words, at = self._words[path], (lun * QUEUES + queue) * _WORDS + word
        value = words[at]
        if value:
            words[at] = 0
        return int(value)

    def sums(self, lun: int, paths: tuple[str, ...] = PATHS) -> Sums:
        """Return what the queues of a LUN have done over these paths."""
        total = [0] * _WORDS
        for path in paths:
            first = lun * QUEUES * _WORDS
            for at in range(first, first + QUEUES * _WORDS, _WORDS):
                found = self._words[path][at : at + HISTOGRAM + BUCKETS].tolist()
                if any(found):
                    for word, value in enumerate(found):
                        total[word] += value
        counts = dict(zip(COUNTERS, total[_FIRST:], strict=False))
        return Sums(counts, total[HISTOGRAM : HISTOGRAM + BUCKETS], total[_FIRST + len(COUNTERS)])

    def forget(self, lun: int) -> None:
        """Set all of a LUN to 0."""
        for words in self._words.values():
            for at in range(lun * QUEUES * _WORDS, (lun + 1) * QUEUES * _WORDS):
                words[at] = 0

    def watch(self) -> None:
        """Have the workers say when they next have something to do."""
        for word in self._wake:
            word[0] = 1

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last view of it."""
        os.close(self.fd)
