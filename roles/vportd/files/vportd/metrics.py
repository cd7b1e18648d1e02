# SPDX-License-Identifier: GPL-3.0-or-later
"""All counters and states as OpenMetrics text (version 1.0), for Prometheus and its like."""

import time
from collections.abc import Iterable, Iterator

from vportd import __version__
from vportd.blk_queue import BUCKETS
from vportd.counters import PATHS
from vportd.vport_record import VportRecord

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
STATES = ("RUNNING", "QUIESCED", "FROZEN")
_OPERATIONS = {
    "reads": "read",
    "writes": "write",
    "flushes": "flush",
    "discards": "discard",
    "write_zeroes": "write_zeroes",
}
_STARTED = time.time()

Sample = tuple[str, dict[str, str], float]  # suffix of the name, labels, value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def family(name: str, kind: str, text: str, samples: Iterable[Sample], unit: str = "") -> Iterator[str]:
    """Return the lines of one metric family; ``name`` ends with the unit, if it has one."""
    yield f"# TYPE {name} {kind}"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {_escaped(text)}"
    for suffix, labels, value in samples:
        shown = ",".join(f'{key}="{_escaped(str(one))}"' for key, one in labels.items())
        yield f"{name}{suffix}{{{shown}}} {_number(value)}" if shown else f"{name}{suffix} {_number(value)}"


def _one_of(name: str, labels: dict[str, str], now: str, all_of: Iterable[str]) -> list[Sample]:
    return [("", {**labels, name: one}, float(one == now)) for one in all_of]


def exposition(vports: list[VportRecord], refused: int) -> str:
    """Return everything there is to say about the vports. Labels are the vport, the LUN and the path."""
    requests: list[Sample] = []
    moved: list[Sample] = []
    errors: list[Sample] = []
    dirty: list[Sample] = []
    latency: list[Sample] = []
    capacity: list[Sample] = []
    connected: list[Sample] = []
    states: list[Sample] = []
    paths: list[Sample] = []
    events: list[Sample] = []
    gauges: dict[str, list[Sample]] = {
        name: [] for name in ("outstanding", "waiting", "degraded", "fenced", "generation")
    }
    for vport in vports:
        mine = {"vport": vport.name}
        for one in vport.luns:
            port = vport.ports.get(one.lun)
            lun = {**mine, "lun": str(one.lun), "vdisk": one.vdisk}
            capacity.append(("", lun, one.capacity))
            connected.append(("", lun, float(port is not None and port.front is not None)))
            for path in PATHS:
                found = vport.counters.sums(one.lun, (path,))
                if path != vport.path and not any(found.histogram):
                    continue
                labels = {**mine, "lun": str(one.lun), "path": path}
                for counter, operation in _OPERATIONS.items():
                    requests.append(("_total", {**labels, "operation": operation}, found.counts[counter]))
                for direction in ("read", "written"):
                    moved.append(("_total", {**labels, "direction": direction}, found.counts[f"bytes_{direction}"]))
                errors.append(("_total", labels, found.counts["errors"]))
                dirty.append(("_total", labels, found.counts["dirty_pages"]))
                seen = 0
                for bucket, count in enumerate(found.histogram):
                    seen += count
                    above = "+Inf" if bucket == BUCKETS - 1 else repr((1 << bucket) / 1e6)
                    latency.append(("_bucket", {**labels, "le": above}, seen))
                latency.append(("_count", labels, seen))
                latency.append(("_sum", labels, found.microseconds * 1e-6))
        states += _one_of("vportd_vport_state", mine, vport.state, STATES)
        paths += _one_of("vportd_vport_path", mine, vport.path, PATHS)
        events += [("_total", {**mine, "event": event}, count) for event, count in sorted(vport.events.items())]
        values = (vport.outstanding(), vport.waiting(), vport.degraded is not None, vport.fenced, vport.generation)
        for samples, value in zip(gauges.values(), values, strict=True):
            samples.append(("", mine, float(value)))
    lines = [
        *family("vportd", "info", "The engine.", [("_info", {"version": __version__}, 1)]),
        *family("vportd_start_time_seconds", "gauge", "When the engine was started.", [("", {}, _STARTED)], "seconds"),
        *family("vportd_vports", "gauge", "Vports that are served.", [("", {}, len(vports))]),
        *family("vportd_refused_vports", "gauge", "Vports that could not be restored.", [("", {}, refused)]),
        *family("vportd_requests", "counter", "Requests done, without errors.", requests),
        *family("vportd_moved_bytes", "counter", "Bytes read from and written to the storage.", moved, "bytes"),
        *family("vportd_errors", "counter", "Requests that ended with an error status.", errors),
        *family("vportd_dirty_pages", "counter", "Pages newly set in the dirty log of a migration.", dirty),
        *family(
            "vportd_latency_seconds",
            "histogram",
            "From when a request was taken until it was given back.",
            latency,
            "seconds",
        ),
        *family("vportd_lun_capacity_bytes", "gauge", "Size of a LUN.", capacity, "bytes"),
        *family("vportd_lun_connected", "gauge", "1 while a front end is connected.", connected),
        *family("vportd_vport_state", "stateset", "What a vport does.", states),
        *family("vportd_vport_path", "stateset", "The path that carries a vport's requests.", paths),
        *family("vportd_outstanding_requests", "gauge", "Requests taken and not done.", gauges["outstanding"]),
        *family("vportd_waiting_requests", "gauge", "Requests that wait for the storage.", gauges["waiting"]),
        *family("vportd_vport_degraded", "gauge", "1 while a vport is not as it was asked to be.", gauges["degraded"]),
        *family("vportd_vport_fenced", "gauge", "1 while a vport is fenced.", gauges["fenced"]),
        *family("vportd_vport_generation", "gauge", "Generation of the mapping.", gauges["generation"]),
        *family("vportd_vport_events", "counter", "Events in a vport's history.", events),
        "# EOF",
    ]
    return "\n".join(lines) + "\n"
