# SPDX-License-Identifier: GPL-3.0-or-later
"""The one tree of exceptions of the engine."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vportd.lease_record import Record


class VportdError(Exception):
    """Anything the engine raises on purpose; ``str()`` is one clear line."""


class MemoryFault(VportdError):
    """A guest address outside the memory that the front end has shared."""


class RingBroken(VportdError):
    """A ring whose driver violates the standard so that it cannot go on; the queue takes nothing more until it is
    started anew.
    """


class StorageError(VportdError):
    """The storage cannot be opened, or is not what it has to be."""


class ChannelClosed(VportdError):
    """The other end of a control channel is gone."""


class WorkerDied(VportdError):
    """A worker ended, or was ended, while an answer from it was awaited."""


class WorkerRefused(VportdError):
    """A worker answered a command with an error."""


class ProtocolError(VportdError):
    """A front end broke the vhost-user protocol; its connection is closed."""


class Refused(VportdError):
    """A message that is right, and that the vport does not do now: answered with a non-zero acknowledgement."""


class ConfigError(VportdError):
    """The configuration file is wrong."""


class StateError(VportdError):
    """A state file cannot be read back."""


class LeaseDamaged(VportdError):
    """The block of a lease holds what this engine did not write."""


class LeaseTooLate(VportdError):
    """This host was so slow that the write of a lease was not begun."""


class LeaseHeld(VportdError):
    """The lease is another's; ``record`` says whose."""

    def __init__(self, message: str, record: "Record") -> None:
        super().__init__(message)
        self.record = record


class LeaseLost(LeaseHeld):
    """A lease that this host had is another's."""


class RpcError(VportdError):
    """A refusal with the name, number and data that the caller gets.

    ``reason`` is one of ``CODES``; ``data`` is merged into the ``data`` of the JSON-RPC error.
    """

    CODES = {
        "NOT_FOUND": -32001,
        "EXISTS": -32002,
        "IN_USE": -32003,
        "STALE_GENERATION": -32004,
        "INVALID": -32005,
        "TIMEOUT": -32006,
        "BAD_STATE": -32007,
        "STORAGE": -32008,
        "REFUSED": -32009,
    }

    def __init__(self, reason: str, message: str, **data: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = self.CODES[reason]
        self.data: dict[str, object] = {"reason": reason, **data}
