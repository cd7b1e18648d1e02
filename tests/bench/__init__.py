# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: vportd against the C peer, in one run, as ratios."""

import sys
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parents[2] / "roles/vportd/files")
)  # the load orders memory as vportd does
