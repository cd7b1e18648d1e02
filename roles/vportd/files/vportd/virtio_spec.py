# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of the virtio 1.3 standard that the engine uses; little-endian only (every field is ``le``)."""

# 6 Reserved Feature Bits
VIRTIO_F_INDIRECT_DESC = 28
VIRTIO_F_EVENT_IDX = 29
VIRTIO_F_VERSION_1 = 32

# 5.2.3 Block Device: Feature bits
VIRTIO_BLK_F_SEG_MAX = 2
VIRTIO_BLK_F_RO = 5
VIRTIO_BLK_F_BLK_SIZE = 6
VIRTIO_BLK_F_FLUSH = 9
VIRTIO_BLK_F_MQ = 12

# 2.7.5 The Virtqueue Descriptor Table
VIRTQ_DESC = "<QIHH"  # addr, len, flags, next
VIRTQ_DESC_SIZE = 16
VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
VIRTQ_MAX_SIZE = 32768

# 2.7.6 Available Ring: u16 flags, u16 idx, u16 ring[size], u16 used_event
VIRTQ_AVAIL_F_NO_INTERRUPT = 1
# 2.7.8 Used Ring: u16 flags, u16 idx, {u32 id, u32 len} ring[size], u16 avail_event
VIRTQ_USED_F_NO_NOTIFY = 1

# 5.2.6 Device Operation
VIRTIO_BLK_REQ_HEADER = "<IIQ"  # type, reserved, sector
VIRTIO_BLK_REQ_HEADER_SIZE = 16
VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2
VIRTIO_BLK_ID_BYTES = 20
SECTOR_SIZE = 512

# 5.2.4 Device configuration layout, as far as num_queues and the padding after it:
# capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_block_exp, alignment_offset, min_io_size,
# opt_io_size,
# writeback, unused0, num_queues
VIRTIO_BLK_CONFIG = "<QIIHBBIBBHIBBH"
VIRTIO_BLK_CONFIG_SIZE = 60  # with the discard, write zeroes and secure erase fields that the engine leaves at 0

# What the engine offers
SEG_MAX = 126
MAX_CHAIN = 1024  # the longest descriptor chain taken (2.7.5.1: no longer than the queue size)
