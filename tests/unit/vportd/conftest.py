# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of vportd: an engine process, vports, front ends. Works without the conftest of the
directories above.
"""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for directory in (HERE, HERE.parents[2] / "roles/vportd/files"):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))

from tests.unit.vportd.engine_process import EngineProcess  # noqa: E402
from tests.unit.vportd.frontend import FrontEnd  # noqa: E402

MIB = 1 << 20
# Three extents out of order on the storage, the second read-only, and a hole of 1 MiB before the last
EXTENTS = [[0, 8 * MIB, MIB], [MIB, 2 * MIB, MIB, "ro"], [2 * MIB, 5 * MIB, MIB], [4 * MIB, 16 * MIB, 2 * MIB]]


@pytest.fixture
def make_engine(tmp_path_factory):
    """Start engines: make_engine(latency=...) and the like."""
    engines = []

    def make(start=True, **adapter):
        engine = EngineProcess(tmp_path_factory.mktemp("engine"), **adapter)
        engines.append(engine)
        return engine.start() if start else engine

    yield make
    for engine in engines:
        engine.stop()
        text = engine.log.read_text() if engine.log.exists() else ""
        assert "Traceback" not in text, text
        assert "never retrieved" not in text, text


@pytest.fixture
def engine(make_engine):
    return make_engine()


@pytest.fixture
def make_vport(make_engine):
    """Make a vport with the usual mapping on an engine: make_vport(engine, bind=VF0)."""

    def make(engine, name="vp0", luns=None, bind=None, path="vf"):
        rpc = engine.rpc()
        rpc.vport_create(vport=name)
        luns = luns or [{"lun": 0, "vdisk": f"{name}-root", "extents": EXTENTS}]
        rpc.mapping_set(vport=name, expected_generation=0, luns=luns)
        if bind:
            rpc.vport_bind(vport=name, vf=bind, path=path)
        return rpc

    return make


@pytest.fixture
def front_end():
    """Connect front ends: front_end(path, ...); they are closed at the end."""
    found = []

    def make(path, **how):
        front = FrontEnd(path, **how)
        found.append(front)
        return front

    yield make
    for front in found:
        front.close()
