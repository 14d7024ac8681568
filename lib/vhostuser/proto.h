/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vhost-user wire format: message ids, flags, protocol feature bits and
 * payloads. Source: QEMU's "Vhost-user Protocol" (docs/interop/vhost-user.rst),
 * the section is named beside each group. What <linux/vhost_types.h> defines
 * (struct vhost_vring_state, vhost_vring_addr, vhost_iotlb_msg, VHOST_F_LOG_ALL)
 * is used from there.
 *
 * All numbers are in host byte order. No structure here holds an fd: fds travel
 * as SCM_RIGHTS beside the first byte of the message.
 */
#ifndef VP_VHOSTUSER_PROTO_H
#define VP_VHOSTUSER_PROTO_H

#include <stdint.h>

#include <linux/vhost_types.h>
#include <linux/virtio_config.h>

/* Header flags ("Message Specification", "Header"). */
#define VU_FLAG_VERSION_MASK 0x3u
#define VU_FLAG_VERSION      0x1u
#define VU_FLAG_REPLY        0x4u
#define VU_FLAG_NEED_REPLY   0x8u

/* Virtio feature bit that stands for "speaks protocol features" ("Communication"). */
#define VU_F_PROTOCOL_FEATURES 30

/* "Protocol features" */
enum vu_protocol_feature {
	VU_PF_MQ                     = 0,
	VU_PF_LOG_SHMFD              = 1,
	VU_PF_RARP                   = 2,
	VU_PF_REPLY_ACK              = 3,
	VU_PF_MTU                    = 4,
	VU_PF_BACKEND_REQ            = 5,
	VU_PF_CROSS_ENDIAN           = 6,
	VU_PF_CRYPTO_SESSION         = 7,
	VU_PF_PAGEFAULT              = 8,
	VU_PF_CONFIG                 = 9,
	VU_PF_BACKEND_SEND_FD        = 10,
	VU_PF_HOST_NOTIFIER          = 11,
	VU_PF_INFLIGHT_SHMFD         = 12,
	VU_PF_RESET_DEVICE           = 13,
	VU_PF_INBAND_NOTIFICATIONS   = 14,
	VU_PF_CONFIGURE_MEM_SLOTS    = 15,
	VU_PF_STATUS                 = 16,
	VU_PF_XEN_MMAP               = 17,
	VU_PF_SHARED_OBJECT          = 18,
	VU_PF_DEVICE_STATE           = 19,
	VU_PF_GET_VRING_BASE_INFLIGHT = 20,
	VU_PF_GPA_ADDRESSES          = 21,
	VU_PF_SHMEM                  = 22,
	VU_PF_COUNT
};

/* "Front-end message types": requests of the front-end. */
enum vu_fe_msg {
	VU_GET_FEATURES          = 1,
	VU_SET_FEATURES          = 2,
	VU_SET_OWNER             = 3,
	VU_RESET_OWNER           = 4,
	VU_SET_MEM_TABLE         = 5,
	VU_SET_LOG_BASE          = 6,
	VU_SET_LOG_FD            = 7,
	VU_SET_VRING_NUM         = 8,
	VU_SET_VRING_ADDR        = 9,
	VU_SET_VRING_BASE        = 10,
	VU_GET_VRING_BASE        = 11,
	VU_SET_VRING_KICK        = 12,
	VU_SET_VRING_CALL        = 13,
	VU_SET_VRING_ERR         = 14,
	VU_GET_PROTOCOL_FEATURES = 15,
	VU_SET_PROTOCOL_FEATURES = 16,
	VU_GET_QUEUE_NUM         = 17,
	VU_SET_VRING_ENABLE      = 18,
	VU_SEND_RARP             = 19,
	VU_NET_SET_MTU           = 20,
	VU_SET_BACKEND_REQ_FD    = 21,
	VU_IOTLB_MSG             = 22,
	VU_SET_VRING_ENDIAN      = 23,
	VU_GET_CONFIG            = 24,
	VU_SET_CONFIG            = 25,
	VU_CREATE_CRYPTO_SESSION = 26,
	VU_CLOSE_CRYPTO_SESSION  = 27,
	VU_POSTCOPY_ADVISE       = 28,
	VU_POSTCOPY_LISTEN       = 29,
	VU_POSTCOPY_END          = 30,
	VU_GET_INFLIGHT_FD       = 31,
	VU_SET_INFLIGHT_FD       = 32,
	VU_GPU_SET_SOCKET        = 33,
	VU_RESET_DEVICE          = 34,
	VU_VRING_KICK            = 35,
	VU_GET_MAX_MEM_SLOTS     = 36,
	VU_ADD_MEM_REG           = 37,
	VU_REM_MEM_REG           = 38,
	VU_SET_STATUS            = 39,
	VU_GET_STATUS            = 40,
	VU_GET_SHARED_OBJECT     = 41,
	VU_SET_DEVICE_STATE_FD   = 42,
	VU_CHECK_DEVICE_STATE    = 43,
	VU_GET_SHMEM_CONFIG      = 44,
	VU_FE_MSG_END
};

/* "Back-end message types": requests of the back-end on the channel of SET_BACKEND_REQ_FD. */
enum vu_be_msg {
	VU_BE_IOTLB_MSG            = 1,
	VU_BE_CONFIG_CHANGE        = 2,
	VU_BE_VRING_HOST_NOTIFIER  = 3,
	VU_BE_VRING_CALL           = 4,
	VU_BE_VRING_ERR            = 5,
	VU_BE_SHARED_OBJECT_ADD    = 6,
	VU_BE_SHARED_OBJECT_REMOVE = 7,
	VU_BE_SHARED_OBJECT_LOOKUP = 8,
	VU_BE_SHMEM_MAP            = 9,
	VU_BE_SHMEM_UNMAP          = 10,
	VU_BE_MSG_END
};

/* SET_VRING_KICK, _CALL, _ERR: u64 with the ring index and "no fd attached". */
#define VU_VRING_IDX_MASK 0xffu
#define VU_VRING_NOFD     0x100u

/* SET_CONFIG flags ("Virtio device config space"). */
#define VU_CONFIG_WRITABLE  0u
#define VU_CONFIG_MIGRATION 1u

#define VU_HDR_SIZE          12u
#define VU_MAX_TABLE_REGIONS 8u     /* SET_MEM_TABLE; also most fds of one message */
#define VU_MAX_FDS           8u
#define VU_MAX_MEM_SLOTS     509u   /* with CONFIGURE_MEM_SLOTS; what QEMU can use */
#define VU_MAX_CONFIG        256u   /* bytes of config space in one message */
#define VU_MAX_SHMEM         256u   /* shared memory regions of a device */
#define VU_MAX_QUEUES        256u   /* the ring index has 8 bits */
#define VU_MAX_RING_SIZE     32768u /* virtio 1.2, 2.7 and 2.8 */
#define VU_MAX_PAYLOAD       4096u

struct vu_hdr {
	uint32_t request;
	uint32_t flags;
	uint32_t size;              /* bytes of payload that follow */
};

/* "Memory regions description" */
struct vu_mem_region {
	uint64_t gpa;               /* guest physical address */
	uint64_t size;              /* bytes */
	uint64_t uva;               /* front-end user address: names memory in ring addresses and IOTLB */
	uint64_t mmap_offset;       /* where the region starts in its fd */
};

struct vu_mem_table {
	uint32_t nregions;
	uint32_t padding;
	struct vu_mem_region regions[VU_MAX_TABLE_REGIONS];
};

/* "Single memory region description" */
struct vu_mem_single {
	uint64_t padding;
	struct vu_mem_region region;
};

/* "Log description" */
struct vu_log {
	uint64_t mmap_size;
	uint64_t mmap_offset;
};

/* "Virtio device config space"; the payload is the 12 bytes plus size bytes. */
struct vu_config {
	uint32_t offset;
	uint32_t size;
	uint32_t flags;
	uint8_t data[VU_MAX_CONFIG];
};
#define VU_CONFIG_HDR_SIZE 12u

/* "Inflight description": 20 bytes by the text, 24 as QEMU and DPDK send it. */
struct vu_inflight {
	uint64_t mmap_size;
	uint64_t mmap_offset;
	uint16_t num_queues;
	uint16_t queue_size;
	uint32_t padding;
};
#define VU_INFLIGHT_MIN_SIZE 20u

/* GET_SHMEM_CONFIG reply (QEMU 11.1): sizes of the device's shared memory regions, 0 = none. */
struct vu_shmem_config {
	uint32_t nregions;
	uint32_t padding;
	uint64_t sizes[VU_MAX_SHMEM];
};

/* SHMEM_MAP and SHMEM_UNMAP; the fd of a MAP is attached. */
struct vu_shmem_map {
	uint8_t shmid;
	uint8_t padding[7];
	uint64_t fd_offset;
	uint64_t shm_offset;
	uint64_t len;
	uint64_t flags;
};
#define VU_SHMEM_MAP_RW 1u          /* flags: writable mapping wanted (QEMU 11.1 maps writable always) */

union vu_payload {
	uint64_t u64;
	struct vhost_vring_state state;
	struct vhost_vring_addr addr;
	struct vu_mem_table mem;
	struct vu_mem_single mem_single;
	struct vu_log log;
	struct vhost_iotlb_msg iotlb;
	struct vu_config config;
	struct vu_inflight inflight;
	struct vu_shmem_config shmem;
	struct vu_shmem_map map;
	uint8_t bytes[VU_MAX_PAYLOAD];
};

_Static_assert(sizeof(struct vu_hdr) == VU_HDR_SIZE, "vhost-user header is 12 bytes");
_Static_assert(sizeof(struct vhost_vring_state) == 8, "vring state is 8 bytes");
_Static_assert(sizeof(struct vhost_vring_addr) == 40, "vring address is 40 bytes");
_Static_assert(sizeof(struct vhost_iotlb_msg) == 32, "iotlb message is 32 bytes");
_Static_assert(sizeof(struct vu_mem_table) == 8 + 8 * 32, "memory table is 8 + 8 * 32 bytes");
_Static_assert(sizeof(struct vu_mem_single) == 40, "single region is 40 bytes");
_Static_assert(sizeof(struct vu_inflight) == 24, "inflight description is 24 bytes");
_Static_assert(sizeof(struct vu_shmem_map) == 40, "shmem map is 40 bytes");

#endif
