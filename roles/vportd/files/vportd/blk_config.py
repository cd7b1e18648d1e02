# SPDX-License-Identifier: GPL-3.0-or-later
"""The device that a front end is shown: feature bits and configuration space (virtio 1.3, 5.2.3 and 5.2.4)."""

import struct

from vportd import vhost_user_spec as spec
from vportd.virtio_spec import (
    MAX_DISCARD_SECTORS,
    MAX_DISCARD_SEGMENTS,
    SECTOR_SIZE,
    SEG_MAX,
    VIRTIO_BLK_CONFIG,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
)

QUEUES = 4
CONFIG_SPACE = 256

FEATURES = sum(
    1 << bit
    for bit in (
        VIRTIO_F_VERSION_1,
        VIRTIO_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_MQ,
        spec.VHOST_F_LOG_ALL,
        spec.VHOST_USER_F_PROTOCOL_FEATURES,
    )
)
PROTOCOL_FEATURES = sum(
    1 << bit
    for bit in (
        spec.VHOST_USER_PROTOCOL_F_MQ,
        spec.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
        spec.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        spec.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
        spec.VHOST_USER_PROTOCOL_F_CONFIG,
        spec.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        spec.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
        spec.VHOST_USER_PROTOCOL_F_STATUS,
    )
)
LOG_ALL = 1 << spec.VHOST_F_LOG_ALL


def offered(readonly: bool, discards: bool, zeroes: bool) -> int:
    """Return the feature bits of a LUN: read-only, on storage that can discard or write zeroes by itself."""
    optional = ((VIRTIO_BLK_F_RO, readonly), (VIRTIO_BLK_F_DISCARD, discards), (VIRTIO_BLK_F_WRITE_ZEROES, zeroes))
    return FEATURES | sum(1 << bit for bit, there in optional if there)


def config_space(capacity: int, block_size: int, discards: bool, zeroes: bool) -> bytes:
    """Return the device configuration of a LUN of ``capacity`` bytes in logical blocks of ``block_size`` bytes."""
    limits = (MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS)
    discard = (*limits, block_size // SECTOR_SIZE) if discards else (0, 0, 0)
    zero = (*limits, 1) if zeroes else (0, 0, 0)
    sectors = capacity // SECTOR_SIZE
    fields = struct.pack(VIRTIO_BLK_CONFIG, sectors, 0, SEG_MAX, 0, 0, 0, block_size, *[0] * 6, QUEUES, *discard, *zero)
    return fields.ljust(CONFIG_SPACE, b"\0")
