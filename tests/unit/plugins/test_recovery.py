# SPDX-License-Identifier: GPL-3.0-or-later
"""migration_recovery: from any mixture of what hypervisors say to one end, or a reason why a person has to decide."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.plugin_utils._recovery import migration_recovery

Host = dict[str, Any]


def domain(state: str = "running", job: bool = False) -> Host:
    return {"state": state, "active": state != "shut off", "job": job}


def vport(path: str = "vf", lease: str | None = None, **flags: Any) -> Host:
    luns = [{"lun": 0, "lease": {"state": lease, "owner_name": "hv"} if lease else None}]
    standard = {"fenced": False, "fence_on_stop": False, "incoming": False, "degraded": None}
    return {"vport": "t", "path": path, "luns": luns, **standard, **flags}


def host(domain: Host | None = None, vport: Host | None = None, reachable: bool = True, lost: bool = False) -> Host:
    return {"reachable": reachable, "lost": lost, "domain": domain, "vport": vport}


GONE = host(reachable=False)
LOST = host(reachable=False, lost=True)
EMPTY = host()


def verbs(plan: Host) -> list[tuple[str, str]]:
    return [(step["host"], step["verb"]) for step in plan["steps"]]


# What was killed when -> where the VM goes on, and what is done.
CASES: dict[str, tuple[Host, Host, str, list[tuple[str, str]]]] = {
    "nothing was begun": (host(domain(), vport()), EMPTY, "hv1", []),
    "while the destination was prepared": (
        host(domain(), vport()),
        host(None, vport("pf", incoming=True)),
        "hv1",
        [("hv2", "release")],
    ),
    "after the switch to the PF": (
        host(domain(), vport("pf", fence_on_stop=True)),
        host(None, vport("pf", incoming=True)),
        "hv1",
        [("hv2", "release"), ("hv1", "unfence"), ("hv1", "to_vf")],
    ),
    "while memory was copied, and libvirt has let go of it": (
        host(domain(), vport("pf", "held", fence_on_stop=True)),
        host(domain("paused"), vport("pf", "free", incoming=True)),
        "hv1",
        [("hv2", "destroy"), ("hv2", "release"), ("hv1", "unfence"), ("hv2", "undefine"), ("hv1", "to_vf")],
    ),
    "the VM stopped on the source and did not start on the destination": (
        host(domain("paused"), vport("pf", "handed", fenced=True)),
        host(domain("paused"), vport("pf", "free", incoming=True)),
        "hv1",
        [
            ("hv2", "destroy"),
            ("hv2", "release"),
            ("hv1", "unfence"),
            ("hv1", "resume"),
            ("hv2", "undefine"),
            ("hv1", "to_vf"),
        ],
    ),
    "the VM runs on the destination, its paused copy is left on the source": (
        host(domain("paused"), vport("pf", "free", fenced=True)),
        host(domain(), vport("pf", "held")),
        "hv2",
        [("hv1", "destroy"), ("hv1", "undefine"), ("hv1", "release"), ("hv2", "to_vf")],
    ),
    "before the switch to the destination's VF": (
        host(domain("shut off"), vport("pf", fenced=True)),
        host(domain(), vport("pf")),
        "hv2",
        [("hv1", "undefine"), ("hv1", "release"), ("hv2", "to_vf")],
    ),
    "before the source was released": (
        host(None, vport("pf", fenced=True)),
        host(domain(), vport("vf")),
        "hv2",
        [("hv1", "release")],
    ),
    "the source was powered off and has booted again": (
        host(domain("shut off"), vport("pf", fence_on_stop=True)),
        host(None, vport("pf", incoming=True)),
        "hv1",
        [("hv2", "release"), ("hv1", "unfence"), ("hv1", "start"), ("hv1", "to_vf")],
    ),
    "the source is lost, the destination had been prepared": (
        LOST,
        host(None, vport("pf", "free", incoming=True)),
        "hv2",
        [("hv2", "vport"), ("hv2", "start"), ("hv2", "to_vf")],
    ),
    "the source is lost, nothing is on the other": (
        LOST,
        EMPTY,
        "hv2",
        [("hv2", "vport"), ("hv2", "start"), ("hv2", "to_vf")],
    ),
    "the source lost its power, half a copy is on the destination": (
        LOST,
        host(domain("paused"), vport("pf", "free", incoming=True)),
        "hv2",
        [("hv2", "destroy"), ("hv2", "vport"), ("hv2", "start"), ("hv2", "to_vf")],
    ),
    "the source has booted again, half a copy is still on the destination": (
        host(domain("shut off"), vport("pf", fence_on_stop=True)),
        host(domain("paused"), vport("pf", "free", incoming=True)),
        "hv1",
        [
            ("hv2", "destroy"),
            ("hv2", "release"),
            ("hv1", "unfence"),
            ("hv1", "start"),
            ("hv2", "undefine"),
            ("hv1", "to_vf"),
        ],
    ),
    "the destination is powered off, the VM never left": (
        host(domain(), vport("pf", "held", fence_on_stop=True)),
        GONE,
        "hv1",
        [("hv1", "unfence"), ("hv1", "to_vf")],
    ),
    "both stopped and whole, the lease tells": (
        host(domain("paused"), vport("pf", "free", fenced=True)),
        host(domain("paused"), vport("pf", "held")),
        "hv2",
        [("hv1", "destroy"), ("hv2", "resume"), ("hv1", "undefine"), ("hv1", "release"), ("hv2", "to_vf")],
    ),
    "it was shut down, and no migration was begun": (host(domain("shut off"), vport()), EMPTY, "hv1", []),
    "a VF worker had died": (
        host(domain(), vport("vf", degraded="its VF worker died")),
        EMPTY,
        "hv1",
        [("hv1", "to_vf")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_half_has_one_end(case: str) -> None:
    one, two, end, steps = CASES[case]
    plan = migration_recovery({"hv1": one, "hv2": two}, "t")
    assert plan["ok"], plan["message"]
    assert (plan["end"], verbs(plan)) == (end, steps)


REFUSED: dict[str, tuple[Host, Host, str]] = {
    "it runs twice": (host(domain(), vport()), host(domain(), vport()), "at once; decide"),
    "it runs twice, and one has the lease": (
        host(domain(), vport("pf", "free", fenced=True)),
        host(domain(), vport("pf", "held")),
        "held by hv2",
    ),
    "a migration is under way": (host(domain(job=True), vport()), EMPTY, "abort it first"),
    "it may run where nobody can ask": (GONE, host(None, vport("pf", incoming=True)), "say that it is lost"),
    "a lost one answers": (host(domain(), vport(), lost=True), EMPTY, "yet it answers"),
    "fenced here, no lease, and the other is silent": (
        host(domain(), vport("pf", fenced=True)),
        GONE,
        "which cannot be asked",
    ),
    "half a copy is left, and nobody can ask the source": (
        GONE,
        host(domain("paused"), vport("pf", incoming=True)),
        "which cannot be asked",
    ),
    "a paused copy is left, and the source has just let go": (
        host(None, vport("pf", "free", fenced=True)),
        host(domain("paused"), vport("pf", incoming=True)),
        "had not come whole",
    ),
    "only an incomplete copy is left": (
        EMPTY,
        host(domain("paused"), vport("pf", incoming=True)),
        "had not come whole",
    ),
    "both stopped and whole, and no lease": (
        host(domain("paused"), vport("pf", fenced=True)),
        host(domain("paused"), vport("pf", fenced=True)),
        "decide where",
    ),
    "all are lost": (LOST, LOST, "no hypervisor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_person_must_decide_is_refused(case: str) -> None:
    one, two, text = REFUSED[case]
    plan = migration_recovery({"hv1": one, "hv2": two}, "t")
    assert not plan["ok"]
    assert plan["steps"] == []
    assert text in plan["message"]


def test_an_unknown_place_to_start_is_refused() -> None:
    plan = migration_recovery({"hv1": host(), "hv2": GONE}, "t", to="hv2")
    assert not plan["ok"]
    assert "hv2 cannot be asked" in plan["message"]


def test_of_all_mixtures_none_lets_the_vm_run_twice_or_throws_a_running_one_away() -> None:
    domains = [None, domain(), domain("paused"), domain("shut off"), domain(job=True)]
    flags: list[dict[str, bool]] = [{}, {"fenced": True}, {"fence_on_stop": True}, {"incoming": True}]
    vports = [None, *(vport("pf", lease, **more) for lease in (None, "held", "free") for more in flags)]
    sides = [GONE, LOST, *(host(one, other) for one in domains for other in vports)]
    seen = 0
    for one, two in itertools.product(sides, repeat=2):
        hosts = {"hv1": one, "hv2": two}
        plan = migration_recovery(hosts, "t")
        steps = verbs(plan)
        begins = [name for name, verb in steps if verb in ("start", "resume")]
        runs = [name for name, side in hosts.items() if (side["domain"] or {}).get("state") == "running"]
        assert len(begins) <= 1
        if not plan["ok"]:
            assert not steps
            continue
        seen += 1
        end = plan["end"]
        assert hosts[end]["reachable"]
        assert set(runs) <= {end}
        assert all(name == end for name in begins)
        if (end, "destroy") in steps:  # half a copy, where it is then started anew
            assert hosts[end]["domain"]["state"] == "paused"
            assert hosts[end]["vport"]["incoming"]
            assert (end, "start") in steps
        assert (end, "release") not in steps
        if begins:  # nothing else is left running, and where nobody can ask the engine's lease has the last word
            assert not runs
        if ("start") in [verb for __, verb in steps]:
            assert GONE not in hosts.values()
    assert seen > 1000
