# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory ordering, and an atomic OR, on memory shared with another process.

``fence`` orders every earlier store before every later load. On x86 an uncontended lock does (its locked instruction
is a full barrier) and costs the least; elsewhere it is the C library function ``atomic_thread_fence`` of libatomic.

``or_byte`` is ``__atomic_fetch_or_1`` of libatomic.so.1. Without that library the kernel does it: ``FUTEX_WAKE_OP``
with ``FUTEX_OP_OR`` changes an aligned 32-bit word of shared memory atomically with respect to any other atomic
operation on it, one bit a call (futex(2)).
"""

import _thread
import ctypes
import os

_SEQ_CST = 5
_FUTEX_WAKE_OP = 5
_FUTEX_OP_OR = 2
_FUTEX_OP_OPARG_SHIFT = 8
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221}

_machine = os.uname().machine
_libc = ctypes.CDLL(None, use_errno=True)


def _load_libatomic() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libatomic.so.1")
    except OSError:
        return None


_libatomic = _load_libatomic()


def _or_byte_by_futex(address: int, mask: int) -> None:
    """OR ``mask`` into the byte at ``address`` by FUTEX_WAKE_OP; nobody waits on that word, so the wake part does
    nothing.
    """
    word = address & ~3
    shift = (address & 3) * 8
    for bit in range(8):
        if mask & (1 << bit):
            operation = ((_FUTEX_OP_OR | _FUTEX_OP_OPARG_SHIFT) << 28) | ((shift + bit) << 12)
            if operation >= 1 << 31:
                operation -= 1 << 32
            number = ctypes.c_long(_SYS_FUTEX[_machine])
            done = _libc.syscall(
                number,
                ctypes.c_void_p(word),
                ctypes.c_int(_FUTEX_WAKE_OP),
                ctypes.c_int(0),
                ctypes.c_long(0),
                ctypes.c_void_p(word),
                ctypes.c_int(operation),
            )
            if done < 0:
                raise OSError(ctypes.get_errno(), "futex cannot set a bit of the dirty log")


def _or_byte_by_libatomic() -> "ctypes._NamedFuncPointer":
    assert _libatomic is not None
    function = _libatomic.__atomic_fetch_or_1
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint8, ctypes.c_int]
    function.restype = ctypes.c_uint8
    return function


if _libatomic is not None:
    _fetch_or_1 = _or_byte_by_libatomic()

    def or_byte(address: int, mask: int) -> None:
        """OR ``mask`` (0..255) into the byte at the host ``address``, atomically."""
        _fetch_or_1(address, mask, _SEQ_CST)
else:
    or_byte = _or_byte_by_futex


if _machine in ("x86_64", "i686") or _libatomic is None:
    _lock = _thread.allocate_lock()

    def fence() -> None:
        """Order all stores before it against all loads after it."""
        with _lock:
            pass
else:
    _thread_fence = _libatomic.atomic_thread_fence

    def fence() -> None:
        """Order all stores before it against all loads after it."""
        _thread_fence(_SEQ_CST)
