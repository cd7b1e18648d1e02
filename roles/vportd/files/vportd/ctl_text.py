# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``vportctl`` prints: records of the RPC as text, and rates from two looks at the same counters."""

import itertools
import time
from typing import Any

Record = dict[str, Any]
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: float) -> str:
    """Return bytes with a unit: ``1.5 GiB``."""
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count, step = count / 1024, step + 1
    unit = _UNITS[step]
    return f"{count:.0f} {unit}" if count == int(count) else f"{count:.1f} {unit}"


def table(head: list[str], rows: list[list[object]]) -> str:
    """Return a table with its columns aligned; the last column is as wide as it likes."""
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def flags(record: Record) -> str:
    """Return the words for what is not as usual."""
    words = [word for word in ("fenced", "incoming") if record[word]]
    return " ".join([*words, *(["fence-on-stop"] if record["fence_on_stop"] else []), record["degraded"] or ""]).strip()


def vports(records: list[Record]) -> str:
    """Return one line a vport."""
    rows: list[list[object]] = [
        [
            one["vport"],
            one["state"],
            one["path"],
            one["vf"] or "-",
            len(one["luns"]),
            sum(lun["connected"] for lun in one["luns"]),
            one["outstanding"],
            one["generation"],
            flags(one),
        ]
        for one in records
    ]
    return table(["VPORT", "STATE", "PATH", "VF", "LUNS", "USED", "OUT", "GEN", "NOTES"], rows)


def lease(record: Record | None) -> str:
    """Return the lease of a LUN in a few words: ``held by hv1 (5)``, the number being its generation."""
    if record is None:
        return "-"
    who = f" by {record['owner_name'] or record['owner']}" if record["owner"] and record["state"] != "free" else ""
    return f"{record['state']}{who} ({record['generation']})"


def vport(record: Record, events: int) -> str:
    """Return everything about one vport, with its last ``events`` events."""
    facts = [
        f"{record['vport']}: {record['state']} on path {record['path']}, VF {record['vf'] or 'none'}, "
        f"adapter {record['adapter']}",
        f"mapping of generation {record['generation']}, {record['digest'] or 'none yet'}",
        f"{record['outstanding']} requests outstanding, {record['waiting']} of them wait for the storage; "
        f"error policy {record['error_policy']}, auto return {'yes' if record['auto_return'] else 'no'}",
    ]
    if flags(record):
        facts.append(f"note: {flags(record)}")
    if record["fence_why"]:
        facts.append(f"fenced because {record['fence_why']}")
    rows: list[list[object]] = []
    for lun in record["luns"]:
        peer = lun["front_end"]
        who = f"{peer['comm']} ({peer['pid']})" if peer else "-"
        counts = lun["counters"]
        rows.append(
            [
                lun["lun"],
                lun["vdisk"],
                size(lun["capacity"]),
                "ro" if lun["readonly"] else "rw",
                who,
                counts["reads"],
                counts["writes"],
                counts["errors"],
                lease(lun["lease"]),
                lun["address"],
            ]
        )
    facts += [
        "",
        table(["LUN", "VDISK", "SIZE", "", "FRONT END", "READS", "WRITES", "ERRORS", "LEASE", "ADDRESS"], rows),
    ]
    if events and record["history"]:
        lines: list[list[object]] = [
            [
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["time"])),
                one["path"],
                one["event"],
                ", ".join(f"{key} {_short(value)}" for key, value in one["detail"].items()),
            ]
            for one in record["history"][-events:]
        ]
        facts += ["", table(["TIME", "PATH", "EVENT", ""], lines)]
    return "\n".join(facts)


def _short(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def mapping(record: Record) -> str:
    """Return the extents, one a line."""
    rows: list[list[object]] = [
        [lun["lun"], lun["vdisk"], extent[0], extent[1], extent[2], "ro" if lun["readonly"] or extent[3:] else "rw"]
        for lun in record["luns"]
        for extent in lun["extents"]
    ]
    head = f"generation {record['generation']}, {record['digest'] or 'no mapping yet'}"
    return head + "\n" + table(["LUN", "VDISK", "START", "PHYSICAL", "LENGTH", ""], rows)


def switch(report: Record) -> str:
    """Return the report of a switch in one line."""
    if not report["changed"]:
        return f"on path {report['to']} already"
    return (
        f"{report['from']} -> {report['to']}: {report['outstanding']} requests drained in "
        f"{report['drain_seconds'] * 1e3:.2f} ms, blackout {report['blackout_seconds'] * 1e3:.2f} ms"
    )


def percentile(histogram: list[int], share: float) -> int | None:
    """Return the latency that ``share`` of the requests kept below, in microseconds, as the upper end of its bucket;
    None when there were none.
    """
    total = sum(histogram)
    if not total:
        return None
    sums = itertools.accumulate(histogram)
    return 1 << next(number for number, seen in enumerate(sums) if seen >= share * total)


def below(latency: int | None) -> str:
    """Return a percentile in words: ``<512 us``."""
    if latency is None:
        return "-"
    return f"<{latency} us" if latency < 1 << 10 else f"<{latency / 1000:.0f} ms"


def rates(before: list[Record], after: list[Record], seconds: float) -> list[Record]:
    """Return what each vport did a second between two looks, and the latencies of that time (``histogram``, by powers
    of 2 of a microsecond, and ``latency_us`` by percentile).
    """
    old = {(one["vport"], lun["lun"]): lun for one in before for lun in one["luns"]}
    found = []
    for one in after:
        row: Record = {"vport": one["vport"], "state": one["state"], "path": one["path"]}
        row["outstanding"] = one["outstanding"]
        sums = dict.fromkeys(("reads", "writes", "bytes_read", "bytes_written", "errors"), 0.0)
        histogram = [0] * (len(one["luns"][0]["latency_us"]) if one["luns"] else 0)
        for lun in one["luns"]:
            then = old.get((one["vport"], lun["lun"]))
            for name in sums:
                sums[name] += max(0, lun["counters"][name] - (then["counters"][name] if then else 0))
            for bucket, count in enumerate(lun["latency_us"]):
                histogram[bucket] += max(0, count - (then["latency_us"][bucket] if then else 0))
        row |= {name: value / seconds for name, value in sums.items()}
        row["latency_us"] = {name: percentile(histogram, share) for name, share in PERCENTILES.items()}
        found.append({**row, "histogram": histogram})
    return found


def samples(found: list[Record]) -> str:
    """Return the samples of a vport, one a line."""
    rows: list[list[object]] = [
        [
            time.strftime("%H:%M:%S", time.localtime(one["time"])),
            one["state"],
            one["path"],
            f"{one['iops']:.0f}",
            f"{one['bytes_per_second'] / 2**20:.1f}",
            one["outstanding"],
            *(f"{one[f'latency_{name}'] * 1e3:.3f}" for name in ("p50", "p99", "max")),
            one["dirty_pages"],
            one["errors"],
        ]
        for one in found
    ]
    head = ["TIME", "STATE", "PATH", "IOPS", "MiB/s", "OUT", "P50 ms", "P99 ms", "MAX ms", "DIRTY", "ERR"]
    return table(head, rows)


def top(found: list[Record]) -> str:
    """Return the rates, one line a vport, the busiest first."""
    ordered = sorted(found, key=lambda one: one["reads"] + one["writes"], reverse=True)
    rows: list[list[object]] = [
        [
            one["vport"],
            one["state"],
            one["path"],
            f"{one['reads']:.0f}",
            f"{one['writes']:.0f}",
            f"{one['bytes_read'] / 2**20:.1f}",
            f"{one['bytes_written'] / 2**20:.1f}",
            one["outstanding"],
            *(below(one["latency_us"][name]) for name in PERCENTILES),
            f"{one['errors']:.0f}",
        ]
        for one in ordered
    ]
    head = ["VPORT", "STATE", "PATH", "R/s", "W/s", "R MiB/s", "W MiB/s", "OUT", *map(str.upper, PERCENTILES), "ERR/s"]
    return table(head, rows)
