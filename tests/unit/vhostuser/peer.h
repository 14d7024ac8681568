/* SPDX-License-Identifier: BSD-3-Clause */
/* A back-end session with an owner that records what it is told, and a raw front-end to drive it. */
#ifndef TEST_VHOSTUSER_PEER_H
#define TEST_VHOSTUSER_PEER_H

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "vhostuser/backend.h"

#define ALL_PF (VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_LOG_SHMFD) | VP_BIT(VU_PF_RARP) | VP_BIT(VU_PF_REPLY_ACK) | \
		VP_BIT(VU_PF_MTU) | VP_BIT(VU_PF_BACKEND_REQ) | VP_BIT(VU_PF_CONFIG) | \
		VP_BIT(VU_PF_BACKEND_SEND_FD) | VP_BIT(VU_PF_INFLIGHT_SHMFD) | VP_BIT(VU_PF_RESET_DEVICE) | \
		VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS) | VP_BIT(VU_PF_STATUS) | VP_BIT(VU_PF_SHMEM))
#define ALL_F (VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_F_ACCESS_PLATFORM) | \
	       VP_BIT(VHOST_F_LOG_ALL) | VP_BIT(15) | VP_BIT(28) | VP_BIT(29))

struct peer {
	struct vu_backend *b;
	int fd;                     /* the front-end's end */
	int later;                  /* answer with VP_LATER where possible */
	int fail;                   /* -errno for the next callback, then 0 */
	int keep;                   /* take the fds that come */
	int kept[1024];
	unsigned int nkept;
	unsigned int calls;         /* callbacks made */
	unsigned int events;        /* events_changed made */
	unsigned int nregions;      /* as the owner has been told */
	unsigned int ring_q, ring_what, ring_calls;
	uint32_t stop_base;
	uint64_t features, mtu, log_size;
	struct vhost_iotlb_msg iotlb;
	struct vp_err err;
};

/* Offer features and pf; 4 queues. */
void peer_open(struct peer *p, uint64_t features, uint64_t pf, unsigned int msgs_per_sec);
void peer_close(struct peer *p);
/* SET_OWNER and, when pf is offered, all of it acknowledged; then SET_FEATURES. */
void peer_up(struct peer *p, uint64_t features, uint64_t pf);

/* Send one message; size as given, whatever the payload. nfds copies of an eventfd go with it. */
void peer_send(struct peer *p, uint32_t id, uint32_t flags, const void *payload, uint32_t size, unsigned int nfds);
void peer_send_fds(struct peer *p, uint32_t id, uint32_t flags, const void *payload, uint32_t size, const int *fds,
		   unsigned int nfds);
void peer_u64(struct peer *p, uint32_t id, uint32_t flags, uint64_t v, unsigned int nfds);
void peer_state(struct peer *p, uint32_t id, uint32_t flags, uint32_t index, uint32_t num);
/* Let the session run until it has read everything; its return value. */
int peer_run(struct peer *p);
/* Read one answer; false when there is none. Its fd is closed unless fd is given. */
bool peer_answer(struct peer *p, struct vu_msg *m, int *fd);
/* peer_run must give 0 and there must be an answer of 8 bytes to id: its value. */
uint64_t peer_expect_u64(struct peer *p, uint32_t id);
void peer_expect_silence(struct peer *p);

/* Set up ring q so that it runs. */
void peer_ring(struct peer *p, unsigned int q);

unsigned int count_fds(void);

#endif
