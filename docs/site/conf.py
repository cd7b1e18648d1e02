# SPDX-License-Identifier: GPL-3.0-or-later
"""How Sphinx makes the site; see tools/docs."""

project = "iovlab.storage"
author = "iovlab.storage contributors"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["reference/index.rst"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {
    "description": "SR-IOV storage for virtual machines",
    "fixed_sidebar": True,
    "page_width": "72rem",
    "sidebar_width": "16rem",
}
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
