# SPDX-License-Identifier: GPL-3.0-or-later
"""``python confined.py UNIT PROGRAM...``: runs a program with the system call filter, the capabilities and
NoNewPrivileges of a service's unit, as systemd would. Root only; needs libseccomp2 and systemd-analyze.
"""

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARY = "libseccomp.so.2"
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}


def settings(unit, name):
    """The values of one setting of a unit, in order."""
    return re.findall(rf"^{name}=(.*)$", Path(unit).read_text(encoding="utf-8"), re.MULTILINE)


def members(word, seen=()):
    """The system calls of one word of a filter: a call, or a set (of sets)."""
    if not word.startswith("@"):
        return {word}
    shown = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    words = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return {call for one in words if one and not one.startswith("#") for call in members(one)}


def allowed(unit):
    """The system calls that the filter of a unit lets through."""
    found = members("@default")
    for line in settings(unit, "SystemCallFilter"):
        calls = {call for word in line.removeprefix("~").split() for call in members(word)}
        found = found - calls if line.startswith("~") else found | calls
    return found


def missing():
    """What is missing here to do this, or None."""
    if os.geteuid() != 0:
        return "only root can drop capabilities"
    if shutil.which("systemd-analyze") is None:
        return "systemd-analyze is not installed"
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return "libseccomp2 is not installed"
    return None


def confine(unit):
    """Put this process under the limits of the unit."""
    libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL(LIBRARY)
    names = {name for line in settings(unit, "CapabilityBoundingSet") for name in line.split()}
    kept = {_CAPABILITIES[name] for name in names}
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for number in set(range(last + 1)) - kept:
        assert libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_ERRNO | errno.EPERM))
    for name in sorted(allowed(unit)):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else it is of another architecture
            assert seccomp.seccomp_rule_add_array(context, _ALLOW, number, 0, None) == 0, name
    assert seccomp.seccomp_load(context) == 0


if __name__ == "__main__":
    confine(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
