# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.fuzz ring|protocol SECONDS``: atheris chooses the inputs of tests/unit/vportd/test_properties.py by
what they reach in vportd. Inputs of note stay in build/fuzz; one that fails is shown as the values it stands for, to
become a test.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "roles/vportd/files"))

import atheris  # noqa: E402
from hypothesis import given  # noqa: E402

with atheris.instrument_imports(include=["vportd"]):
    from tests.unit.vportd import test_properties as properties
    from vportd.storage import FileStorage


def main() -> None:
    """Fuzz until the time is over; atheris ends the process, with status 0 when nothing was found."""
    name, seconds = sys.argv[1:]
    corpus = ROOT / "build/fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as file:
        file.truncate(properties.STORAGE)
        storage = FileStorage(os.dup(file.fileno()))

    @given(**properties.RING)
    def ring(**case: object) -> None:
        properties.ring_stands(storage, **case)

    target: dict[str, Any] = {
        "ring": ring,
        "protocol": properties.test_a_connection_of_any_messages_ends_at_most_and_keeps_no_descriptor,
    }
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={corpus}-failed-",
        "-max_len=4096",
        "-len_control=0",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], target[name].hypothesis.fuzz_one_input)
    atheris.Fuzz()


main()
