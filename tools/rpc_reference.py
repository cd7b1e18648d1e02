# SPDX-License-Identifier: GPL-3.0-or-later
"""python tools/rpc_reference.py [--write]: the table of the RPC's methods, from the code, into docs/rpc.md.

Without --write it only says, by its exit status, whether the table there is right.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "roles/vportd/files"))

from vportd.engine import Engine  # noqa: E402
from vportd.errors import RpcError  # noqa: E402
from vportd.rpc import MAX_LINE, METHODS, words  # noqa: E402

DOCUMENT = ROOT / "docs/rpc.md"
DEFAULTS = {None: "null", True: "true", False: "false"}
BEGIN, END = "<!-- begin: made by tools/rpc_reference.py -->\n", "<!-- end -->\n"


def parameter(one: inspect.Parameter) -> str:
    """Return one parameter as the table shows it."""
    shown = f"`{one.name}`: {words(one.annotation)}"
    if one.default is inspect.Parameter.empty:
        return shown
    return f"{shown}, `{DEFAULTS.get(one.default, one.default)}` if left out"


def methods() -> str:
    """Return the table."""
    lines = ["| method | parameters | does |", "| --- | --- | --- |"]
    for name in METHODS:
        method: Any = getattr(Engine, name)
        found = list(inspect.signature(method, eval_str=True).parameters.values())[1:]
        lines.append(f"| `{name}` | {'<br>'.join(map(parameter, found))} | {inspect.getdoc(method)} |")
    return "\n".join(lines) + "\n"


def section() -> str:
    """Return everything between the marks."""
    codes = ", ".join(f"`{name}` {code}" for name, code in RpcError.CODES.items())
    return f"A line is at most {MAX_LINE >> 20} MiB. Reasons and codes of errors: {codes}.\n\n{methods()}"


def main() -> int:
    """Return the exit status."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, __, rest = text.partition(BEGIN)
    __, __, after = rest.partition(END)
    wanted = f"{before}{BEGIN}{section()}{END}{after}"
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        print("docs/rpc.md is not what the code says: run python tools/rpc_reference.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
