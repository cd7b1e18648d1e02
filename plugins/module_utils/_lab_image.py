# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's image on the control node: built once by mmdebstrap, cached under a hash of all that goes into it.

An image is a directory ``<cache>/images/<key>/`` with ``root.qcow2``, ``vmlinuz``, ``initrd`` (lab hypervisors) and
``tenant.initrd`` (tenant VMs, same kernel). It appears by one rename, so what is there is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import _lab_cache
from ._errors import CommandFailed, Refused, TimedOut
from ._host import Host
from ._lab_vm import QEMU
from ._plan import Plan, Step

FILES = (_lab_cache.ROOT, "vmlinuz", "initrd", "tenant.initrd")
_RECIPE = 1  # one more whenever build() changes what comes out
_HOOKS = "/tmp/iovlab"
_KVM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What goes into an image: the directory of its files, the Debian suite, a mirror (empty: the usual one)."""

    files: str
    suite: str
    mirror: str = ""

    def packages(self) -> list[str]:
        with open(os.path.join(self.files, "packages.txt"), encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip() and not line.startswith("#")]

    def key(self) -> str:
        """Hash over suite, recipe and every file by relative path, mode and content."""
        digest = hashlib.sha256(f"{_RECIPE}\0{self.suite}".encode())
        for path, mode in sorted(_files(self.files)):
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).digest()
            digest.update(f"\0{os.path.relpath(path, self.files)}\0{mode & 0o111:o}\0".encode() + content)
        return digest.hexdigest()[:16]


def _files(root: str) -> Iterator[tuple[str, int]]:
    for directory, __, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            yield path, os.stat(path).st_mode


def directory(cache: str, key: str) -> str:
    return os.path.join(_lab_cache.images(cache), key)


def plan(cache: str, key: str, refresh: bool, keep: int) -> Plan:
    """Build, when the cache has no image of this key or a fresh one is asked for, and then take away what is too many.

    ``keep`` images stay, and all that VMs are built on.
    """
    path = directory(cache, key)
    there = all(os.path.exists(os.path.join(path, name)) for name in FILES)
    users = _lab_cache.users(path) if there and refresh else []
    if users:
        raise Refused(f"image {key} is in use by {', '.join(users)}; take that lab down before the image is made anew")
    others = [other for other in _lab_cache.keys(cache) if other != key]
    steps: list[Step] = []
    gone: list[str] = []
    if refresh or not there:
        gone = _lab_cache.surplus(cache, key, keep)
        steps.append(Step("build", f"build the lab image {key} (one to three minutes)"))
        steps += [
            Step("take_away", f"remove the lab image {other}, which no VM uses", {"key": other}) for other in gone
        ]
    return Plan(
        before={"image": key if there else None, "others": sorted(others)},
        after={"image": key, "others": sorted(set(others) - set(gone))},
        steps=tuple(steps),
    )


def note_use(cache: str, key: str) -> None:
    """The images that were asked for last are those that are kept."""
    os.utime(directory(cache, key))


def build(recipe: Recipe, cache: str, timeout: float) -> None:
    """Build the image and put it into the cache in one rename. The log is ``<cache>/images/<key>.log``."""
    key = recipe.key()
    final = directory(cache, key)
    partial = tempfile.mkdtemp(prefix=f"{key}.partial-", dir=_lab_cache.images(cache))
    try:
        with open(f"{final}.log", "w", encoding="utf-8") as log:
            _run(_mmdebstrap(recipe), partial, log, timeout)
            _run(["qemu-img", "convert", "-O", "qcow2", "root.ext4", "root.qcow2"], partial, log, timeout)
        os.unlink(os.path.join(partial, "root.ext4"))
        with open(os.path.join(partial, "image.json"), "w", encoding="utf-8") as file:
            json.dump({"suite": recipe.suite, "packages": recipe.packages(), "built": time.time()}, file, indent=1)
        os.chmod(partial, 0o755)
        if os.path.exists(final):
            _lab_cache.put_aside(final)
        os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _lab_cache.remove_leftovers(cache)


def _mmdebstrap(recipe: Recipe) -> list[str]:
    files = recipe.files
    tenant = " ".join(f"{files}/tenant/{name}" for name in ("init", "build-tenant", "python-modules"))
    hooks = [
        f"--setup-hook=sync-in {files}/rootfs /",
        f'--customize-hook=mkdir -p "$1"{_HOOKS}',
        f"--customize-hook=copy-in {tenant} {files}/finish-image {_HOOKS}",
        f'--customize-hook=chroot "$1" sh {_HOOKS}/build-tenant {_HOOKS}/init {_HOOKS}/tenant.initrd',
        f'--customize-hook=mv "$1"/boot/vmlinuz-* "$1"{_HOOKS}/vmlinuz',
        f'--customize-hook=mv "$1"/boot/initrd.img-* "$1"{_HOOKS}/initrd',
        *(f"--customize-hook=download {_HOOKS}/{name} {name}" for name in ("vmlinuz", "initrd", "tenant.initrd")),
        f'--customize-hook=sh "$1"{_HOOKS}/finish-image "$1"',
        "--customize-hook=download /root.ext4 root.ext4",
    ]
    return [
        "mmdebstrap", "--variant=minbase", "--format=null", f"--include={','.join(recipe.packages())}",
        '--aptopt=Apt::Install-Recommends "false"', *hooks, recipe.suite, *([recipe.mirror] if recipe.mirror else []),
    ]  # fmt: skip


def _run(command: list[str], where: str, log: Any, timeout: float) -> None:
    log.write(f"+ {' '.join(command)}\n")
    log.flush()
    environment = os.environ | {"TMPDIR": os.environ.get("TMPDIR", "/var/tmp"), "LC_ALL": "C.UTF-8"}
    try:
        # A person can follow its log while it runs, which run_command does not offer.
        subprocess.run(  # pylint: disable=ansible-bad-function
            command, cwd=where, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, timeout=timeout,
            check=True,
        )  # fmt: skip
    except FileNotFoundError as exc:
        raise CommandFailed(f"{command[0]} is not installed; run make setup, or install its package") from exc
    except subprocess.TimeoutExpired as exc:
        raise TimedOut(f"{command[0]} did not end within {timeout:g} s; see {log.name}") from exc
    except subprocess.CalledProcessError as exc:
        raise CommandFailed(
            f"{command[0]} failed with {exc.returncode}: {_last_error(log.name)}; see {log.name}"
        ) from exc


def _last_error(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return next((line for line in lines if line.startswith("E: ") or "error" in line.lower()), (lines or ["?"])[-1])


@contextmanager
def locked(cache: str, timeout: float) -> Iterator[None]:
    """Only one build at a time in one cache; a second one waits for the first and finds its image."""
    os.makedirs(_lab_cache.images(cache), exist_ok=True)
    with open(os.path.join(_lab_cache.images(cache), "lock"), "w", encoding="ascii") as file:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused(f"another run builds in {cache} for more than {timeout:g} s; let it end") from None
                time.sleep(0.5)
        yield


def accelerator(host: Host, cache: str, key: str) -> tuple[str, str]:
    """``("kvm" | "tcg", why)``: KVM only where the image's kernel and programs ran under it, nested KVM included.

    That /dev/kvm opens says little: there are machines where it opens and a stock kernel dies. The answer is kept in
    the cache for this boot of this machine.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "/dev/kvm is not there or not open to this user"
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    answer_path = os.path.join(cache, "kvm-probe.json")
    try:
        with open(answer_path, encoding="utf-8") as file:
            known: Mapping[str, str] = json.load(file)
        if (known["boot"], known["image"]) == (boot, key):
            return known["accelerator"], known["why"]
    except (OSError, ValueError, KeyError):
        pass  # not asked yet
    kind, why = _probe_kvm(host, directory(cache, key))
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump({"boot": boot, "image": key, "accelerator": kind, "why": why}, file)
    return kind, why


def _probe_kvm(host: Host, image: str) -> tuple[str, str]:
    command = [
        QEMU, "-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host", "-m", "512M", "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", "file:/dev/stdout", "-kernel", os.path.join(image, "vmlinuz"),
        "-initrd", os.path.join(image, "tenant.initrd"), "-append", "console=ttyS0 panic=-1 iovlab.probe",
    ]  # fmt: skip
    try:
        code, out, err = host.run(command, _KVM_SECONDS)
    except CommandFailed as exc:
        return "tcg", f"a kernel did not boot under KVM: {exc}"
    if "iovlab probe ok nested=yes" in out:
        return "kvm", "a kernel booted under KVM, nested virtualization included"
    if "iovlab probe ok" in out:
        return "tcg", "KVM works here but offers no nested virtualization, which tenant VMs need"
    said = next((line.strip() for line in reversed(err.splitlines()) if line.strip()), f"exit status {code}")
    return "tcg", f"a kernel does not boot under KVM here ({said[:120]})"
