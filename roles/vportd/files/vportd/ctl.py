# SPDX-License-Identifier: GPL-3.0-or-later
"""``vportctl``: the engine from a shell."""

import argparse
import json
import sys
import time
from typing import Any

from vportd import ctl_text
from vportd.ctl_client import Client, CtlError

SOCKET = "/run/vportd/rpc.sock"
DESCRIPTION = """\
Look at the vports of this hypervisor and move them between their paths.

A vport is what a VM has its disks (LUNs) from; its requests go over path vf, the VF that it is bound to, or over path
pf. What is shown comes from vportd, which must be running; only root may ask it.
"""
EPILOG = """\
exit status:
  0  done
  1  vportd refused, or cannot be reached; one line on standard error says why
  2  the command line is wrong

examples:
  vportctl list
  vportctl show tenant1 --events 50
  vportctl switch tenant1 pf         # before a migration; the VM waits for some milliseconds
  vportctl policy tenant1 --error-policy wait --auto-return yes
  vportctl top --interval 2
  vportctl --json show tenant1 | jq .luns[0].counters
  source <(vportctl completion)      # completion for bash

files:
  /run/vportd/rpc.sock   the socket of the engine (docs/rpc.md)
"""
DETAILS = {
    "list": """\
OUT is how many requests are taken and not done, GEN the generation of the mapping, USED how many LUNs have a front
end. NOTES says what is not as usual: fenced, incoming, why it is degraded.
""",
    "show": """\
With --json the record as docs/rpc.md describes it; latency_us counts requests by powers of 2 of a microsecond.
""",
    "mapping": "START and LENGTH are bytes of the vdisk, PHYSICAL is where that lies on the storage.\n",
    "state": """\
For each queue, up to where requests were taken (last_avail) and given back (used); the two are the same when it is
drained. Refused while the vport runs.
""",
    "suspend": """\
The VM runs on, and its disks wait. If it takes longer than --timeout, the vport runs on where it was, and the message
names what is outstanding.
""",
    "resume": "The opposite of suspend. A vport that is fenced does not resume.\n",
    "switch": """\
Suspend, drain, hand the queues over, resume. The VM sees nothing but a wait of some milliseconds. Not to path vf while
a migration logs dirty pages.
""",
    "policy": """\
A VF that fails never costs the VM an error: the PF path takes over. What is set here is for failures of the PF path,
and whether the vport goes back to its VF. For storage that hangs the VM waits until the kernel gives it up (for NVMe
30 s), also with report. It is kept over restarts of the engine.
""",
    "top": """\
P50, P99 and P99.9 are latencies of the requests of that interval, as the upper end of a power of 2. With --json one
line for each interval, with them in microseconds as latency_us.
""",
    "samples": """\
The engine keeps 900 samples of each vport, none of seconds in which it was idle. Latencies are those of that second.
""",
    "completion": """\
  source <(vportctl completion)
  vportctl completion > /usr/share/bash-completion/completions/vportctl
""",
}
COMPLETION = """\
# bash completion of vportctl
_vportctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} commands='%(commands)s'
    local command='' word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ " $commands " == *" $word "* ]] && { command=$word; break; }
    done
    if [[ $current == -* ]]; then
        local options='--help --json --socket'
        case $command in
%(options)s
        esac
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
    elif [[ $command == switch && $previous != switch && $previous != -* ]] || [[ $previous == --path ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'vf pf' -- "$current")
    elif [[ $previous == --error-policy ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'report wait adapter' -- "$current")
    elif [[ $previous == --auto-return ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'yes no' -- "$current")
    elif [[ $command != list && $command != top && $command != completion ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(vportctl names 2>/dev/null)" -- "$current")
    fi
}
complete -F _vportctl vportctl
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    wide = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser("vportctl", description=DESCRIPTION, epilog=EPILOG, formatter_class=wide)
    whole.add_argument("--socket", default=SOCKET, help=f"the engine's RPC socket (default: {SOCKET})")
    whole.add_argument("--json", action="store_true", help="print what the engine answers, as JSON")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, vport: bool = True, waits: bool = False) -> argparse.ArgumentParser:
        more = f"{text[0].upper()}{text[1:]}.\n\n{DETAILS.get(name, '')}"
        one = commands.add_parser(name, help=text, description=more, formatter_class=wide)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if vport:
            one.add_argument("vport", help="name of the vport")
        if waits:
            one.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for the drain (default: 10)")
        return one

    command("list", "one line for each vport", vport=False)
    command("names", "the names of the vports alone", vport=False)
    show = command("show", "everything about one vport: LUNs, front ends, counters, what happened last")
    show.add_argument("--events", type=int, default=10, metavar="N", help="so many of the last events (default: 10)")
    command("mapping", "the extents of a vport")
    command("state", "the queue state of a vport that is suspended, as JSON")
    command("suspend", "take no more requests, and wait until all that were taken are done", waits=True)
    resume = command("resume", "take requests again after suspend")
    resume.add_argument("--path", choices=("vf", "pf"), help="on this path")
    switch = command("switch", "move a vport to a path; it stays where it was if that takes too long", waits=True)
    switch.add_argument("path", choices=("vf", "pf"))
    policy = command("policy", "what a vport does when its storage fails; without options, what it is")
    policy.add_argument(
        "--error-policy",
        choices=("report", "wait", "adapter"),
        help="report: the guest gets the error; wait: its request is tried again until it succeeds; adapter: as the "
        "configuration says",
    )
    policy.add_argument(
        "--auto-return", choices=("yes", "no"), help="go back to the VF by itself after the VF has failed"
    )
    top = command("top", "requests, bytes and latencies a second, again and again", vport=False)
    top.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    top.add_argument("--count", type=int, default=0, metavar="N", help="end after so many (default: 0, never)")
    samples = command("samples", "what a vport did in each of its last seconds in which something changed")
    samples.add_argument("--last", type=int, default=20, metavar="N", help="so many of the last (default: 20)")
    command("completion", "a script for bash that completes commands and names", vport=False)
    return whole


def completion(whole: argparse.ArgumentParser) -> str:
    """Return the script for bash."""
    actions = whole._subparsers._group_actions if whole._subparsers else []
    found: dict[str, argparse.ArgumentParser] = {
        name: one for at in actions for name, one in dict(at.choices or {}).items()
    }
    cases = []
    for name, one in found.items():
        options = [option for action in one._actions for option in action.option_strings if option[:2] == "--"]
        more = " ".join(option for option in options if option not in ("--help", "--json"))
        if more:
            cases.append(f"            {name}) options+=' {more}' ;;")
    names = " ".join(name for name in found if name != "names")
    return COMPLETION.replace("%(commands)s", names).replace("%(options)s", "\n".join(cases))


def _top(client: Client, chosen: argparse.Namespace) -> None:
    """Print rates until the count is reached or the user has had enough."""
    before, then, turn = client.call("vport_list"), time.monotonic(), 0
    while not chosen.count or turn < chosen.count:
        time.sleep(chosen.interval)
        after, now = client.call("vport_list"), time.monotonic()
        found = ctl_text.rates(before, after, now - then)
        if chosen.json:
            print(json.dumps(found), flush=True)
        else:
            clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
            print(clear + ctl_text.top(found), flush=True)
        before, then, turn = after, now, turn + 1


def run(client: Client, chosen: argparse.Namespace) -> tuple[Any, str]:
    """Do one command; return the engine's answer, and the text for it. Raises CtlError."""
    name = chosen.command
    if name in ("list", "names"):
        records = client.call("vport_list")
        names = [one["vport"] for one in records]
        return (records, ctl_text.vports(records)) if name == "list" else (names, "\n".join(names))
    vport = chosen.vport
    if name == "show":
        record = client.call("vport_get", vport=vport)
        return record, ctl_text.vport(record, chosen.events)
    if name == "mapping":
        found = client.call("mapping_get", vport=vport)
        return found, ctl_text.mapping(found)
    if name == "state":
        state = client.call("vport_get_state", vport=vport)
        return state, json.dumps(state, indent=2)
    if name == "suspend":
        report = client.call("vport_suspend", vport=vport, timeout=chosen.timeout)
        return report, f"{report['state']}: {report['outstanding']} requests drained in {report['drain_seconds']:.3f} s"
    if name == "resume":
        record = client.call("vport_resume", vport=vport, path=chosen.path)
        return record, f"{record['state']} on path {record['path']}"
    if name == "policy":
        auto = None if chosen.auto_return is None else chosen.auto_return == "yes"
        record = client.call("vport_set_policy", vport=vport, error_policy=chosen.error_policy, auto_return=auto)
        found = {key: record[key] for key in ("vport", "error_policy", "auto_return")}
        return found, f"error policy {found['error_policy']}, auto return {'yes' if found['auto_return'] else 'no'}"
    if name == "samples":
        found = client.call("vport_samples", vport=vport)[-chosen.last :] if chosen.last > 0 else []
        return found, ctl_text.samples(found)
    report = client.call("vport_switch", vport=vport, path=chosen.path, timeout=chosen.timeout)
    return report, ctl_text.switch(report)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    whole = parser()
    chosen = whole.parse_args(arguments)
    if chosen.command == "completion":
        script = completion(whole)
        print(json.dumps(script) if chosen.json else script, end="\n" if chosen.json else "")
        return 0
    try:
        client = Client(chosen.socket)
        if chosen.command == "top":
            _top(client, chosen)
            return 0
        answer, text = run(client, chosen)
    except CtlError as problem:
        said = json.dumps({"error": problem.error}) if chosen.json and problem.error else f"vportctl: {problem}"
        print(said, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    print(json.dumps(answer, indent=2) if chosen.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
