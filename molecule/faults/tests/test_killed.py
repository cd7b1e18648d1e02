# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook itself is killed at each of its steps; `recover` brings the migration to one of its two ends."""

import json
import re
from pathlib import Path

import pytest

from tests.lab.driver import Lab, Run, other, play, refused, wait_until
from tests.lab.load import Load

VM = "tenant1"


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("prepare the destination", marks=pytest.mark.long),
        pytest.param("switch to the PF", marks=pytest.mark.long),
        "live migration",
        "switch to a VF",
        pytest.param("release the source", marks=pytest.mark.long),
    ],
)
def test_killed_in_the_phase(lab: Lab, phase: str, written: Load) -> None:
    source = lab.place(VM)
    run = Run("migrate", vm=VM, to=other(source))
    run.wait_for(f"Phase: {phase}")
    if phase == "live migration":
        wait_until("migration under way", lambda: lab.job(VM, source), 120)
    run.kill()
    if phase == "live migration":
        play("migrate_abort", vm=VM)
        wait_until("end of the migration", lambda: not lab.job(VM, source), 120)
    if phase == "switch to a VF":  # run again, it cannot do better
        assert f"make recover vm={VM}" in refused("migrate", vm=VM, to=other(source))
    recovered = re.search(r"the report is (\S+)\.html", play("recover", vm=VM))
    assert recovered, "a killed run has no report"
    report = json.loads(Path(f"{recovered[1]}.json").read_text(encoding="utf-8"))
    assert f'the run was killed in the phase "{phase}"' in report["errors"]
    place = lab.settled(VM)
    assert report["placement"] == {place: "running"}
    if phase in ("switch to a VF", "release the source"):
        assert place == other(source)
    elif phase != "live migration":  # there the abort and the end may race, and either end is right
        assert place == source
    if phase == "switch to a VF":
        assert "nothing is left of a migration" in play("recover", vm=VM)


@pytest.mark.long
def test_recover_is_killed_too(lab: Lab, written: Load) -> None:
    source = lab.place(VM)
    run = Run("migrate", vm=VM, to=other(source))
    run.wait_for("Phase: switch to a VF")
    run.kill()
    for task in ("Unbind the vport", "Delete the vport"):
        again = Run("recover", vm=VM)
        again.wait_for(f"TASK [iovlab.storage.migration : {task}]")
        again.kill()
    assert "the report is" in play("recover", vm=VM)
    assert lab.settled(VM) == other(source)


@pytest.mark.long
@pytest.mark.parametrize("task", ["Wait until it is off", "Start the VM on the destination"])
def test_killed_while_it_is_shut_down_to_move(lab: Lab, task: str) -> None:
    """It is in its two halves nowhere: `recover` starts it in one place."""
    source = lab.place(VM)
    run = Run("migrate", vm=VM, to=other(source), migration_mode="offline")
    run.wait_for(f"TASK [iovlab.storage.migration : {task}]")
    run.kill()
    wait_until("end of it on the source", lambda: lab.domains(source)[VM] == "shut off", 120)
    play("recover", vm=VM)
    place = lab.settled(VM)
    assert place == source or task == "Start the VM on the destination"  # where it may have been started all the same
