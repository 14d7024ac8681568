/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/**
 * @file abi.h
 * The guest ABI of a vhost-pci port: the memory that the host daemon and the device VM share.
 *
 * The authority is docs/spec.md; this file says the same to the compiler. The daemon, the guest
 * module, the agent and the library share it. It needs nothing but fixed-width types.
 *
 * **Threat model.** Both sides may write every byte of this memory at any moment, whoever is said to
 * own it, because no attachment enforces read-only mappings. The daemon therefore never reads back
 * what it wrote. It reads each command once, into a private copy, before it looks at it. The guest
 * trusts the daemon, which is part of the guest's host. But the guest's own user space may disturb
 * the memory, so the guest validates what it uses, too.
 *
 * **Encoding.** All integers are little-endian. The writer sets fields called reserved to zero; the
 * reader ignores them. Offsets and sizes are in bytes.
 */
#ifndef VHOST_PCI_ABI_H
#define VHOST_PCI_ABI_H

#include <linux/types.h>

/* ---- versions (docs/spec.md, "Versions") ------------------------------------------------- */

#define VHP_ABI_MAJOR		0u
#define VHP_ABI_MINOR		1u
#define VHP_ABI_VERSION		((VHP_ABI_MAJOR << 16) | VHP_ABI_MINOR)
#define VHP_ABI_VER_MAJOR(v)	((v) >> 16)
#define VHP_ABI_VER_MINOR(v)	((v) & 0xffffu)

/* ---- the control block (docs/spec.md, "Control block") ------------------------------------ */

#define VHP_CTRL_SIZE		0x20000u	/**< bytes, the same in every attachment */
#define VHP_CTRL_HEADER_OFF	0x00000u
#define VHP_CTRL_COMMAND_OFF	0x01000u
#define VHP_CTRL_COMMAND_SIZE	0x01000u
#define VHP_CTRL_STATE_OFF	0x10000u
#define VHP_CTRL_STATE_SIZE	0x10000u
#define VHP_CTRL_POOL_OFF	0x200000u	/**< where a pool starts if there is one */

#define VHP_MAGIC		"VHOSTPCI"	/**< 8 bytes, no terminator */
#define VHP_MAGIC_LE64		0x49435054534f4856ull	/**< the same as a little-endian number */

#define VHP_MAX_QUEUES		128u
#define VHP_MAX_REGIONS		509u
#define VHP_MAX_WINDOWS		509u
#define VHP_CONFIG_MAX		256u		/**< bytes of the served device's config space */
#define VHP_MAX_SIGNALS		(1u + VHP_MAX_QUEUES)	/**< numbered 0 (state), 1+q (queue q) */

/* header.attachment: how the port reaches the guest */
#define VHP_ATTACHMENT_IVSHMEM	1u
#define VHP_ATTACHMENT_SHMEM	2u
#define VHP_ATTACHMENT_LOCAL	3u

/** The first page. The daemon writes it once, before the guest can see it, and the magic last. */
struct vhp_abi_header {
	__u8	magic[8];		/**< 0x00 VHP_MAGIC */
	__le32	abi_version;		/**< 0x08 VHP_ABI_VERSION */
	__le32	header_size;		/**< 0x0c bytes that are defined: 0x80 */
	__le32	state_offset;		/**< 0x10 in the control block */
	__le32	state_size;		/**< 0x14 */
	__le32	command_offset;		/**< 0x18 */
	__le32	command_size;		/**< 0x1c */
	__le64	pool_offset;		/**< 0x20 in BAR2 / the memfd; 0 = no pool */
	__le64	pool_size;		/**< 0x28 bytes; 0 = no pool */
	__le32	attachment;		/**< 0x30 VHP_ATTACHMENT_* */
	__le32	max_queues;		/**< 0x34 1..VHP_MAX_QUEUES, of this port */
	__le32	nsignals;		/**< 0x38 to-guest signals that exist, at least 1 + max_queues */
	__le32	doorbell;		/**< 0x3c ivshmem: DOORBELL value for signal 0; else 0 */
	__u8	name[32];		/**< 0x40 port's name for people, NUL padded; may be empty */
	__u8	reserved[32];		/**< 0x60 */
};

/* ---- the state page (daemon to guest) ------------------------------------------------------- */

/* state.flags */
#define VHP_STATE_ATTACHED	(1u << 0)	/**< the daemon holds an accepted ATTACH */
#define VHP_STATE_COUNT		(1u << 1)	/**< the daemon asks for VHP_CMD_COUNTERS */
#define VHP_STATE_MAP		(1u << 2)	/**< VHP_CMD_MAP may ask for what no region covers */
#define VHP_STATE_LOGGED	(1u << 3)	/**< the driver VM migrates: its fast link's queues are copied */

/* state.link_status */
#define VHP_LINK_DOWN		0u
#define VHP_LINK_UP		1u

/* state.link_reason: why the link is down. Unknown values read as "down". */
#define VHP_REASON_NONE		0u	/**< it is up */
#define VHP_REASON_NO_LINK	1u	/**< no link is configured for this port */
#define VHP_REASON_NOT_ATTACHED	2u	/**< no accepted ATTACH */
#define VHP_REASON_NO_DRIVER	3u	/**< the driver VM is not there */
#define VHP_REASON_NOT_READY	4u	/**< the driver VM is there, its driver does not run */
#define VHP_REASON_WINDOW	5u	/**< a window could not be given, or is being plugged */
#define VHP_REASON_FEATURES	6u	/**< negotiated features outside the data path's support */
#define VHP_REASON_POLICY	7u	/**< policy refuses the link */
#define VHP_REASON_ADMIN	8u	/**< taken down by the administrator */
#define VHP_REASON_TIMEOUT	9u	/**< the guest did not answer a stop in time */
#define VHP_REASON_PROTOCOL	10u	/**< the driver VM's front-end broke the protocol */
#define VHP_REASON_DAEMON	11u	/**< the daemon is going away or restarting */
#define VHP_REASON_LIMIT	12u	/**< too many regions, windows or queues for this ABI */
#define VHP_REASON_PROFILE	13u	/**< what the back-end has is not known yet, or does not fit */
#define VHP_REASON_GRANT	14u	/**< grant mode: the driver VM has granted nothing */

/* state.mode */
#define VHP_MODE_NONE		0u
#define VHP_MODE_FAST		1u
#define VHP_MODE_GRANT		2u
#define VHP_MODE_COPY		3u

/* queue.flags */
#define VHP_QUEUE_ENABLED	(1u << 0)	/**< the driver VM enabled the queue: process it */
#define VHP_QUEUE_STARTED	(1u << 1)	/**< addresses, size and base are valid: a run exists */
#define VHP_QUEUE_STOP		(1u << 2)	/**< stop run `run` and answer QUEUE_STOPPED */
#define VHP_QUEUE_BROKEN	(1u << 3)	/**< unusable until the driver VM restarts it */

/** A queue of the link, in the state page. */
struct vhp_abi_queue {
	__le64	desc_addr;		/**< 0x00 link addresses (GPA or IOVA), see regions[] */
	__le64	avail_addr;		/**< 0x08 split: available ring; packed: driver area */
	__le64	used_addr;		/**< 0x10 split: used ring; packed: device area */
	__le32	size;			/**< 0x18 entries */
	__le32	base;			/**< 0x1c where to go on, encoded as VHOST_SET_VRING_BASE */
	__le32	flags;			/**< 0x20 VHP_QUEUE_* */
	__le32	run;			/**< 0x24 counts the starts of this queue, never 0 once started */
	__le32	kick_signal;		/**< 0x28 to-guest signal that carries kicks; usually 1 + q */
	__le32	doorbell;		/**< 0x2c ivshmem: DOORBELL value that calls; others: signal 1 + q */
	__u8	reserved[16];		/**< 0x30 */
};

/* window.kind: where the guest finds the memory; what the locator means depends on it */
#define VHP_WINDOW_NONE		0u	/**< empty slot */
#define VHP_WINDOW_POOL		1u	/**< BAR2 / control memfd, locator = byte offset in it */
#define VHP_WINDOW_IVSHMEM	2u	/**< an ivshmem device, locator = its IVPosition */
#define VHP_WINDOW_SHMEM	3u	/**< shared memory region 1, locator = byte offset in it */
#define VHP_WINDOW_FD		4u	/**< local attachment, locator = key sent along with the fd */

/* window.flags */
#define VHP_WINDOW_READY	(1u << 0)	/**< the daemon has done its part, it may be used */

/** A piece of memory that the guest can map, in the state page. */
struct vhp_abi_window {
	__le64	size;			/**< 0x00 bytes, a multiple of 4 KiB */
	__le64	locator;		/**< 0x08 */
	__le32	serial;			/**< 0x10 changes whenever the slot gets other memory, never 0 */
	__le32	kind;			/**< 0x14 VHP_WINDOW_* */
	__le32	flags;			/**< 0x18 */
	__le32	reserved;		/**< 0x1c */
};

/* region.flags */
#define VHP_REGION_READ		(1u << 0)	/**< the device VM may read */
#define VHP_REGION_WRITE	(1u << 1)	/**< the device VM may write */
#define VHP_REGION_INFLIGHT	(1u << 2)	/**< no memory of the driver VM's: the in-flight area */

/** The range [addr, addr + size) of link addresses lies at `offset` of windows[window]. */
struct vhp_abi_region {
	__le64	addr;			/**< 0x00 link address: GPA, or IOVA, or pool address */
	__le64	size;			/**< 0x08 bytes, > 0; addr + size does not wrap */
	__le64	offset;			/**< 0x10 in the window; offset + size <= window size */
	__le32	window;			/**< 0x18 index into windows[] */
	__le32	flags;			/**< 0x1c VHP_REGION_* */
};

/* answer.status */
#define VHP_ST_OK		0u
#define VHP_ST_UNKNOWN		1u	/**< unknown opcode */
#define VHP_ST_INVALID		2u	/**< an argument is out of range */
#define VHP_ST_VERSION		3u	/**< ABI major version not served; value[0] = ours */
#define VHP_ST_FEATURES		4u	/**< value[0..1] = required features that are missing */
#define VHP_ST_DEVICE_TYPE	5u	/**< value[0] = type of the link's device */
#define VHP_ST_NOT_ATTACHED	6u	/**< the command needs an accepted ATTACH */
#define VHP_ST_STALE		7u	/**< names a run that is over; harmless */
#define VHP_ST_POLICY		8u	/**< policy refuses; state.link_reason says more */
#define VHP_ST_LIMIT		9u	/**< too many outstanding or too often */
/** the data path does not fit the link's profile, or has not said what it is */
#define VHP_ST_PROFILE		10u
#define VHP_ST_REFUSED		11u	/**< MAP: the driver VM does not give that range */

/** The daemon's answer to the last command, in the state page. */
struct vhp_abi_answer {
	__le32	seq;			/**< 0x00 command that this answers; 0 = none yet */
	__le32	opcode;			/**< 0x04 its opcode, as read */
	__le32	status;			/**< 0x08 VHP_ST_* */
	__le32	reserved;		/**< 0x0c */
	__le64	value[6];		/**< 0x10 depends on opcode and status; else 0 */
};

/** The state page: everything that the daemon tells the guest. */
struct vhp_abi_state {
	__le32	generation;		/**< 0x0000 seqlock: odd while the daemon writes */
	__le32	abi_version;		/**< 0x0004 */
	__le32	flags;			/**< 0x0008 VHP_STATE_* */
	__le32	link_status;		/**< 0x000c VHP_LINK_* */
	__le32	link_reason;		/**< 0x0010 VHP_REASON_* */
	__le32	mode;			/**< 0x0014 VHP_MODE_* */
	__le64	link_epoch;		/**< 0x0018 counts the attaches of a driver VM */
	__le32	device_type;		/**< 0x0020 virtio ID of the served device */
	__le32	max_queues;		/**< 0x0024 of the link, <= header.max_queues */
	__le32	nqueues;		/**< 0x0028 entries of queues[] in use (highest + 1) */
	__le32	nregions;		/**< 0x002c entries of regions[] */
	__le32	nwindows;		/**< 0x0030 entries of windows[] to look at (highest + 1) */
	__le32	config_size;		/**< 0x0034 bytes of config[] that are valid */
	__le32	config_generation;	/**< 0x0038 changes whenever config[] does */
	__le32	regions_generation;	/**< 0x003c changes whenever windows[] or regions[] do */
	__le64	features[2];		/**< 0x0040 negotiated with the driver VM, 128 bits */
	__le64	required_features[2];	/**< 0x0050 what ATTACH must support */
	__le64	offered_features[2];	/**< 0x0060 what the driver VM is offered */
	__le32	set_generation;		/**< 0x0070 changes whenever the driver VM has written its config space */
	__le32	set_offset;		/**< 0x0074 the last write: these bytes of set_config[] */
	__le32	set_size;		/**< 0x0078 0 = it has written nothing */
	__le32	inflight_queues;	/**< 0x007c that the in-flight area has room for; 0 = there is none */
	__le32	inflight_entries;	/**< 0x0080 of each of them */
	__u8	reserved0[0x7c];	/**< 0x0084 */
	struct vhp_abi_answer answer;	/**< 0x0100 */
	__u8	reserved1[0xc0];	/**< 0x0140 */
	__u8	config[VHP_CONFIG_MAX];	/**< 0x0200 */
	__u8	set_config[VHP_CONFIG_MAX]; /**< 0x0300 */
	__u8	reserved2[0xc00];	/**< 0x0400 */
	struct vhp_abi_queue queues[VHP_MAX_QUEUES];	/**< 0x1000 */
	__u8	reserved3[0x5000];	/**< 0x3000 */
	struct vhp_abi_window windows[VHP_MAX_WINDOWS];	/**< 0x8000 */
	__u8	reserved4[0x60];	/**< 0xbfa0 */
	struct vhp_abi_region regions[VHP_MAX_REGIONS];	/**< 0xc000 */
	__u8	reserved5[0x60];	/**< 0xffa0 */
};

/* ---- the command page (guest to daemon) ------------------------------------------------------ */

#define VHP_CMD_NONE		0u
#define VHP_CMD_ATTACH		1u
#define VHP_CMD_DETACH		2u
#define VHP_CMD_QUEUE_STOPPED	3u
#define VHP_CMD_SYNC		4u
#define VHP_CMD_MAP		5u	/**< a range that no region covers is needed */
#define VHP_CMD_UNMAP		6u	/**< a range is not needed any more */
#define VHP_CMD_CONFIG		7u	/**< a part of the data path's config space, before BACKEND */
#define VHP_CMD_BACKEND		8u	/**< what the data path is */
#define VHP_CMD_COUNTERS	9u	/**< what it has moved since ATTACH; only with VHP_STATE_COUNT */

/* VHP_CMD_ATTACH: args[] */
#define VHP_ATTACH_ABI		0u	/**< the guest's VHP_ABI_VERSION */
#define VHP_ATTACH_FEATURES0	1u	/**< features 0..63 that the data path supports */
#define VHP_ATTACH_FEATURES1	2u	/**< features 64..127 */
#define VHP_ATTACH_TYPE		3u	/**< virtio ID that the data path serves; 0 = any */
#define VHP_ATTACH_FLAGS	4u

#define VHP_ATTACH_F_INFLIGHT	(1ull << 0)	/**< it keeps the account of open requests in the in-flight area */

/* VHP_CMD_QUEUE_STOPPED: args[] */
#define VHP_STOPPED_QUEUE	0u
#define VHP_STOPPED_RUN		1u	/**< queue.run that was stopped */
#define VHP_STOPPED_BASE	2u	/**< next index, encoded as VHOST_GET_VRING_BASE */
#define VHP_STOPPED_FLAGS	3u

#define VHP_STOPPED_F_BROKEN	(1ull << 0)	/**< the ring is malformed; base is not meaningful, but with REFUSED */
#define VHP_STOPPED_F_NO_BASE	(1ull << 1)	/**< base is unknown: the daemon uses the used index */
#define VHP_STOPPED_F_REFUSED	(1ull << 2)	/**< with BROKEN: for no more than that VHP_CMD_MAP was refused */

/* VHP_CMD_SYNC: args[]. The guest uses nothing older than this regions_generation any more. */
#define VHP_SYNC_REGIONS	0u

/* VHP_CMD_MAP: args[]; VHP_CMD_UNMAP has the first two. */
#define VHP_MAP_ADDR		0u
#define VHP_MAP_SIZE		1u	/**< at most VHP_MAP_MAX */
#define VHP_MAP_ACCESS		2u	/**< VHP_REGION_READ, VHP_REGION_WRITE or both */

#define VHP_MAP_MAX		(1u << 20)

#define VHP_CMD_NARGS		15u

/* VHP_CMD_CONFIG: args[]. The words from VHP_CONFIG_DATA on carry the bytes at the offset, little-endian. */
#define VHP_CONFIG_OFFSET	0u
#define VHP_CONFIG_SIZE		1u
#define VHP_CONFIG_DATA		2u
#define VHP_CONFIG_PART		((VHP_CMD_NARGS - VHP_CONFIG_DATA) * 8u)	/**< bytes that one command carries */

/* VHP_CMD_BACKEND: args[] */
#define VHP_BACKEND_FEATURES0	0u	/**< of the data path, as for ATTACH */
#define VHP_BACKEND_FEATURES1	1u
#define VHP_BACKEND_TYPE	2u	/**< virtio ID that it serves; 0 = any */
#define VHP_BACKEND_QUEUES	3u	/**< virtqueues that it has; 0 = it does not say */
#define VHP_BACKEND_CONFIG	4u	/**< bytes of config space told by CONFIG before; 0 = it has none */

/* VHP_CMD_COUNTERS: args[] */
#define VHP_COUNT_FROM_PACKETS	0u	/**< from the driver VM */
#define VHP_COUNT_FROM_BYTES	1u
#define VHP_COUNT_FROM_DROPPED	2u
#define VHP_COUNT_TO_PACKETS	3u	/**< to it */
#define VHP_COUNT_TO_BYTES	4u
#define VHP_COUNT_TO_DROPPED	5u
#define VHP_COUNTS		6u

/** The command page. The guest writes args, then opcode, then seq (with release), then raises signal 0. */
struct vhp_abi_command {
	__le32	seq;			/**< 0x00 differs from the last answered one, never 0 */
	__le32	opcode;			/**< 0x04 VHP_CMD_* */
	__le64	args[VHP_CMD_NARGS];	/**< 0x08 */
};

/* ---- the control block as a whole -------------------------------------------------------------- */

/** The control block as a whole. */
struct vhp_abi_control {
	struct vhp_abi_header header;		/**< 0x00000 */
	__u8	reserved0[0xf80];		/**< 0x00080 */
	struct vhp_abi_command command;		/**< 0x01000 */
	__u8	reserved1[0xf80];		/**< 0x01080 */
	__u8	reserved2[0xe000];		/**< 0x02000 */
	struct vhp_abi_state state;		/**< 0x10000 */
};

/* ---- ivshmem binding ------------------------------------------------------------------------ */

#define VHP_IVSHMEM_VENDOR	0x1af4u
#define VHP_IVSHMEM_DEVICE	0x1110u
#define VHP_IVSHMEM_REG_IVPOS	0x08u		/**< BAR0: IVPosition, read-only */
#define VHP_IVSHMEM_REG_DOORBELL 0x0cu		/**< BAR0: (peer << 16) | vector, write-only */
#define VHP_IVSHMEM_WINDOW_ID	0x8000u		/**< IVPosition >= this: a window; below: a port */
#define VHP_IVSHMEM_ID_MAX	0xffffu
#define VHP_IVSHMEM_DOORBELL(peer, vec)	(((__u32)(peer) << 16) | ((__u32)(vec) & 0xffffu))

/* ---- shmem binding ---------------------------------------------------------------------------- */

#define VHP_SHMEM_VIRTIO_ID	22u
#define VHP_SHMEM_REGION_CTRL	0u		/**< shared memory region ids */
#define VHP_SHMEM_REGION_APERTURE 1u

/** Config space of the generic device. Read it once: every byte costs the daemon a message. */
struct vhp_abi_shmem_config {
	__u8	magic[8];		/**< 0x00 VHP_MAGIC */
	__le32	abi_version;		/**< 0x08 */
	__le32	nsignals;		/**< 0x0c queues that carry signals: 0..nsignals-1 */
};

/* ---- offsets and sizes ---------------------------------------------------------------------- */

#ifdef __cplusplus
#define VHP_ASSERT(c, m)	static_assert(c, m)
#else
#define VHP_ASSERT(c, m)	_Static_assert(c, m)
#endif
#define VHP_AT(type, field, off) \
	VHP_ASSERT(__builtin_offsetof(struct type, field) == (off), #type "." #field)
#define VHP_SIZE(type, size)	VHP_ASSERT(sizeof(struct type) == (size), #type)

VHP_AT(vhp_abi_header, magic, 0x00);
VHP_AT(vhp_abi_header, abi_version, 0x08);
VHP_AT(vhp_abi_header, header_size, 0x0c);
VHP_AT(vhp_abi_header, state_offset, 0x10);
VHP_AT(vhp_abi_header, state_size, 0x14);
VHP_AT(vhp_abi_header, command_offset, 0x18);
VHP_AT(vhp_abi_header, command_size, 0x1c);
VHP_AT(vhp_abi_header, pool_offset, 0x20);
VHP_AT(vhp_abi_header, pool_size, 0x28);
VHP_AT(vhp_abi_header, attachment, 0x30);
VHP_AT(vhp_abi_header, max_queues, 0x34);
VHP_AT(vhp_abi_header, nsignals, 0x38);
VHP_AT(vhp_abi_header, doorbell, 0x3c);
VHP_AT(vhp_abi_header, name, 0x40);
VHP_SIZE(vhp_abi_header, 0x80);

VHP_AT(vhp_abi_queue, desc_addr, 0x00);
VHP_AT(vhp_abi_queue, avail_addr, 0x08);
VHP_AT(vhp_abi_queue, used_addr, 0x10);
VHP_AT(vhp_abi_queue, size, 0x18);
VHP_AT(vhp_abi_queue, base, 0x1c);
VHP_AT(vhp_abi_queue, flags, 0x20);
VHP_AT(vhp_abi_queue, run, 0x24);
VHP_AT(vhp_abi_queue, kick_signal, 0x28);
VHP_AT(vhp_abi_queue, doorbell, 0x2c);
VHP_SIZE(vhp_abi_queue, 0x40);

VHP_AT(vhp_abi_window, size, 0x00);
VHP_AT(vhp_abi_window, locator, 0x08);
VHP_AT(vhp_abi_window, serial, 0x10);
VHP_AT(vhp_abi_window, kind, 0x14);
VHP_AT(vhp_abi_window, flags, 0x18);
VHP_SIZE(vhp_abi_window, 0x20);

VHP_AT(vhp_abi_region, addr, 0x00);
VHP_AT(vhp_abi_region, size, 0x08);
VHP_AT(vhp_abi_region, offset, 0x10);
VHP_AT(vhp_abi_region, window, 0x18);
VHP_AT(vhp_abi_region, flags, 0x1c);
VHP_SIZE(vhp_abi_region, 0x20);

VHP_AT(vhp_abi_answer, seq, 0x00);
VHP_AT(vhp_abi_answer, opcode, 0x04);
VHP_AT(vhp_abi_answer, status, 0x08);
VHP_AT(vhp_abi_answer, value, 0x10);
VHP_SIZE(vhp_abi_answer, 0x40);

VHP_AT(vhp_abi_state, generation, 0x0000);
VHP_AT(vhp_abi_state, abi_version, 0x0004);
VHP_AT(vhp_abi_state, flags, 0x0008);
VHP_AT(vhp_abi_state, link_status, 0x000c);
VHP_AT(vhp_abi_state, link_reason, 0x0010);
VHP_AT(vhp_abi_state, mode, 0x0014);
VHP_AT(vhp_abi_state, link_epoch, 0x0018);
VHP_AT(vhp_abi_state, device_type, 0x0020);
VHP_AT(vhp_abi_state, max_queues, 0x0024);
VHP_AT(vhp_abi_state, nqueues, 0x0028);
VHP_AT(vhp_abi_state, nregions, 0x002c);
VHP_AT(vhp_abi_state, nwindows, 0x0030);
VHP_AT(vhp_abi_state, config_size, 0x0034);
VHP_AT(vhp_abi_state, config_generation, 0x0038);
VHP_AT(vhp_abi_state, regions_generation, 0x003c);
VHP_AT(vhp_abi_state, features, 0x0040);
VHP_AT(vhp_abi_state, required_features, 0x0050);
VHP_AT(vhp_abi_state, offered_features, 0x0060);
VHP_AT(vhp_abi_state, set_generation, 0x0070);
VHP_AT(vhp_abi_state, inflight_queues, 0x007c);
VHP_AT(vhp_abi_state, answer, 0x0100);
VHP_AT(vhp_abi_state, config, 0x0200);
VHP_AT(vhp_abi_state, set_config, 0x0300);
VHP_AT(vhp_abi_state, queues, 0x1000);
VHP_AT(vhp_abi_state, windows, 0x8000);
VHP_AT(vhp_abi_state, regions, 0xc000);
VHP_SIZE(vhp_abi_state, VHP_CTRL_STATE_SIZE);

VHP_AT(vhp_abi_command, seq, 0x00);
VHP_AT(vhp_abi_command, opcode, 0x04);
VHP_AT(vhp_abi_command, args, 0x08);
VHP_SIZE(vhp_abi_command, 0x80);

VHP_AT(vhp_abi_control, header, VHP_CTRL_HEADER_OFF);
VHP_AT(vhp_abi_control, command, VHP_CTRL_COMMAND_OFF);
VHP_AT(vhp_abi_control, state, VHP_CTRL_STATE_OFF);
VHP_SIZE(vhp_abi_control, VHP_CTRL_SIZE);

VHP_SIZE(vhp_abi_shmem_config, 0x10);

#endif /* VHOST_PCI_ABI_H */
