/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state page of a vhost-pci port as its guest reads it: one consistent, private, validated copy
 * (docs/spec.md, section 3). The agent and libvhostpci share this code.
 *
 * Security model: the page is shared memory. It is copied under its seqlock into private memory, once;
 * only the copy is validated and used. A page that is invalid in itself is reported, and the caller
 * treats the link as down.
 */
#ifndef VP_STATEPAGE_STATE_H
#define VP_STATEPAGE_STATE_H

#include <endian.h>

#include <vhost-pci/abi.h>

#include "base/err.h"
#include "base/util.h"

/* Native byte order; the fields are those of the ABI structures of the same names. */
struct vp_state_queue {
	uint64_t desc, avail, used;
	uint32_t size, base, flags, run, kick_signal, doorbell;
};

struct vp_state_window {
	uint64_t size, locator;
	uint32_t serial, kind, flags;
};

struct vp_state_region {
	uint64_t addr, size, offset;
	uint32_t window, flags;
};

struct vp_state {
	uint32_t generation, abi_version, flags;
	uint32_t link_status, link_reason, mode, device_type, max_queues;
	uint32_t nqueues, nregions, nwindows;
	uint32_t config_size, config_generation, regions_generation;
	uint32_t set_generation, set_offset, set_size; /* what the driver VM wrote last into its config space */
	uint32_t inflight_queues, inflight_entries;
	uint64_t link_epoch;
	uint64_t features[2], required_features[2], offered_features[2];
	uint32_t answer_seq, answer_opcode, answer_status;
	uint64_t answer_value[6];
	uint8_t  config[VHP_CONFIG_MAX], set_config[VHP_CONFIG_MAX];
	struct vp_state_queue  queues[VHP_MAX_QUEUES];
	struct vp_state_window windows[VHP_MAX_WINDOWS];
	struct vp_state_region regions[VHP_MAX_REGIONS];
};

/*
 * Is this the control block (VHP_CTRL_SIZE bytes, mapped at ctrl) of a port that we can serve? 0.
 * -ENODEV: no magic. -EPROTO: another version or layout.
 */
int vp_state_header_check(const void *ctrl, struct vp_err *e);

/* The page's generation, by one load. It differs from the last copy's when there is something new to read. */
VP_INLINE uint32_t vp_state_generation(const void *ctrl)
{
	const struct vhp_abi_control *c = (const struct vhp_abi_control *)ctrl;

	return le32toh(__atomic_load_n(&c->state.generation, __ATOMIC_ACQUIRE));
}

/*
 * Copy the state out of the control block and validate it. 0. -EAGAIN: the writer did not finish within
 * 100 ms; out is not usable, try at the next signal. -EPROTO: another version, counts beyond the
 * limits, regions that wrap, overlap or leave their window, windows of no size, queues that are to stop
 * but do not run. e then says which; out holds the header fields, and link_status is down.
 */
int vp_state_read(const void *ctrl, struct vp_state *out, struct vp_err *e);

/*
 * The region that holds all of [addr, addr + len), and where in its window that is. NULL: there is
 * none, or the range crosses a border. need is a mask of VHP_REGION_*.
 */
const struct vp_state_region *vp_state_region_find(const struct vp_state *s, uint64_t addr,
						 uint64_t len, uint32_t need, uint64_t *offset);

/*
 * Words for people. Unknown values give "unknown". An unknown reason gives its number, in a buffer of
 * the calling thread that lasts until its next call.
 */
const char *vp_state_reason_str(uint32_t reason);
const char *vp_state_mode_str(uint32_t mode);
const char *vp_state_status_str(uint32_t status); /* of an answer */

#endif
