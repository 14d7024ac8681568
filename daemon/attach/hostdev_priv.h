/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two files of a session with a back-end on the host share: hostdev_session.c, hostdev_queues.c. */
#ifndef VP_DAEMON_HOSTDEV_PRIV_H
#define VP_DAEMON_HOSTDEV_PRIV_H

#include <endian.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "attach/hostdev.h"
#include "base/util.h"

#define OURS (VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(VU_F_PROTOCOL_FEATURES))

#define HOSTDEV_START_DONE 5u  /* messages that start a ring */

VP_INLINE const struct vhp_abi_state *page(const struct hostdev *h)
{
	return &h->ctrl->state;
}

VP_INLINE bool is_net(const struct hostdev *h)
{
	return le32toh(page(h)->device_type) == VIRTIO_ID_NET;
}

/* It has the driver VM's memory. That of a link which is logged says copy, and has the pool besides. */
VP_INLINE bool is_fast(const struct hostdev *h)
{
	return le32toh(page(h)->mode) == VHP_MODE_FAST || le32toh(page(h)->flags) & VHP_STATE_LOGGED;
}

VP_INLINE bool has_pf(const struct hostdev *h, unsigned bit)
{
	return h->s.pf >> bit & 1;
}

/* hostdev_session.c: one message. False: the back-end was dropped. */
bool hostdev_send_fds(struct hostdev *h, struct vu_msg *m, const int *fds, unsigned nfds);
bool hostdev_send(struct hostdev *h, struct vu_msg *m, const int *fd);
bool hostdev_send_u64(struct hostdev *h, uint32_t request, uint64_t v, const int *fd);
bool hostdev_send_ring(struct hostdev *h, uint32_t request, unsigned q, uint32_t num);

/* hostdev_state.c. Steps: true when something was done. */
bool hostdev_step_load(struct hostdev *h);
bool hostdev_step_save(struct hostdev *h);
/* SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE were answered. */
void hostdev_state_begun(struct hostdev *h, uint64_t answer);
void hostdev_state_checked(struct hostdev *h, uint64_t answer);

/* hostdev_queues.c */
uint32_t hostdev_queue_flags(const struct hostdev *h, unsigned q);
/* The run that the page shows as started is the one that we have. */
bool hostdev_current(const struct hostdev *h, unsigned q);
bool hostdev_runs(const struct hostdev *h);
/* Steps: true when something was done. Features and memory, before queues run. */
bool hostdev_step_setup(struct hostdev *h);
bool hostdev_step_start(struct hostdev *h, unsigned q);
/* Memory came or went while queues run. */
bool hostdev_step_memory(struct hostdev *h);

#endif
