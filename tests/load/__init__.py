# SPDX-License-Identifier: GPL-3.0-or-later
"""A load in a tenant VM that notes each of its writes, and checks of what became of them, in the VM and outside."""
