# SPDX-License-Identifier: GPL-3.0-or-later
"""One line a message on standard error, with the priority prefix of sd-daemon(3)."""

import os

_who = "vportd"


def name_process(who: str) -> None:
    """Set the words every line of this process starts with."""
    global _who
    _who = who


def _line(priority: int, text: str) -> None:
    line = f"<{priority}>{_who}: {' '.join(text.split())}\n".encode(errors="backslashreplace")
    try:
        os.write(2, line)
    except OSError:  # nowhere left to say it
        return


def info(text: str) -> None:
    """Write a line of priority informational."""
    _line(6, text)


def warning(text: str) -> None:
    """Write a line of priority warning."""
    _line(4, text)


def error(text: str) -> None:
    """Write a line of priority error."""
    _line(3, text)
