# SPDX-License-Identifier: GPL-3.0-or-later
"""The three ways to provision one adapter that are measured, each as tasks: one call of adapter_config, loops over this
collection's single modules, and loops over ansible.builtin.shell by somebody who knows what they do.

Vdisks have 4 MiB, one extent each. That the ways end alike is checked after each run, see provision.py.
"""

from dataclasses import dataclass
from typing import Any

from tests.unit.plugins.machine import PF

MODULE, SINGLE, SHELL = "adapter_config", "single modules", "shell"
SIDES = (MODULE, SINGLE, SHELL)
Task = dict[str, Any]
NVME = "/dev/nvme0"
DEVICE = "/dev/nvme0n1"
LVM = f"--devices {DEVICE} --config 'global{{activation=0}}'"
CREATE = f"lvcreate {LVM} --yes --type linear --activate n --zero n --wipesignatures n"
QUEUES = 2


@dataclass(frozen=True)
class Case:
    """What one adapter is to have; LUNs of vports are the vdisks in turn, so that each is mapped once."""

    vfs: int
    vdisks: int
    vports: int = 0

    def __str__(self) -> str:
        parts = [(self.vfs, "VFs"), (self.vdisks, "vdisks"), (self.vports, "vports")]
        return ", ".join(f"{count} {what}" for count, what in parts if count)

    def names(self) -> list[str]:
        return [f"d{number}" for number in range(self.vdisks)]

    def wanted(self) -> list[dict[str, Any]]:
        """The vports with their LUNs and VFs."""
        found = []
        for number in range(self.vports):
            luns = [{"lun": lun, "vdisk": name} for lun, name in enumerate(self.names()[number :: self.vports])]
            found.append({"name": f"v{number}", "luns": luns, "vf": vf_address(number)})
        return found


def vf_address(index: int) -> str:
    return f"{PF[:8]}{(index + 1) >> 3:02x}.{(index + 1) & 7}"


def tasks(side: str, case: Case) -> list[Task]:
    return {MODULE: _module, SINGLE: _single, SHELL: _shell}[side](case)


def _module(case: Case) -> list[Task]:
    options: dict[str, Any] = {"pf": PF}
    if case.vfs:
        options["vfs"] = {"count": case.vfs, "queues": QUEUES, "interrupts": QUEUES}
    if case.vdisks:
        options["pool"] = {"name": "san"}
        options["vdisks"] = [{"name": name, "size": "4MiB"} for name in case.names()]
    if case.vports:
        options["vports"] = case.wanted()
    return [{"name": "The whole adapter", "iovlab.storage.adapter_config": options}]


def _single(case: Case) -> list[Task]:
    found: list[Task] = []
    if case.vfs:
        vfs = {"pf": PF, "count": case.vfs, "queues": QUEUES, "interrupts": QUEUES}
        found.append({"name": "VFs", "iovlab.storage.sriov_vf": vfs})
    if case.vdisks:
        found.append({"name": "Pool", "iovlab.storage.pool": {"name": "san", "adapter": PF}})
        vdisk = {"name": "{{ item }}", "pool": "san", "size": "4MiB", "adapter": PF}
        # In check mode the pool is not there yet.
        vdisk["planned"] = "{{ ansible_check_mode }}"
        found.append({"name": "Vdisks", "iovlab.storage.vdisk": vdisk, "loop": case.names()})
    if case.vports:
        assumed = {"planned": "{{ ansible_check_mode }}"}
        mapping = {"vport": "{{ item.name }}", "pool": "san", "luns": "{{ item.luns }}"}
        binding = {"vport": "{{ item.name }}", "vf": "{{ item.vf }}"}
        for name, module, options in (
            ("Vports", "vport", {"name": "{{ item.name }}", "adapter": PF}),
            ("Mapping", "adapter_mapping", mapping),
            ("Binding", "vport_binding", binding),
        ):
            task = {"name": name, f"iovlab.storage.{module}": options | assumed, "loop": case.wanted()}
            found.append(task | {"loop_control": {"label": "{{ item.name }}"}})
    return found


def _shell(case: Case) -> list[Task]:
    found: list[Task] = []
    if case.vfs:
        found.append(_script("VFs", _VFS.format(count=case.vfs)))
        vfs = [{"vf": vf_address(number), "cntlid": number + 1} for number in range(case.vfs)]
        found.append(_script("Each VF", _VF, vfs))
        found.append(_script("Probe again", _AUTOPROBE))
    if case.vdisks:
        found.append(_script("Pool", _POOL))
        found.append(_script("Vdisks", _VDISK, [{"name": name, "lease": n} for n, name in enumerate(case.names())]))
    if case.vports:
        leases = {name: number for number, name in enumerate(case.names())}
        wanted = [
            vport | {"luns": [lun | {"lease": leases[lun["vdisk"]]} for lun in vport["luns"]]}
            for vport in case.wanted()
        ]
        found.append(_script("Vports", _VPORT, wanted))
    return found


def _script(name: str, script: str, loop: list[dict[str, Any]] | None = None) -> Task:
    task: Task = {
        "name": name,
        "ansible.builtin.shell": script,
        "register": "said",
        "changed_when": "'changed' in said.stdout",
    }
    return task if loop is None else task | {"loop": loop, "loop_control": {"label": "{{ item }}"}}


_VFS = f"""\
set -e
cd /sys/bus/pci/devices/{PF}
if [ "$(cat sriov_numvfs)" = {{count}} ]; then exit 0; fi
echo 0 > sriov_drivers_autoprobe
echo {{count}} > sriov_numvfs
echo changed
"""
_VF = f"""\
set -e
cd /sys/bus/pci/devices/{{{{ item.vf }}}}
if [ -e driver ]; then exit 0; fi
nvme virt-mgmt {NVME} -c {{{{ item.cntlid }}}} -a 7
nvme virt-mgmt {NVME} -c {{{{ item.cntlid }}}} -r 0 -n {QUEUES} -a 8
nvme virt-mgmt {NVME} -c {{{{ item.cntlid }}}} -r 1 -n {QUEUES} -a 8
nvme virt-mgmt {NVME} -c {{{{ item.cntlid }}}} -a 9
echo nvme > driver_override
echo {{{{ item.vf }}}} > /sys/bus/pci/drivers_probe
echo changed
"""
_AUTOPROBE = f"echo 1 > /sys/bus/pci/devices/{PF}/sriov_drivers_autoprobe"
_POOL = f"""\
set -e
if vgs {LVM} san > /dev/null 2>&1; then exit 0; fi
vgcreate {LVM} --yes --setautoactivation n --physicalextentsize 4m san {DEVICE}
{CREATE} --addtag iovlab.wiped=0 --size 4m --name iovlab_leases san
dd if=/dev/zero of={DEVICE} bs=1M seek=1 count=4 oflag=direct conv=fsync status=none
lvchange {LVM} --deltag iovlab.wiped=0 --addtag iovlab.wiped=4194304 san/iovlab_leases
echo changed
"""
_VDISK = f"""\
set -e
if lvs {LVM} san/{{{{ item.name }}}} > /dev/null 2>&1; then exit 0; fi
dd if=/dev/zero of={DEVICE} bs=4096 seek=$((256 + {{{{ item.lease }}}})) count=1 oflag=direct conv=fsync status=none
{CREATE} --addtag iovlab.wiped=0 --addtag iovlab.lease={{{{ item.lease }}}} --size 4m --name {{{{ item.name }}}} san
range=$(lvs {LVM} --noheadings -o seg_pe_ranges san/{{{{ item.name }}}})
first=${{range##*:}}
first=${{first%%-*}}
dd if=/dev/zero of={DEVICE} bs=1M seek=$((1 + 4 * first)) count=4 oflag=direct conv=fsync status=none
lvchange {LVM} --deltag iovlab.wiped=0 --addtag iovlab.wiped=4194304 san/{{{{ item.name }}}}
echo changed
"""
_VPORT = f"""\
set -e
if rpc vport_get '{{"vport": "{{{{ item.name }}}}"}}' > /dev/null 2>&1; then exit 0; fi
luns=
{{% for lun in item.luns %}}
range=$(lvs {LVM} --noheadings -o seg_pe_ranges san/{{{{ lun.vdisk }}}})
first=${{range##*:}}
first=${{first%%-*}}
lun='"lun": {{{{ lun.lun }}}}, "vdisk": "{{{{ lun.vdisk }}}}", "readonly": false'
luns="$luns, {{$lun, \\"extents\\": [[0, $((1048576 + 4194304 * first)), 4194304]],
  \\"lease\\": $((1048576 + 4096 * {{{{ lun.lease }}}}))}}"
{{% endfor %}}
rpc vport_create '{{"vport": "{{{{ item.name }}}}", "adapter": "{PF}"}}'
rpc mapping_set '{{"vport": "{{{{ item.name }}}}", "expected_generation": 0, "luns": ['"${{luns#, }}"']}}'
rpc vport_bind '{{"vport": "{{{{ item.name }}}}", "vf": "{{{{ item.vf }}}}", "path": "vf"}}'
echo changed
"""
