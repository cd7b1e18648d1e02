# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapter: a PF, its VFs, and the block device that each of their controllers shows, as found in sysfs."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vportd.config import AdapterConfig
from vportd.errors import StorageError
from vportd.virtio_spec import SECTOR_SIZE

_NAMESPACE = re.compile(r"nvme(\d+)n(\d+)")
_HIDDEN = re.compile(r"nvme\d+c\d+n\d+")


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A namespace as one controller shows it: ``size`` and ``block_size`` in bytes, ``identity`` the same through
    each controller. ``discards`` and ``zeroes``: what DISCARD and WRITE_ZEROES become works on the device.
    """

    path: str
    size: int
    block_size: int
    identity: str
    discards: bool
    zeroes: bool


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int:
    text = _read(path)
    return int(text) if text is not None and text.isdigit() else 0


class Adapter:
    """One adapter of the configuration. Nothing is kept: each look is a look into sysfs."""

    def __init__(self, config: AdapterConfig, sysfs_root: str, dev_root: str) -> None:
        self.config = config
        self.pf = config.pf
        self._devices = Path(sysfs_root) / "bus/pci/devices"
        self._dev_root = Path(dev_root)

    def device(self, address: str) -> BlockDevice:
        """Return the block device of this adapter's namespace through the function at PCI ``address``. Raises
        StorageError.
        """
        function = self._devices / address
        if not function.is_dir():
            raise StorageError(f"there is no PCI function {address}: check the address with lspci")
        names = sorted(function.glob("nvme/nvme*/nvme*n*"))
        hidden = [path for path in names if _HIDDEN.fullmatch(path.name)]
        spaces = [path for path in names if _NAMESPACE.fullmatch(path.name)]
        nsid = str(self.config.nsid)
        found = [path for path in spaces if _read(path / "nsid") == nsid]
        found = found or [path for path in spaces if _read(path / "nsid") is None and path.name.endswith(f"n{nsid}")]
        if not found and hidden:
            raise StorageError(
                f"{address} shows its namespace only through multipath ({hidden[0].name}): boot with "
                f"nvme_core.multipath=N"
            )
        if not found:
            raise StorageError(
                f"{address} has no block device of namespace {nsid}: is its controller online, the nvme driver "
                f"bound, the namespace attached?"
            )
        path = found[0]
        identity = next((value for name in ("wwid", "nguid", "uuid", "eui") if (value := _read(path / name))), None)
        if identity is None:
            raise StorageError(
                f"{path.name} of {address} has no wwid, nguid, uuid or eui: it cannot be told from other storage"
            )
        size = _read(path / "size")
        if size is None or not size.isdigit() or int(size) == 0:
            raise StorageError(f"{path.name} of {address} has size {size!r}")
        block_size = int(_read(path / "queue/logical_block_size") or SECTOR_SIZE)
        # Linux punches a hole into a block device by its command to write zeroes, and has nothing else for it
        zeroes = _number(path / "queue/write_zeroes_max_bytes") > 0
        return BlockDevice(
            str(self._dev_root / path.name),
            int(size) * SECTOR_SIZE,
            block_size,
            identity,
            zeroes and _number(path / "queue/discard_max_bytes") > 0,
            zeroes,
        )

    def vfs(self) -> list[str]:
        """Return the PCI addresses of the PF's VFs, in the order of their numbers."""
        links = sorted((self._devices / self.pf).glob("virtfn*"), key=lambda link: int(link.name[6:] or 0))
        return [os.path.basename(os.path.realpath(link)) for link in links]

    def vf_device(self, vf: str) -> BlockDevice:
        """Return the block device through VF ``vf``, the same storage as the PF's. Raises StorageError."""
        function = self._devices / vf
        parent = function / "physfn"
        if not function.is_dir() or not parent.exists() or os.path.basename(os.path.realpath(parent)) != self.pf:
            raise StorageError(f"{vf} is not a VF of adapter {self.pf}: its VFs are {', '.join(self.vfs()) or 'none'}")
        mine, pfs = self.device(vf), self.device(self.pf)
        if (mine.identity, mine.size) != (pfs.identity, pfs.size):
            raise StorageError(
                f"VF {vf} shows other storage ({mine.identity}, {mine.size} bytes) than PF {self.pf} "
                f"({pfs.identity}, {pfs.size} bytes): "
                "attach the same namespace"
            )
        return mine
