# SPDX-License-Identifier: GPL-3.0-or-later
"""The check from outside: is each block of the shared storage what the guest's ledger says that it wrote last?

Reads the image of the physical storage and the LVM metadata on it, and nothing else: no hypervisor, no engine, no
mapping. Finds what ``guest.py check`` finds, and writes that went to where no vdisk of the load is.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from tests.load import guest, lvm

_CHUNK = 1 << 20


class Place:
    """Where the blocks of one area lie on the physical storage."""

    def __init__(self, area: guest.Area, volume: str, extents: Sequence[lvm.Extent]) -> None:
        self.area, self.volume = area, volume
        self._extents = extents
        self._starts = [extent.start for extent in extents]

    def physical(self, number: int) -> int:
        """Of a block of the area; KeyError if the volume ends before it."""
        offset = self.area.offset(number)
        index = bisect.bisect_right(self._starts, offset) - 1
        if index < 0 or offset - self._extents[index].start >= self._extents[index].length:
            raise KeyError(f"volume {self.volume} has no byte {offset}")
        return self._extents[index].physical + offset - self._extents[index].start


def check(image: IO[bytes], ledger: Mapping[str, Any], volumes: Mapping[str, str]) -> dict[str, Any]:
    """``volumes``: the logical volume of each address in the ledger. The result is as that of ``guest.py check``."""
    os.posix_fadvise(image.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    group = lvm.read(image)
    tally, errors, own = guest.Tally(), [], {}
    for area in guest.areas_of(dict(ledger)):
        volume = volumes.get(area.address)
        if volume is None or volume not in group.volumes:
            errors.append(f"pool {group.name} has no volume {volume} for {area.address}")
            continue
        place = Place(area, volume, group.volumes[volume])
        for number in range(area.blocks):
            try:
                own[place.physical(number)] = (area, number)
            except KeyError as exc:
                errors.append(f"{area.address}: {exc.args[0]}")
                break
    checked = 0
    for physical, (area, number) in sorted(own.items()):
        image.seek(physical)
        tally.add(area.judge(number, image.read(guest.BLOCK)))
        checked += area.written(number)
    for defect in _strays(image, int(ledger["run"], 16), set(own), group):
        tally.add(defect)
    ok = not (errors or tally.defects) and checked > 0
    return {"ok": ok, "checked": checked, "errors": errors, **tally.dump()}


def _strays(image: IO[bytes], run: int, own: set[int], group: lvm.Group) -> Iterator[guest.Defect]:
    """Writes of this run in blocks that are not of its areas."""
    wanted = guest.MAGIC + run.to_bytes(8, "little")
    for start, data in _data(image):
        at = data.find(wanted)
        while at >= 0:
            physical = (start + at) // guest.BLOCK * guest.BLOCK
            if physical not in own:
                yield _stray(data[at : at + guest.SECTOR], start + at, group)
            at = data.find(wanted, physical + guest.BLOCK - start)


def _stray(data: bytes, physical: int, group: lvm.Group) -> guest.Defect:
    found = guest.sector(data.ljust(guest.SECTOR, b"\0"))
    what = str(found[0]) if found else "a piece of a write"
    volume = next(
        (
            name
            for name, extents in group.volumes.items()
            if any(extent.physical <= physical < extent.physical + extent.length for extent in extents)
        ),
        None,
    )
    where = f"volume {volume}" if volume else "what no volume has"
    address, offset = (found[0].address, found[0].offset) if found else ("?", 0)
    return guest.Defect("stray", address, offset, f"byte {physical} of the storage, in {where}, holds {what}")


def _data(image: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """What is not a hole, in aligned chunks."""
    descriptor, size = image.fileno(), os.fstat(image.fileno()).st_size
    at = 0
    while at < size:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        at = begin // _CHUNK * _CHUNK
        while at < end:
            yield at, os.pread(descriptor, _CHUNK, at)
            at += _CHUNK


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.outside", description=__doc__.splitlines()[0])
    parser.add_argument("image", help="image of the physical storage")
    parser.add_argument("ledger", help="the ledger that guest.py has written in the VM")
    parser.add_argument("volumes", nargs="+", metavar="ADDRESS=VOLUME", help="such as tenant1:0=tenant1-system")
    options = parser.parse_args(arguments)
    volumes = dict(pair.split("=", 1) for pair in options.volumes if "=" in pair)
    try:
        with open(options.ledger, encoding="ascii") as file:
            ledger = json.load(file)
        with open(options.image, "rb", buffering=0) as image:
            result = check(image, ledger, volumes)
    except (OSError, ValueError, KeyError, lvm.NotReadable) as exc:
        print(f"outside: {exc}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
