# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: the picture of a migration run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.iovlab.storage.plugins.plugin_utils._report_picture import report_picture

DOCUMENTATION = r"""
name: report_picture
version_added: 0.1.0
short_description: Geometry of the picture in a migration report
description:
  - Computes where each thing of a report lies in the picture that C(report.html.j2) of the role C(migration) shows.
  - All texts in it are plain, and have to be escaped where they are put into HTML.
author:
  - iovlab.storage contributors (@iovlab)
positional: _input
options:
  _input:
    description:
      - What P(iovlab.storage.run_report#filter) returned.
    type: dict
    required: true
seealso:
  - plugin: iovlab.storage.run_report
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Write the report as a page
  ansible.builtin.template:
    src: report.html.j2
    dest: build/report.html
    mode: "0644"
  vars:
    report: "{{ run | iovlab.storage.run_report }}"
    picture: "{{ report | iovlab.storage.report_picture }}"
"""

RETURN = r"""
_value:
  description:
    - Geometry in units of the picture.
  type: dict
  contains:
    tiles:
      description: The main figures, each with label, value and hint.
      type: list
      elements: dict
    chart:
      description: Ticks, lanes with bars or curves, bands through all of them, and notes on what is left out. Null if
        the times of the run are not known.
      type: dict
    intervals:
      description: Drain, state transfer, path resume and pause of the VM, a row of dots each.
      type: dict
    phases:
      description: The guest's I/O during each phase, in words.
      type: list
      elements: dict
"""


class FilterModule:
    """The collection's filter for pictures of reports."""

    def filters(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        return {"report_picture": report_picture}
