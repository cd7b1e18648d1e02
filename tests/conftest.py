# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test needs: the checkout as a collection, vportd on sys.path, and the length of loops.

A helper of several tests is imported by its full name: `from tests.unit.vportd.helpers import ...`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
COLLECTIONS = ROOT / "build" / "collections"
LINK = COLLECTIONS / "ansible_collections" / "iovlab" / "storage"

if not LINK.is_symlink():
    LINK.parent.mkdir(parents=True, exist_ok=True)
    LINK.symlink_to(Path("../../../.."))

sys.path[:0] = [str(COLLECTIONS), str(ROOT / "roles" / "vportd" / "files")]

SOAK = int(os.environ.get("IOVLAB_SOAK", "1"))

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / "build" / "hypothesis"))
settings.register_profile("iovlab", max_examples=100 * SOAK, deadline=None)
settings.load_profile("iovlab")


@pytest.fixture(scope="session")
def soak() -> int:
    """How many times longer than usual a loop should run: 1, or what `make soak` says."""
    return SOAK


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return ROOT
