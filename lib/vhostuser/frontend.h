/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The front-end's side of a vhost-user connection. It talks to an unmodified back-end (DPDK net_vhost,
 * passt, Open vSwitch) for the owner of the rings and the memory. It is synchronous: every call ends
 * within the deadline given at creation. So it is for agents and tests, not for the daemon's event
 * loop.
 *
 * fds given to a call stay the caller's. Errors are 0 or -errno with a sentence in *e (which may be
 * NULL): -ETIMEDOUT the back-end did not answer in time, -EREMOTEIO it refused, -EOPNOTSUPP the feature
 * was not negotiated, -ECONNRESET it closed the connection. After -ETIMEDOUT and stream errors the
 * connection is closed: make a new one.
 *
 * Threads: one thread for each connection.
 */
#ifndef VP_VHOSTUSER_FRONTEND_H
#define VP_VHOSTUSER_FRONTEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "vhostuser/codec.h"
#include "vhostuser/proto.h"

struct vu_frontend;

/*
 * Connect to the UNIX socket path. Tries until timeout_ms is over while the back-end does not listen
 * yet. NULL on failure.
 */
struct vu_frontend *vu_frontend_connect(const char *path, unsigned int timeout_ms, struct vp_err *e);
/* From a connected socket (taken over, also on failure). timeout_ms bounds each later call. */
struct vu_frontend *vu_frontend_new(int fd, unsigned int timeout_ms, struct vp_err *e);
void vu_frontend_destroy(struct vu_frontend *f);
/* For poll: POLLHUP or POLLIN while nothing was asked means that the back-end has gone. -1 when closed. */
int vu_frontend_fd(const struct vu_frontend *f);

/*
 * SET_OWNER, features, and protocol features as far as the back-end has them. pf is masked with what
 * this front-end implements. Sets up the back-end's request channel when BACKEND_REQ is among them.
 * *offered (may be NULL) gets the back-end's features. Does not yet acknowledge virtio features.
 */
int vu_frontend_negotiate(struct vu_frontend *f, uint64_t pf, uint64_t *offered, struct vp_err *e);
/* Acknowledge features. -EINVAL: some were not offered. VU_F_PROTOCOL_FEATURES is added by itself. */
int vu_frontend_set_features(struct vu_frontend *f, uint64_t features, struct vp_err *e);
uint64_t vu_frontend_pf(const struct vu_frontend *f);
/* The number of queues that the back-end has (MQ), or fallback without MQ. */
int vu_frontend_queue_num(struct vu_frontend *f, unsigned int fallback, unsigned int *n, struct vp_err *e);

/*
 * Make r[0..n) the memory table. With CONFIGURE_MEM_SLOTS it goes region by region, and only the
 * differences to the previous table. Else it is one SET_MEM_TABLE (-E2BIG for more than
 * VU_MAX_TABLE_REGIONS).
 */
int vu_frontend_set_mem(struct vu_frontend *f, const struct vu_mem_region *r, const int *fds, unsigned int n,
			struct vp_err *e);

struct vu_frontend_ring {
	uint32_t num, base;         /* base as in struct vu_ring */
	uint64_t desc, avail, used; /* user addresses as in the memory table, or IOVAs */
	uint64_t log_addr;
	bool log;
	int kick_fd, call_fd, err_fd; /* -1: none (kick: the back-end polls) */
};

/* NUM, BASE, ADDR, CALL, ERR, KICK. Enabled only by vu_frontend_enable (if protocol features were negotiated). */
int vu_frontend_start_ring(struct vu_frontend *f, unsigned int q, const struct vu_frontend_ring *r, struct vp_err *e);
int vu_frontend_enable(struct vu_frontend *f, unsigned int q, bool on, struct vp_err *e);
/* GET_VRING_BASE. */
int vu_frontend_stop_ring(struct vu_frontend *f, unsigned int q, uint32_t *base, struct vp_err *e);
/* Replace the call fd of a ring, -1 = none. */
int vu_frontend_set_call(struct vu_frontend *f, unsigned int q, int call_fd, struct vp_err *e);

int vu_frontend_get_config(struct vu_frontend *f, uint32_t off, uint32_t len, uint8_t *buf, struct vp_err *e);
int vu_frontend_set_config(struct vu_frontend *f, uint32_t off, uint32_t len, const uint8_t *buf, struct vp_err *e);
/*
 * How large an area for the account of open requests has to be (GET_INFLIGHT_FD; memory that the back-end makes is let
 * go of), and: keep it here, before rings start. After vu_frontend_set_features().
 */
int vu_frontend_inflight_size(struct vu_frontend *f, unsigned int queues, unsigned int entries, uint64_t *size,
			      struct vp_err *e);
int vu_frontend_set_inflight(struct vu_frontend *f, unsigned int queues, unsigned int entries, int fd, uint64_t offset,
			     uint64_t size, struct vp_err *e);
int vu_frontend_set_status(struct vu_frontend *f, uint8_t status, struct vp_err *e);
int vu_frontend_get_status(struct vu_frontend *f, uint8_t *status, struct vp_err *e);
int vu_frontend_set_mtu(struct vu_frontend *f, uint16_t mtu, struct vp_err *e);
int vu_frontend_reset_device(struct vu_frontend *f, struct vp_err *e);
int vu_frontend_set_log(struct vu_frontend *f, int fd, uint64_t size, uint64_t offset, struct vp_err *e);
int vu_frontend_iotlb(struct vu_frontend *f, const struct vhost_iotlb_msg *m, struct vp_err *e);

/*
 * DEVICE_STATE: what a back-end knows beyond its rings, such as the files that a driver has open. It is saved while no
 * ring runs, and loaded before the first one starts. *data is malloc()ed. A back-end that takes longer than timeout_ms
 * for the next part has failed. In frontend_state.c.
 */
int vu_frontend_save_state(struct vu_frontend *f, void **data, size_t *size, struct vp_err *e);
int vu_frontend_load_state(struct vu_frontend *f, const void *data, size_t size, struct vp_err *e);
unsigned int vu_frontend_timeout_ms(const struct vu_frontend *f);

/*
 * Requests of the back-end. Poll this fd (-1 = none) and call vu_frontend_serve when it is readable. It
 * hands each request to the handler. The handler's result (0 or -errno) is the answer, if one was asked
 * for. The handler's fd is -1 or the first fd of the message; it takes the fd by storing -1. Calls that
 * wait for the main channel serve requests too, when a handler is set.
 */
typedef int (*vu_frontend_req)(void *ctx, uint32_t request, const union vu_payload *p, uint32_t size, int *fd);
void vu_frontend_on_request(struct vu_frontend *f, vu_frontend_req handler, void *ctx);
int vu_frontend_req_fd(const struct vu_frontend *f);
int vu_frontend_serve(struct vu_frontend *f, struct vp_err *e);

/*
 * One request as it is, for tests and rare messages: the answer (if info says there is one) goes to *reply, its first
 * fd to *rfd.
 */
int vu_frontend_call(struct vu_frontend *f, const struct vu_msg *m, const int *fds, unsigned int nfds,
		     struct vu_msg *reply, int *rfd, struct vp_err *e);

#endif
