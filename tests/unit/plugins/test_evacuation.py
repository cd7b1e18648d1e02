# SPDX-License-Identifier: GPL-3.0-or-later
"""evacuation_plan: every VM has a place that fits, or all that do not are named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.iovlab.storage.plugins.plugin_utils._evacuation import evacuation_plan

MIB = 1 << 20


def test_the_largest_goes_first_and_a_free_vf_counts_more_than_memory() -> None:
    vms = [{"name": "small", "memory": 100 * MIB}, {"name": "large", "memory": 900 * MIB}]
    hosts = {
        "hv2": {"free_memory": 1200 * MIB, "free_vfs": 1},
        "hv3": {"free_memory": 5000 * MIB, "free_vfs": 0},
    }
    plan = evacuation_plan(vms, hosts, "hv1")
    assert plan["ok"]
    assert plan["moves"] == [
        {"vm": "large", "source": "hv1", "to": "hv2", "path": "vf"},
        {"vm": "small", "source": "hv1", "to": "hv3", "path": "pf"},
    ]


def test_all_that_have_no_place_are_named() -> None:
    vms = [{"name": name, "memory": 600 * MIB} for name in ("a", "b", "c")]
    plan = evacuation_plan(vms, {"hv2": {"free_memory": 828 * MIB, "free_vfs": 4}}, "hv1")
    assert not plan["ok"]
    assert [move["vm"] for move in plan["moves"]] == ["a"]
    assert [problem.split()[0] for problem in plan["problems"]] == ["b", "c"]
    assert "more than 100 MiB left" in plan["problems"][0]


def test_a_wish_is_kept_or_refused() -> None:
    vms = [{"name": "a", "memory": 1}]
    hosts = {name: {"free_memory": 200 * MIB, "free_vfs": 1} for name in ("hv2", "hv3")}
    assert evacuation_plan(vms, hosts, "hv1", {"a": "hv3"})["moves"][0]["to"] == "hv3"
    refused = evacuation_plan(vms, hosts, "hv1", {"a": "hv9"})
    assert not refused["ok"]
    assert "hv9" in refused["problems"][0]


@given(
    st.lists(st.integers(1, 8), max_size=8),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=4),
)
def test_no_hypervisor_is_given_more_than_it_has(sizes: list[int], rooms: list[tuple[int, int]]) -> None:
    vms: list[dict[str, object]] = [{"name": f"vm{n}", "memory": size << 30} for n, size in enumerate(sizes)]
    hosts = {f"hv{n}": {"free_memory": memory << 30, "free_vfs": vfs} for n, (memory, vfs) in enumerate(rooms)}
    plan = evacuation_plan(vms, hosts, "source")
    assert len(plan["moves"]) + len(plan["problems"]) == len(vms)
    memory = {f"vm{number}": (size << 30) + (128 << 20) for number, size in enumerate(sizes)}
    for name, room in hosts.items():
        there = [move for move in plan["moves"] if move["to"] == name]
        assert sum(memory[move["vm"]] for move in there) <= room["free_memory"]
        assert sum(move["path"] == "vf" for move in there) <= room["free_vfs"]
