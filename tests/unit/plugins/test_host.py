# SPDX-License-Identifier: GPL-3.0-or-later
"""What touches the machine: writes that may hang, zeros, commands and locks, on real files and processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _nvme, _zero
from ansible_collections.iovlab.storage.plugins.module_utils._errors import CommandFailed, Refused, SysfsError, TimedOut
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host, wait_until
from ansible_collections.iovlab.storage.plugins.module_utils._sriov import Adapter
from ansible_collections.iovlab.storage.plugins.module_utils._sysfs import Sysfs
from ansible_collections.iovlab.storage.plugins.module_utils._units import format_size, parse_size, pci_address


def _real_host() -> Host:
    """Commands run for real, as module.run_command runs them."""
    import subprocess

    def run_command(
        arguments: list[str], encoding: str | None, environ_update: dict[str, str]
    ) -> tuple[int, object, object]:
        done = subprocess.run(
            arguments, capture_output=True, check=False, env=os.environ | environ_update, encoding=encoding
        )
        return done.returncode, done.stdout, done.stderr

    return Host.of(SimpleNamespace(run_command=run_command))


def test_an_attribute_is_written(tmp_path: Path) -> None:
    (tmp_path / "attribute").write_text("0123")
    Sysfs(str(tmp_path)).write("attribute", "4", timeout=5)
    assert (tmp_path / "attribute").read_text() == "4"


def test_a_write_that_the_kernel_refuses_gives_its_reason(tmp_path: Path) -> None:
    with pytest.raises(SysfsError, match="No such file or directory"):
        Sysfs(str(tmp_path)).write("none/attribute", "1", timeout=5)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(SysfsError, match="No space left on device"):
        Sysfs(str(tmp_path)).write("full", "1", timeout=5)


def test_a_write_that_hangs_does_not_hang_the_module(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs")  # nobody reads it: opening it for writing blocks
    began = time.monotonic()
    with pytest.raises(SysfsError, match=r"did not come back within 0\.2 s"):
        Sysfs(str(tmp_path)).write("hangs", "1", timeout=0.2)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (512, 512), (4096, 3 * 1024 * 1024 + 512)])
def test_zeroing_touches_its_range_only(tmp_path: Path, offset: int, length: int) -> None:
    device = tmp_path / "device"
    size = 4 * 1024 * 1024
    device.write_bytes(b"\xff" * size)
    _zero.zero(str(device), offset, length)
    assert device.read_bytes() == b"\xff" * offset + bytes(length) + b"\xff" * (size - offset - length)


def test_a_command_that_hangs_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="sleep 60 gave no answer within 1 s"):
        _real_host().run(["sleep", "60"], timeout=1)
    assert time.monotonic() - began < 10


def test_a_command_that_fails_is_quoted_with_its_last_words() -> None:
    with pytest.raises(
        CommandFailed, match=r"failed with 2: ls: cannot access '/nonexistent': No such file or directory"
    ):
        _real_host().output(["ls", "/nonexistent"], timeout=5)


def test_a_program_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(CommandFailed, match="no-such-program is not installed on this host"):
        _real_host().output(["no-such-program"], timeout=5)


def test_bytes_come_as_they_are() -> None:
    assert _real_host().output_bytes(["printf", r"\377\000\001"], timeout=5) == b"\xff\x00\x01"


def test_a_lock_is_free_again_after_its_holder(tmp_path: Path) -> None:
    host = Host(Sysfs("/sys"), "/dev", "/proc", str(tmp_path), lambda _arguments, _encoding: (0, "", ""))
    with host.locked("x", 1), pytest.raises(TimedOut, match=f"process {os.getpid()}"), host.locked("x", 0.1):
        pass
    with host.locked("x", 0.1):
        pass


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(TimedOut, match="the door"):
        wait_until(lambda: False, 0.05, "the door stayed shut")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("64 M", 64 << 20),
        ("1g", 1 << 30),
        ("4096", 4096),
        (4096, 4096),
        ("1.5KiB", 1536),
        ("2TB", 2 << 40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.0001KiB", "1 parsec", True, None])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(Refused):
        parse_size(text)


def test_sizes_are_shown_whole() -> None:
    assert [format_size(size) for size in (64 << 20, 1536, 1000, 3 << 30)] == [
        "64 MiB",
        "1536 bytes",
        "1000 bytes",
        "3 GiB",
    ]


def test_pci_addresses() -> None:
    assert pci_address("01:00.0", "pf") == "0000:01:00.0"
    assert pci_address("ABCD:0F:1f.7", "pf") == "abcd:0f:1f.7"


def test_addresses_of_vfs_cross_devices_and_buses() -> None:
    adapter = Adapter(
        address="0000:01:00.0", controller="nvme0",
        serial="S", nqn=None, held=False, total=512, offset=4, stride=1, autoprobe=True, iommu=True,
        drivers=frozenset(), capabilities=_nvme.Capabilities(_nvme.Resources(0, 0, 0), _nvme.Resources(0, 0, 0)),
        secondaries=(), vfs=(),
    )  # fmt: skip
    assert [adapter.vf_address(index) for index in (0, 3, 4, 251, 252)] == [
        "0000:01:00.4", "0000:01:00.7", "0000:01:01.0", "0000:01:1f.7", "0000:02:00.0",
    ]  # fmt: skip
