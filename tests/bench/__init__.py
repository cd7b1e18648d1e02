# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: vportd against the C peer, in one run, as ratios."""
