# SPDX-License-Identifier: GPL-3.0-or-later
"""``make fuzz``: the properties of ring and protocol, driven by coverage."""
