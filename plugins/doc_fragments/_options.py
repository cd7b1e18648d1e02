# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that several modules share. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    # vportd's socket
    RPC = r"""
options:
  rpc_socket:
    description:
      - The socket on which C(vportd) answers on this host.
    type: path
    default: /run/vportd/rpc.sock
"""

    # What check mode may take as given
    PLANNED = r"""
options:
  planned:
    description:
      - Only looked at in check mode. What this module builds on, C(vportd) itself included, may be missing, since an
        earlier task of the same run would make it; the plan is made as if it were there, with a warning.
    type: bool
    default: false
"""

    # Where a pool is
    STORAGE = r"""
options:
  adapter:
    description:
      - PCI address of the PF of the adapter that shows the pool's namespace. One of O(adapter), O(serial) and O(nqn) is
        required.
      - The device is always looked up through the PF, since the same physical volume also shows through every VF.
    type: str
  nsid:
    description:
      - Namespace ID of the pool's storage on the adapter.
    type: int
    default: 1
"""

    # Which adapter, by what does not change with the slot
    NAMES = r"""
options:
  serial:
    description:
      - Serial number of the adapter, where it is to be found by that.
    type: str
  nqn:
    description:
      - NVMe Qualified Name (NQN) of the adapter's subsystem, where it is to be found by that.
    type: str
"""

    # Which adapter, by its address
    ADAPTER = r"""
options:
  pf:
    description:
      - PCI address of the physical function (PF) of the adapter, as C(lspci -D) shows it.
    type: str
"""
