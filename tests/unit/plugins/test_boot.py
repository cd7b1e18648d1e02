# SPDX-License-Identifier: GPL-3.0-or-later
"""VFs over a reboot: what sriov_vf keeps, and the program that makes them again from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _boot, _keep, _kept
from ansible_collections.iovlab.storage.plugins.module_utils._sriov import Request
from tests.unit.plugins.machine import PF, Machine
from tests.unit.plugins.runner import Modules

VF0 = "0000:01:00.1"


def boot(machine: Machine, timeout: float = 1) -> int:
    return _boot.main(machine.host, str(machine.root / "no-vportd"), timeout)


def shown(modules: Modules) -> list[dict[str, Any]]:
    """The VFs, without the names that the kernel gives anew."""
    (adapter,) = modules.sriov_vf_info(pf=PF)["adapters"]
    return [
        {key: value for key, value in vf.items() if key not in ("controller", "namespaces")} for vf in adapter["vfs"]
    ]


def kept_files(machine: Machine) -> list[str]:
    tops = (machine.root / top for top in ("etc", "usr"))
    return sorted(f"/{path.relative_to(machine.root)}" for top in tops for path in top.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("driver", ["nvme", "vfio-pci", "none"])
def test_vfs_come_back_as_they_were(
    machine: Machine, modules: Modules, capsys: pytest.CaptureFixture[str], driver: str
) -> None:
    machine.adapter.automatic.clear()
    modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=3, queues=2, driver=driver, persistent=True)
    before = shown(modules)
    machine.reboot()
    assert shown(modules) == []

    assert boot(machine) == 0
    assert re.fullmatch(rf"{PF}: its 3 VFs are back after \d\.\d s in \d+ steps\n", capsys.readouterr().out)

    assert shown(modules) == before
    assert machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "1"
    assert not modules.sriov_vf(pf=PF, count=3, queues=2, driver=driver, persistent=True)["changed"]


def test_an_even_share_stays_what_it_was(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    content = json.loads((machine.root / f"etc/iovlab/adapters/{PF}.json").read_text())
    assert content["vfs"] == {"count": 2, "queues": 2, "interrupts": 2, "driver": "nvme", "namespaces": None}


def test_the_file_in_the_documentation_is_one_that_is_written(machine: Machine, checkout: Path) -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```$", (checkout / "docs/boot.md").read_text(), re.DOTALL | re.MULTILINE)
    path = machine.root / _kept.path_of(PF)[1:]
    path.parent.mkdir(parents=True)
    path.write_text(shown)
    kept = _kept.load(machine.host, _kept.path_of(PF))
    assert kept is not None
    assert kept.text() == shown
    assert json.loads(shown)["pf"] == PF


def test_the_diff_shows_the_file(machine: Machine, modules: Modules) -> None:
    result = modules.sriov_vf(pf=PF, count=1, persistent=True, check=True)
    path = f"/etc/iovlab/adapters/{PF}.json"
    assert result["diff"]["before"]["boot"][path] is None
    assert json.loads(result["diff"]["after"]["boot"][path])["vfs"]["count"] == 1
    assert f"write {path}" in result["steps"]
    assert kept_files(machine) == []


def test_without_vfs_the_host_is_left_as_it_was_found(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    assert kept_files(machine) == sorted([_keep.PROGRAM, _keep.UNIT, _keep.ENABLED, _kept.path_of(PF)])

    modules.settles("sriov_vf", machine.fingerprint, pf=PF, state="absent")

    assert kept_files(machine) == []
    assert not (machine.root / "etc/iovlab").exists()


def test_vfs_that_are_no_longer_persistent_stay_until_the_reboot(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2)
    assert len(result["vfs"]) == 2
    assert kept_files(machine) == []


def test_another_adapter_keeps_the_program(machine: Machine, modules: Modules) -> None:
    other = machine.root / "etc/iovlab/adapters/0000:05:00.0.json"
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    shutil.copy(machine.root / f"etc/iovlab/adapters/{PF}.json", other)
    modules.settles("sriov_vf", machine.fingerprint, pf=PF, state="absent")
    assert kept_files(machine) == sorted([_keep.PROGRAM, _keep.UNIT, _keep.ENABLED, _kept.path_of("0000:05:00.0")])


def test_the_file_of_an_adapter_that_was_taken_out_can_be_removed(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    machine.reboot()
    shutil.rmtree(machine.sys / f"bus/pci/devices/{PF}")
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, state="absent")
    assert "it has no VFs" in str(result["warnings"])
    assert kept_files(machine) == []


@pytest.mark.parametrize("path", [_keep.PROGRAM, _keep.UNIT, _kept.path_of(PF)])
def test_what_somebody_changed_is_shown_and_repaired(machine: Machine, modules: Modules, path: str) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    (machine.root / path[1:]).write_text("spoiled")
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, persistent=True)
    assert result["steps"] == [f"write {path}"]


def test_a_unit_that_was_disabled_is_enabled_again(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    (machine.root / _keep.ENABLED[1:]).unlink()
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, persistent=True)
    assert result["steps"] == ["have the host start iovlab-adapter.service when it boots"]


@pytest.mark.parametrize("number", range(4))
def test_killed_after_any_file_the_next_run_completes_it(
    machine: Machine, modules: Modules, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    done: list[Any] = []

    def die(step: Any) -> Any:
        def action(**arguments: Any) -> None:
            if len(done) == number:
                raise SystemExit("killed")
            done.append(arguments)
            step(**arguments)

        return action

    actions = _keep.actions
    monkeypatch.setattr(_keep, "actions", lambda host: {verb: die(step) for verb, step in actions(host).items()})
    with pytest.raises(json.JSONDecodeError):
        modules.sriov_vf(pf=PF, count=2, persistent=True)
    monkeypatch.setattr(_keep, "actions", actions)
    assert not (machine.root / _kept.path_of(PF)[1:]).exists()

    modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, persistent=True)
    machine.reboot()
    assert boot(machine) == 0
    assert len(shown(modules)) == 2


def test_a_failed_change_keeps_what_was_kept(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    machine.adapter.broken_probe = {"0000:01:00.3"}
    modules.refused("sriov_vf", pf=PF, count=3, allow_recreate=True, persistent=True, timeout=1)
    machine.adapter.broken_probe = set()
    machine.reboot()
    assert boot(machine) == 0
    assert len(shown(modules)) == 2


def test_a_vf_for_a_virtual_machine_is_isolated_again(
    machine: Machine, modules: Modules, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.adapter.automatic.clear()
    modules.sriov_vf(pf=PF, count=1, driver="vfio-pci", persistent=True)
    machine.reboot()
    machine.adapter.automatic.add(1)
    assert boot(machine) == 1
    assert f"VF {VF0} shows namespaces [1] instead of []" in capsys.readouterr().out
    assert shown(modules) == []


def test_info_shows_where_an_adapter_is_not_what_it_would_be_after_a_boot(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    (adapter,) = modules.sriov_vf_info()["adapters"]
    assert adapter["persistent"] == {
        "count": 2, "queues": 2, "interrupts": 2, "driver": "nvme", "namespaces": None
    }  # fmt: skip
    assert adapter["drift"] == []
    machine.adapter.virt_mgmt({"-c": 2, "-a": 7})
    (adapter,) = modules.sriov_vf_info()["adapters"]
    assert "bring controller 2 of VF 1 online" in adapter["drift"]
    _another_adapter(machine)
    assert "serial number SERIAL-01" in modules.sriov_vf_info()["adapters"][0]["drift"][0]


def test_the_program_waits_for_the_controller(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    machine.reboot()
    state = f"bus/pci/devices/{PF}/nvme/nvme0/state"
    machine.write(state, "connecting")
    threading.Timer(0.2, machine.write, (state, "live")).start()
    assert boot(machine, timeout=30) == 0
    assert len(shown(modules)) == 2


def _no_controller(machine: Machine) -> None:
    machine.write(f"bus/pci/devices/{PF}/nvme/nvme0/state", "dead")


def _another_adapter(machine: Machine) -> None:
    machine.write(f"bus/pci/devices/{PF}/nvme/nvme0/serial", "OTHER")


def _fewer_vfs(machine: Machine) -> None:
    machine.write(f"bus/pci/devices/{PF}/sriov_totalvfs", "1")


def _no_file(machine: Machine) -> None:
    (machine.root / _kept.path_of(PF)[1:]).write_text('{"version": 7}')


def _stuck(machine: Machine) -> None:
    machine.adapter.stuck = True


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_controller, "did not come up within 1 s"),
        (_another_adapter, "serial number OTHER, not SERIAL-01"),
        (_fewer_vfs, "2 VFs are more than the 1"),
        (_no_file, "version 7"),
        (_stuck, "did not come back"),
    ],
)
def test_what_cannot_be_restored_is_said_in_one_line(
    machine: Machine, modules: Modules, capsys: pytest.CaptureFixture[str], spoil: Any, said: str
) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    machine.reboot()
    spoil(machine)
    assert boot(machine) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(_kept.path_of(PF))
    assert said in line


def test_one_adapter_that_fails_does_not_keep_others_from_coming_back(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    (machine.root / "etc/iovlab/adapters/0000:00:09.0.json").write_text("{")
    machine.reboot()
    assert boot(machine) == 1
    assert len(shown(modules)) == 2


def _another_count(machine: Machine) -> None:
    kept = _kept.Kept(PF, "SERIAL-01", Request(count=3, queues=2, interrupts=2, driver="nvme"))
    _keep.write(machine.host, _kept.path_of(PF), kept.text().encode())


def _offline(machine: Machine) -> None:
    machine.adapter.virt_mgmt({"-c": 1, "-a": 7})


@pytest.mark.parametrize("spoil", [_another_count, _offline])
def test_vfs_in_use_are_left_alone(
    machine: Machine, modules: Modules, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    spoil(machine)
    machine.process(77, "dd", ["dd"], [machine.dev / "nvme1n1"])
    before = machine.fingerprint()
    assert boot(machine) == 1
    assert f"VF {VF0} is in use by process 77 (dd)" in capsys.readouterr().out
    assert machine.fingerprint() == before


def test_another_number_of_vfs_is_left_alone_even_if_nobody_uses_them(
    machine: Machine, modules: Modules, capsys: pytest.CaptureFixture[str]
) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    _another_count(machine)
    before = machine.fingerprint()
    assert boot(machine) == 1
    assert "has 2 VFs" in capsys.readouterr().out
    assert machine.fingerprint() == before


def test_run_by_hand_it_says_that_all_is_well(
    machine: Machine, modules: Modules, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules.sriov_vf(pf=PF, count=2, persistent=True)
    before = machine.fingerprint()
    assert boot(machine) == 0
    assert capsys.readouterr().out == f"{PF}: its 2 VFs are as they should be\n"
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    boot(machine)
    assert capsys.readouterr().out.startswith(f"<6>{PF}")
    assert machine.fingerprint() == before


def test_the_archive_runs_with_python_alone(tmp_path: Path) -> None:
    """It finds every part that it imports, in an interpreter that sees nothing else, and nothing to do."""
    archive = tmp_path / "program.pyz"
    archive.write_bytes(_keep.program())
    environment = {"PATH": os.environ["PATH"]}
    if list(Path("/etc/iovlab/adapters").glob("*.json")):
        pytest.skip("this machine has adapters of its own")
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-I", "-S", str(archive)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_archive_is_the_same_each_time() -> None:
    assert _keep.program() == _keep.program()


def test_the_unit_comes_before_the_engine_and_does_not_hold_it_up(checkout: Path) -> None:
    assert "Before=vportd.service" in _keep.UNIT_TEXT
    engine = (checkout / "roles/vportd/files/vportd.service").read_text()
    assert "iovlab-adapter" not in engine, "vportd must not require it: without VFs it serves vports on the PF"
