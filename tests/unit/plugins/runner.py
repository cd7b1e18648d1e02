# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module as Ansible does, arguments in as JSON and the result out as JSON, on a Host of the test's making."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from typing import Any
from unittest import mock

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.iovlab.storage.plugins.module_utils._host import Host

WITHOUT_DIFF = ("guest_exec",)  # what a program changes is not known


class Modules:
    """``modules.sriov_vf(pf=..., count=2)`` -> the result; ``check=True`` for check mode."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch, **defaults: Any) -> None:
        self._defaults = defaults
        monkeypatch.setattr(Host, "of", classmethod(lambda _cls, _module: host))

    def __getattr__(self, name: str) -> Any:
        return lambda check=False, **arguments: self.run(name, check, arguments)

    def run(self, name: str, check: bool, arguments: dict[str, Any]) -> dict[str, Any]:
        module = importlib.import_module(f"ansible_collections.iovlab.storage.plugins.modules.{name}")
        defaults = {key: value for key, value in self._defaults.items() if key in module.SPEC.options}
        given = {**defaults, **arguments, "_ansible_check_mode": check, "_ansible_diff": True}
        out = io.StringIO()
        # A filter that another test has imported makes Ansible take this process for the controller, and a module's
        # warnings would go to the terminal and not into its result.
        managed_host = mock.patch("ansible.module_utils._internal.is_controller", False, create=True)
        with managed_host, patch_module_args(given), contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(out.getvalue())
        return result

    def refused(self, name: str, /, check: bool = False, **arguments: Any) -> str:
        """The message of a module that must fail: one line, with a remedy after the semicolon."""
        result = self.run(name, check, arguments)
        assert result.get("failed"), f"{name} was to refuse {arguments}, but gave {result}"
        message: str = result["msg"]
        assert "\n" not in message
        assert "Traceback" not in message
        assert ";" in message, f"says what is wrong, but not what to do: {message}"
        return message

    def settles(self, name: str, fingerprint: Any, /, **arguments: Any) -> dict[str, Any]:
        """In check mode, for real, and again: the first touches nothing and is right, the last changes nothing."""
        done = self.foretold(name, fingerprint, **arguments)
        after = fingerprint()
        again = self.run(name, False, arguments)
        assert not again.get("failed"), again
        assert not again["changed"], again["steps"]
        assert name in WITHOUT_DIFF or again["diff"]["before"] == again["diff"]["after"]
        assert fingerprint() == after, "the second run touched something"
        return done

    def foretold(self, name: str, fingerprint: Any, /, **arguments: Any) -> dict[str, Any]:
        """In check mode and for real: the first touches nothing, and says what the other then does and shows."""
        before = fingerprint()
        foretold = self.run(name, True, arguments)
        assert not foretold.get("failed"), foretold
        assert fingerprint() == before, "check mode touched something"
        done = self.run(name, False, arguments)
        assert not done.get("failed"), done
        assert ("diff" in done) == (name not in WITHOUT_DIFF)
        for part in ("changed", "steps", *(["diff"] if "diff" in done else [])):
            assert done[part] == foretold[part]
        assert done["changed"] == (fingerprint() != before)
        return done
