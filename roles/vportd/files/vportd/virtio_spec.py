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
VIRTIO_BLK_F_DISCARD = 13
VIRTIO_BLK_F_WRITE_ZEROES = 14

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
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13
VIRTIO_BLK_SEGMENT = "<QII"  # struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags
VIRTIO_BLK_SEGMENT_SIZE = 16
VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1
VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2
VIRTIO_BLK_ID_BYTES = 20
SECTOR_SIZE = 512

# 5.2.4 Device configuration layout: capacity, size_max, seg_max, cylinders, heads, sectors, blk_size,
# physical_block_exp, alignment_offset, min_io_size, opt_io_size, writeback, unused0, num_queues, max_discard_sectors,
# max_discard_seg, discard_sector_alignment, max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap,
# unused1
VIRTIO_BLK_CONFIG = "<QIIHBBIBBHIBBHIIIIIB3x"
VIRTIO_BLK_CONFIG_SIZE = 60

# What the engine offers
SEG_MAX = 126
MAX_CHAIN = 1024  # the longest descriptor chain taken (2.7.5.1: no longer than the queue size)
MAX_DATA = 64 << 20  # bytes of data of one request; Linux asks for 1280 KiB or 4 MiB, unless max_sectors_kb was raised
MAX_DISCARD_SECTORS = 1 << 20  # a segment of DISCARD or WRITE_ZEROES: 512 MiB
MAX_DISCARD_SEGMENTS = 16
