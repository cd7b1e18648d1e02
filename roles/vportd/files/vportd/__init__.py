# SPDX-License-Identifier: GPL-3.0-or-later
"""vportd: the vport engine of an SR-IOV storage adapter.

Read the files from the bottom up: ``virtio_spec``, ``vhost_user_spec`` - ``memory`` - ``inflight``, ``dirty_log`` -
``virtqueue`` - ``extent_table``, ``extents`` - ``storage``, ``uring`` - ``blk_queue``, ``blk_general``, ``blk`` -
``worker_queues``, ``worker`` (one process a path); then, in the engine's own process, ``config``, ``adapter``,
``mapping``, ``state_file``, ``extent_file`` - ``worker_client`` - ``blk_config``, ``vhost_user_message``,
``front_end_state``, ``front_end`` - ``lun_port`` - ``vport_record``, ``vport_workers``, ``vport_hand_over``,
``vport_rings``, ``vport`` - ``engine`` - ``rpc`` - ``__main__``.
"""

__version__ = "1.0.0"
