# SPDX-License-Identifier: GPL-3.0-or-later
"""A strict reader of OpenMetrics 1.0 text: whatever the standard forbids raises NotOpenMetrics."""

import math
import re
from typing import Any

TYPES = {"unknown", "gauge", "counter", "stateset", "info", "histogram", "gaugehistogram", "summary"}
SUFFIXES = {
    "counter": {"_total", "_created"},
    "histogram": {"_bucket", "_count", "_sum", "_created"},
    "info": {"_info"},
    "gauge": {""},
    "stateset": {""},
    "unknown": {""},
}
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL})(?:,{_LABEL})*)?\}})? (\S+)(?: (\S+))?")
_HEADER = re.compile(rf"# (TYPE|UNIT|HELP) ({_NAME}) (.*)")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[Ii]nf(?:inity)?)|[Nn]a[Nn]")


class NotOpenMetrics(Exception):
    """The text breaks the standard."""


def _need(condition, words):
    if not condition:
        raise NotOpenMetrics(words)


def parse(text):
    """``{family: {"type", "unit", "help", "samples": [(name, labels, value)]}}``."""
    _need(text.endswith("# EOF\n"), "the text must end with # EOF and one line feed")
    _need("\r" not in text, "carriage return")
    families: dict[str, dict[str, Any]] = {}
    current = ""
    for line in text.removesuffix("# EOF\n").splitlines():
        _need(line, "empty line")
        if line.startswith("#"):
            match: Any = _HEADER.fullmatch(line)
            _need(match, f"not a header: {line}")
            key, name, value = match.groups()
            if name != current:
                _need(name not in families, f"{name} is interleaved")
                families[name] = {"type": "unknown", "unit": "", "help": "", "samples": [], "seen": set()}
                current = name
            family = families[name]
            _need(not family["samples"], f"{key} of {name} after its samples")
            _need(key not in family["seen"], f"second {key} of {name}")
            family["seen"].add(key)
            family[key.lower()] = value
            if key == "TYPE":
                _need(value in TYPES, f"type {value}")
            if key == "UNIT":
                _need(not value or name.endswith(f"_{value}"), f"{name} does not end with its unit {value}")
            continue
        match = _SAMPLE.fullmatch(line)
        _need(match, f"not a sample: {line}")
        name, labels, value = match.group(1), match.group(2) or "", match.groups()[-2]
        _need(_FLOAT.fullmatch(value), f"not a number: {line}")
        pairs = re.findall(_LABEL, labels)
        _need(len({key for key, __ in pairs}) == len(pairs), f"a label twice: {line}")
        _need(current, f"a sample without a family: {line}")
        family = families[current]
        _need(name.startswith(current), f"{name} in family {current}")
        suffix = name[len(current) :]
        _need(suffix in SUFFIXES[family["type"]], f"{name} is not of a {family['type']}")
        family["samples"].append((suffix, dict(pairs), float(value)))
    for name, family in families.items():
        _check(name, family)
    return families


def _check(name, family):
    samples, kind = family["samples"], family["type"]
    keys = [(suffix, tuple(sorted(labels.items()))) for suffix, labels, __ in samples]
    _need(len(set(keys)) == len(keys), f"{name}: the same sample twice")
    names = {frozenset(labels) - {"le"} for __, labels, __ in samples}
    _need(len(names) <= 1, f"{name}: other labels in other samples")
    _need(kind not in ("info", "stateset") or not family["unit"], f"{name}: a {kind} has no unit")
    _need(kind != "info" or name + "_info" not in names, name)
    groups: list[Any] = []
    for suffix, labels, value in samples:
        rest = tuple(sorted((key, one) for key, one in labels.items() if key not in ("le", name)))
        if not groups or groups[-1][0] != rest:
            groups.append((rest, []))
        groups[-1][1].append((suffix, labels, value))
        if kind in ("counter", "histogram", "info"):
            _need(value >= 0 and not math.isnan(value), f"{name}: {value}")
        if kind == "stateset":
            _need(name in labels and value in (0, 1), f"{name}: a state is 0 or 1, its label is the family's name")
    _need(len({rest for rest, __ in groups}) == len(groups), f"{name}: the samples of a metric are not together")
    for rest, members in groups:
        if kind == "histogram":
            buckets = [(float(labels["le"]), value) for suffix, labels, value in members if suffix == "_bucket"]
            _need(buckets == sorted(buckets), f"{name} {rest}: buckets out of order")
            _need([one for __, one in buckets] == sorted(one for __, one in buckets), f"{name} {rest}: not cumulative")
            _need(buckets and buckets[-1][0] == math.inf, f"{name} {rest}: no +Inf bucket")
            counts = [value for suffix, __, value in members if suffix == "_count"]
            _need(counts == [buckets[-1][1]], f"{name} {rest}: count is not the +Inf bucket")
            _need(any(suffix == "_sum" for suffix, __, __ in members), f"{name} {rest}: no sum")
