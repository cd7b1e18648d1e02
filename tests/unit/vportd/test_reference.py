# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation says what the code does."""

import subprocess
import sys


def test_the_rpc_reference_is_what_the_code_says(checkout):
    command = [sys.executable, str(checkout / "tools/rpc_reference.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
