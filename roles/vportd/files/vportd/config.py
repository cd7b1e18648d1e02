# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: one JSON object. Anything unknown or wrong in it is a ConfigError that names it."""

import json
import re
from dataclasses import dataclass
from typing import Any

from vportd.errors import ConfigError

LEASE_RENEW, LEASE_VALIDITY = 2.0, 10.0
HOST_ID = re.compile(r"[0-9a-f]{32}")
POLICIES = ("report", "wait")
PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """One adapter: PCI address of its PF, namespace, what is done when the storage fails, and - for tests and labs -
    latency in seconds (low, high), back end, and a file that says what fails.
    """

    pf: str
    nsid: int = 1
    latency: tuple[float, float] | None = None
    backend: str = "auto"
    error_policy: str = "report"
    auto_return: bool = False
    faults: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; every field but ``adapters`` has this default."""

    adapters: tuple[AdapterConfig, ...]
    state_dir: str = "/var/lib/vportd"
    run_dir: str = "/run/vportd"
    socket_user: str = "libvirt-qemu"
    worker_user: str = "vportd"
    metrics: str | None = None
    sample_seconds: float = 1.0
    sysfs_root: str = "/sys"
    dev_root: str = "/dev"
    host_id: str = ""
    host_name: str = ""
    lease_renew_seconds: float = LEASE_RENEW
    lease_validity_seconds: float = LEASE_VALIDITY


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _latency(where: str, value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    pair: list[Any] = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(map(_is_number, pair)):
        raise ConfigError(f"{where}: latency is {value!r}: it must be seconds, or [lowest, highest] seconds")
    low, high = float(pair[0]), float(pair[1])
    if not 0 <= low <= high <= 3600:
        raise ConfigError(f"{where}: latency is {value!r}: it must be between 0 and 3600 seconds, the lowest first")
    return (low, high) if high else None


def metrics_address(value: object) -> tuple[str, int] | str | None:
    """Return where the metrics are to be had: the path of a Unix socket, (address, port) on loopback, or None.
    Raises ConfigError.
    """
    if value is None:
        return None
    if isinstance(value, str):
        host, __, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if value.startswith("/"):
            return value
        if port.isdecimal() and 0 < int(port) < 65536 and host in ("127.0.0.1", "::1"):
            return host, int(port)
    raise ConfigError(
        f"metrics is {value!r}: it must be the path of a Unix socket, or an address and port on loopback such as "
        f"127.0.0.1:9753"
    )


def _adapter(number: int, record: object) -> AdapterConfig:
    where = f"adapters[{number}]"
    if not isinstance(record, dict):
        raise ConfigError(f"{where} is {record!r}: it must be an object with pf and nsid")
    unknown = sorted(set(record) - {"pf", "nsid", "latency", "backend", "error_policy", "auto_return", "faults"})
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}: remove it")
    pf = record.get("pf")
    if not isinstance(pf, str) or not PCI_ADDRESS.fullmatch(pf):
        raise ConfigError(f"{where}: pf is {pf!r}: it must be a PCI address such as 0000:01:00.0")
    nsid = record.get("nsid", 1)
    if not isinstance(nsid, int) or isinstance(nsid, bool) or nsid < 1:
        raise ConfigError(f"{where}: nsid is {nsid!r}: it must be a namespace number from 1")
    backend = record.get("backend", "auto")
    if backend not in ("auto", "file", "threads", "uring"):
        raise ConfigError(f"{where}: backend is {backend!r}: it must be auto, file, threads or uring")
    policy = record.get("error_policy", "report")
    if policy not in POLICIES:
        raise ConfigError(f"{where}: error_policy is {policy!r}: it must be {' or '.join(POLICIES)}")
    auto_return = record.get("auto_return", False)
    if not isinstance(auto_return, bool):
        raise ConfigError(f"{where}: auto_return is {auto_return!r}: it must be true or false")
    faults = record.get("faults")
    if faults is not None and not (isinstance(faults, str) and faults.startswith("/")):
        raise ConfigError(f"{where}: faults is {faults!r}: it must be an absolute path")
    return AdapterConfig(pf, nsid, _latency(where, record.get("latency")), backend, policy, auto_return, faults)


def parse_config(text: str) -> Config:
    """Return the configuration in ``text``. Raises ConfigError."""
    try:
        record = json.loads(text)
    except ValueError as problem:
        raise ConfigError(f"not JSON: {problem}") from problem
    if not isinstance(record, dict):
        raise ConfigError("not a JSON object")
    numbers = ("lease_renew_seconds", "lease_validity_seconds")
    strings = ("host_id", "host_name", "state_dir", "run_dir", "socket_user", "worker_user", "sysfs_root", "dev_root")
    for key, value in record.items():
        if key in strings:
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{key} is {value!r}: it must be a string that is not empty")
            if key.endswith(("_dir", "_root")) and not value.startswith("/"):
                raise ConfigError(f"{key} is {value!r}: it must be an absolute path")
            if key == "host_id" and not HOST_ID.fullmatch(value):
                raise ConfigError(f"host_id is {value!r}: it must be 32 hexadecimal digits, or left out")
        elif key == "metrics":
            metrics_address(value)
        elif key == "sample_seconds":
            if not _is_number(value) or not 0.01 <= value <= 60:
                raise ConfigError(f"sample_seconds is {value!r}: it must be a number from 0.01 to 60")
        elif key in numbers:
            if not _is_number(value) or not 0.1 <= value <= 600:
                raise ConfigError(f"{key} is {value!r}: it must be from 0.1 to 600 seconds")
        elif key != "adapters":
            raise ConfigError(f"unknown key {key!r}: remove it")
    renew = record.get("lease_renew_seconds", LEASE_RENEW)
    validity = record.get("lease_validity_seconds", LEASE_VALIDITY)
    if validity < 3 * renew:
        raise ConfigError(
            f"lease_validity_seconds is {validity}: it must be at least 3 times lease_renew_seconds, which is {renew}"
        )
    adapters = record.pop("adapters", None)
    if not isinstance(adapters, list) or not adapters:
        raise ConfigError('adapters is missing: name at least one, such as {"pf": "0000:01:00.0", "nsid": 1}')
    found = tuple(_adapter(number, one) for number, one in enumerate(adapters))
    seen: set[str] = set()
    for one in found:
        if one.pf in seen:
            raise ConfigError(f"adapter {one.pf} is named twice")
        seen.add(one.pf)
    return Config(found, **record)


def read_config(path: str) -> Config:
    """Read the file ``path``. Raises ConfigError, with the path in front."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse_config(file.read())
    except (OSError, UnicodeDecodeError, ConfigError) as problem:
        raise ConfigError(f"{path}: {problem}") from problem
