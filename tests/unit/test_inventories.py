# SPDX-License-Identifier: GPL-3.0-or-later
"""The example inventories are what the roles want."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("adapters", "pools", "vdisks", "tenants")


def hosts(inventory: str) -> dict[str, dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", inventory, "--list"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "WARNING" not in done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["_meta"]["hostvars"]
    return found


@pytest.mark.parametrize("inventory", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "inventories").iterdir()))
def test_an_inventory_fits_the_role_that_reads_it(inventory: str) -> None:
    spec = yaml.safe_load((ROOT / "roles/provision/meta/argument_specs.yml").read_text(encoding="utf-8"))
    options = spec["argument_specs"]["main"]["options"]
    validator = ArgumentSpecValidator({f"provision_{name}": options[f"provision_{name}"] for name in VARIABLES})
    found = hosts(inventory)
    assert len(found) > 1
    for variables in found.values():
        given = {f"provision_{name}": variables[name] for name in VARIABLES}
        assert validator.validate(given).error_messages == []
        assert {pool["manager"] for pool in variables["pools"]} <= set(found)
        assert {tenant["hypervisor"] for tenant in variables["tenants"]} <= set(found)
        vdisks = [vdisk["name"] for vdisk in variables["vdisks"]]
        used = [lun["vdisk"] for tenant in variables["tenants"] for lun in tenant["luns"]]
        assert sorted(used) == sorted(vdisks), "each vdisk belongs to one VM"
