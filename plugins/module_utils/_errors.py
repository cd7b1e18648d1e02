# SPDX-License-Identifier: GPL-3.0-or-later
"""The one tree of errors of the collection's modules.

Every message is one line for the person who gets it: what is wrong, with the value; what to do.
"""

from __future__ import annotations


class IovlabError(Exception):
    """A module cannot go on. ``str()`` is one clear line; ``details`` goes into the module's result."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(" ".join(message.split()))
        self.details = details


class Refused(IovlabError):
    """Found before anything was touched."""


class Missing(Refused):
    """What the module builds on is not there: a pool, a vdisk, a vport. An earlier task may be meant to make it."""


class CommandFailed(IovlabError):
    """A program that the module needs failed, timed out or is not installed."""


class SysfsError(IovlabError):
    """The kernel refused a write to sysfs, or did not answer it in time."""


class TimedOut(IovlabError):
    """Something that had to come did not come before the deadline."""


class StepFailed(IovlabError):
    """A step failed while changes were being made; the message says what is left."""


class VportdDown(IovlabError):
    """vportd does not answer on its socket."""


class VportdError(IovlabError):
    """vportd answered with an error. ``reason`` is its NAME, such as ``STALE_GENERATION``."""

    def __init__(self, message: str, reason: str, **details: object) -> None:
        super().__init__(message, **details)
        self.reason = reason
