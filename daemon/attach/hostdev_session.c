/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The session with a vhost-user back-end on the host (hostdev.h). Level-triggered, as the agent in a device VM is: the
 * state page says what is asked, h->s what was done; one step at a time makes up the difference. A step sends one
 * message, or gives the port one command.
 *
 * The state page is read where it is: nobody but this thread writes it, and no other process has it.
 */
#include "attach/hostdev_priv.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/vhost_types.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

#define WANTED_PF                                                                                     \
	(VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_MTU) | VP_BIT(VU_PF_BACKEND_REQ) | \
	 VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_DEVICE_STATE))

/* What a back-end need not know of: the driver VM's VMM and this daemon provide it. As for the agent's data paths. */
#define ANY_NEUTRAL VP_BIT(VIRTIO_F_ACCESS_PLATFORM)
#define NET_NEUTRAL                                                                                        \
	(ANY_NEUTRAL | VP_BIT(VIRTIO_NET_F_MTU) | VP_BIT(VIRTIO_NET_F_MAC) | VP_BIT(VIRTIO_NET_F_STATUS) | \
	 VP_BIT(VIRTIO_NET_F_CTRL_VQ) | VP_BIT(VIRTIO_NET_F_CTRL_RX) | VP_BIT(VIRTIO_NET_F_CTRL_VLAN) |    \
	 VP_BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) | VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) |                        \
	 VP_BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) | VP_BIT(VIRTIO_NET_F_STANDBY) | VP_BIT(VIRTIO_NET_F_SPEED_DUPLEX))

#define CONFIG_AGAIN_US 100000u  /* between two readings of a config space that changes and changes */
#define REFUSED_US      5000000u /* a back-end that does not fit is asked again what it has */
#define ATTACH_AGAIN_US 1000000u

enum { HELLO_OWNER, HELLO_FEATURES, HELLO_GET_PF, HELLO_SET_PF, HELLO_CHANNEL, HELLO_QUEUES, HELLO_STATE, HELLO_DONE };

/* ---- messages -------------------------------------------------------------------------------- */

static void done(struct hostdev *h, uint32_t request, const struct vu_msg *reply);

bool hostdev_send_fds(struct hostdev *h, struct vu_msg *m, const int *fds, unsigned nfds)
{
	const struct vu_msg_info *info = vu_msg_info(VU_FROM_FRONTEND, m->hdr.request);
	bool answer = info && info->reply == VU_REPLY_ALWAYS;
	struct vp_err e = { 0 };

	m->hdr.flags = VU_FLAG_VERSION;
	if (!answer && has_pf(h, VU_PF_REPLY_ACK)) {
		m->hdr.flags |= VU_FLAG_NEED_REPLY;
		answer = true;
	}
	if (vu_conn_send(&h->main, m, fds, nfds, &e)) {
		hostdev_drop(h, e.code != -ECONNRESET && e.code != -EPIPE, e.msg);
		return false;
	}
	h->s.request = m->hdr.request;
	h->s.waits = answer;
	hostdev_rearm(h);
	if (!answer)
		done(h, m->hdr.request, NULL);
	return h->here;
}

bool hostdev_send(struct hostdev *h, struct vu_msg *m, const int *fd)
{
	return hostdev_send_fds(h, m, fd, fd ? 1 : 0);
}

static bool send_empty(struct hostdev *h, uint32_t request, const int *fd)
{
	struct vu_msg m = { .hdr = { .request = request } };

	return hostdev_send(h, &m, fd);
}

bool hostdev_send_u64(struct hostdev *h, uint32_t request, uint64_t v, const int *fd)
{
	struct vu_msg m = { .hdr = { .request = request, .size = 8 }, .p.u64 = v };

	return hostdev_send(h, &m, fd);
}

bool hostdev_send_ring(struct hostdev *h, uint32_t request, unsigned q, uint32_t num)
{
	struct vu_msg m = { .hdr = { .request = request, .size = 8 }, .p.state = { .index = q, .num = num } };

	h->s.queue = q;
	return hostdev_send(h, &m, NULL);
}

static bool ask_config(struct hostdev *h, uint32_t len)
{
	struct vu_msg m = { .hdr = { .request = VU_GET_CONFIG, .size = VU_CONFIG_HDR_SIZE + len },
			    .p.config = { .size = len } };

	h->s.config_wanted = len;
	return hostdev_send(h, &m, NULL);
}

/* ---- commands to the port ----------------------------------------------------------------------- */

/* Its status. The port answers at once: nothing that this attachment does takes time. */
static uint32_t command(struct hostdev *h, uint32_t opcode, const uint64_t *args, unsigned n, uint64_t *value)
{
	struct vhp_abi_command *c = &h->ctrl->command;
	const struct vhp_abi_answer *a = &page(h)->answer;

	memset(c->args, 0, sizeof(c->args));
	for (unsigned i = 0; i < n; i++)
		c->args[i] = htole64(args[i]);
	if (!++h->seq)
		h->seq = 1;
	c->opcode = htole32(opcode);
	__atomic_store_n(&c->seq, htole32(h->seq), __ATOMIC_RELEASE);
	vp_port_command(h->port);
	if (le32toh(a->seq) != h->seq)
		return VHP_ST_LIMIT;
	if (value)
		*value = le64toh(a->value[0]);
	return le32toh(a->status);
}

/* The sentence that says what does not fit is the link's; here it is only tried again. */
static void describe(struct hostdev *h)
{
	struct hostdev_session *s = &h->s;
	uint64_t args[VHP_CMD_NARGS] = { 0 };
	uint32_t st = VHP_ST_OK;

	s->described = true;
	if (is_net(h))
		return;
	for (uint32_t off = 0; !st && off < s->config_size; off += VHP_CONFIG_PART) {
		memset(args, 0, sizeof(args));
		args[VHP_CONFIG_OFFSET] = off;
		args[VHP_CONFIG_SIZE] = VP_MIN(s->config_size - off, VHP_CONFIG_PART);
		memcpy(&args[VHP_CONFIG_DATA], s->config + off, args[VHP_CONFIG_SIZE]);
		/* The words are little-endian bytes already. */
		for (unsigned i = VHP_CONFIG_DATA; i < VHP_CMD_NARGS; i++)
			args[i] = le64toh(args[i]);
		st = command(h, VHP_CMD_CONFIG, args, VHP_CMD_NARGS, NULL);
	}
	memset(args, 0, sizeof(args));
	args[VHP_BACKEND_FEATURES0] = (s->offered & ~OURS) | ANY_NEUTRAL;
	args[VHP_BACKEND_QUEUES] = s->queues;
	args[VHP_BACKEND_CONFIG] = s->config_size;
	if (!st)
		st = command(h, VHP_CMD_BACKEND, args, VHP_CMD_NARGS, NULL);
	if (st == VHP_ST_OK)
		return;
	s->described = false;
	s->changed = true;
	s->config_us = hostdev_now() + REFUSED_US;
	hostdev_later(h, REFUSED_US);
}

static void attach(struct hostdev *h)
{
	uint64_t args[VHP_ATTACH_FLAGS +
		      1] = { [VHP_ATTACH_ABI] = VHP_ABI_VERSION, [VHP_ATTACH_FEATURES0] = h->s.offered & ~OURS },
		      missing = 0;
	char names[160];
	uint32_t st;

	args[VHP_ATTACH_FEATURES0] |= is_net(h) ? NET_NEUTRAL : ANY_NEUTRAL;
	if (has_pf(h, VU_PF_INFLIGHT_SHMFD))
		args[VHP_ATTACH_FLAGS] = VHP_ATTACH_F_INFLIGHT;
	st = command(h, VHP_CMD_ATTACH, args, VP_ARRAY_SIZE(args), &missing);
	h->s.attached = st == VHP_ST_OK;
	if (h->s.attached) {
		h->s.synced = le32toh(page(h)->regions_generation);
		return;
	}
	if (st == VHP_ST_FEATURES && missing)
		snprintf(h->last, sizeof(h->last), "the back-end lacks %s",
			 vu_features_str(le32toh(page(h)->device_type), missing, names, sizeof(names)));
	h->s.attach_us = hostdev_now() + ATTACH_AGAIN_US;
	hostdev_later(h, ATTACH_AGAIN_US);
}

static void report_stopped(struct hostdev *h, unsigned q, uint32_t run, uint32_t base, uint64_t flags)
{
	uint64_t args[4] = {
		[VHP_STOPPED_QUEUE] = q, [VHP_STOPPED_RUN] = run, [VHP_STOPPED_BASE] = base, [VHP_STOPPED_FLAGS] = flags
	};

	h->s.q[q].given_up = run;
	/* An index that cannot be: the copying engine knows better. */
	if (command(h, VHP_CMD_QUEUE_STOPPED, args, 4, NULL) == VHP_ST_INVALID && !flags)
		report_stopped(h, q, run, 0, VHP_STOPPED_F_NO_BASE);
}

/* ---- the introduction ---------------------------------------------------------------------------- */

void hostdev_session_begin(struct hostdev *h)
{
	memset(&h->s, 0, sizeof(h->s));
	hostdev_session_run(h);
}

static bool send_channel(struct hostdev *h)
{
	int theirs = -1, r = hostdev_channel(h, &theirs);
	bool ok;

	if (r) {
		hostdev_drop(h, true, "there is no channel for its requests: out of memory");
		return false;
	}
	ok = send_empty(h, VU_SET_BACKEND_REQ_FD, &theirs);
	close(theirs);
	return ok;
}

/* One message of it; what does not apply is left out. True: something was done. */
static bool introduce(struct hostdev *h)
{
	struct hostdev_session *s = &h->s;
	bool speaks = s->offered >> VU_F_PROTOCOL_FEATURES & 1;

	switch (s->hello++) {
	case HELLO_OWNER:
		return send_empty(h, VU_SET_OWNER, NULL);
	case HELLO_FEATURES:
		return send_empty(h, VU_GET_FEATURES, NULL);
	case HELLO_GET_PF:
		return speaks ? send_empty(h, VU_GET_PROTOCOL_FEATURES, NULL) : true;
	case HELLO_SET_PF:
		/* They hold from the next message on. */
		if (speaks && !hostdev_send_u64(h, VU_SET_PROTOCOL_FEATURES, s->its_pf, NULL))
			return false;
		s->pf = s->its_pf;
		return true;
	case HELLO_CHANNEL:
		return has_pf(h, VU_PF_BACKEND_REQ) ? send_channel(h) : true;
	case HELLO_QUEUES:
		return has_pf(h, VU_PF_MQ) && !is_net(h) ? send_empty(h, VU_GET_QUEUE_NUM, NULL) : true;
	case HELLO_STATE:
		hostdev_step_load(h);
		return h->here;
	default:
		s->hello = HELLO_DONE;
		s->online = s->changed = true;
		vp_port_online(h->port, true);
		h->c.wires_changed(h->c.ctx);
		return true;
	}
}

/* ---- one step ----------------------------------------------------------------------------------------- */

/* The config space is read, then the port is told of it. */
static bool step_config(struct hostdev *h)
{
	struct hostdev_session *s = &h->s;
	uint64_t now = hostdev_now();
	uint32_t len = VP_MIN(le32toh(page(h)->config_size), VU_MAX_CONFIG);

	if (!s->changed)
		return false;
	if (now < s->config_us) {
		hostdev_later(h, s->config_us - now);
		return false;
	}
	s->changed = false;
	s->config_us = now + CONFIG_AGAIN_US;
	if (!is_net(h) && len && has_pf(h, VU_PF_CONFIG))
		return ask_config(h, len);
	s->config_size = 0;
	describe(h);
	return true;
}

static bool step_attach(struct hostdev *h)
{
	uint64_t now = hostdev_now();

	if (h->s.attached || !h->s.described)
		return false;
	if (now < h->s.attach_us) {
		hostdev_later(h, h->s.attach_us - now);
		return false;
	}
	attach(h);
	return true;
}

/* What the driver VM wrote into its config space, once for each back-end. */
static bool step_written(struct hostdev *h)
{
	const struct vhp_abi_state *st = page(h);
	struct vu_msg m = { .hdr.request = VU_SET_CONFIG };
	uint32_t off = le32toh(st->set_offset), len = le32toh(st->set_size), gen = le32toh(st->set_generation);

	if (gen == h->s.set_seen)
		return false;
	h->s.set_seen = gen;
	if (!len || !has_pf(h, VU_PF_CONFIG) || off > VHP_CONFIG_MAX || len > VHP_CONFIG_MAX - off)
		return true;
	m.hdr.size = VU_CONFIG_HDR_SIZE + len;
	m.p.config.offset = off;
	m.p.config.size = len;
	memcpy(m.p.config.data, st->set_config + off, len);
	return hostdev_send(h, &m, NULL);
}

static bool step_stop(struct hostdev *h, unsigned q)
{
	const struct vhp_abi_queue *e = &page(h)->queues[q];
	struct hostdev_queue *hq = &h->s.q[q];
	uint32_t flags = hostdev_queue_flags(h, q), run = le32toh(e->run);

	/* All messages of a start first: they are few, and bounded. */
	if (hq->running && (!hostdev_current(h, q) || flags & VHP_QUEUE_STOP))
		return hq->step == HOSTDEV_START_DONE && hostdev_send_ring(h, VU_GET_VRING_BASE, q, 0);
	if (!hq->running && flags & VHP_QUEUE_STARTED && flags & VHP_QUEUE_STOP && hq->given_up != run) {
		report_stopped(h, q, run, le32toh(e->base), 0);
		return true;
	}
	return false;
}

/* Nothing of an earlier run is in use any more: the port may be waiting to hear that. */
static bool step_sync(struct hostdev *h)
{
	uint32_t gen = le32toh(page(h)->regions_generation);
	uint64_t arg = gen;

	if (gen == h->s.synced)
		return false;
	for (unsigned q = 0; q < h->n; q++)
		if (h->s.q[q].running && !hostdev_current(h, q))
			return false;
	h->s.synced = gen;
	command(h, VHP_CMD_SYNC, &arg, 1, NULL);
	return true;
}

/* False: there is nothing to do now. */
static bool step(struct hostdev *h)
{
	struct hostdev_session *s = &h->s;
	bool there = le32toh(page(h)->flags) & VHP_STATE_ATTACHED;

	if (s->hello <= HELLO_DONE && !s->online)
		return introduce(h);
	if (s->attached && !there) {
		hostdev_drop(h, true, "it did not let go of a queue in time");
		return false;
	}
	if (step_config(h) || step_attach(h))
		return true;
	if (!s->attached || !h->here)
		return false;
	for (unsigned q = 0; q < h->n; q++)
		if (step_stop(h, q))
			return true;
	if (hostdev_step_save(h))
		return true;
	if (is_fast(h) && s->set_up && (!page(h)->nregions || s->epoch != le64toh(page(h)->link_epoch)) &&
	    !hostdev_runs(h)) {
		hostdev_drop(h, false, "it is left, for the driver VM whose memory it has is gone");
		return false;
	}
	if (le32toh(page(h)->link_status) == VHP_LINK_UP && hostdev_step_memory(h))
		return true;
	if (step_sync(h) || step_written(h))
		return true;
	if (le32toh(page(h)->link_status) != VHP_LINK_UP)
		return false;
	if (hostdev_step_setup(h))
		return true;
	for (unsigned q = 0; h->here && s->set_up && q < h->n; q++)
		if (hostdev_step_start(h, q))
			return true;
	return false;
}

void hostdev_session_run(struct hostdev *h)
{
	if (h->s.in_step)
		return;
	h->s.in_step = true;
	/*
	 * qemu-storage-daemon answers GET_VRING_BASE while requests are under way, and returns them in the ring that it
	 * is given next. Before it serves another connection it waits for them.
	 */
	if (h->here && h->unclean)
		hostdev_drop(h, false, "requests of a run that is over were open; connecting again");
	while (h->here && !h->s.waits && !h->s.moving && !h->unclean && !h->s.saved && step(h))
		;
	if (h->here && h->s.saved && !h->s.waits)
		hostdev_drop(h, false, "its state is kept for the next one");
	h->s.in_step = false;
}

/* ---- what comes -------------------------------------------------------------------------------------- */

static void stopped(struct hostdev *h, const struct vhost_vring_state *st)
{
	struct hostdev_queue *hq = &h->s.q[h->s.queue];

	hq->running = hq->enabled = false;
	if (hostdev_current(h, h->s.queue))
		report_stopped(h, h->s.queue, hq->run, st->num, 0);
}

/* A request was sent, and answered if it has an answer (else reply is NULL). */
static void done(struct hostdev *h, uint32_t request, const struct vu_msg *reply)
{
	struct hostdev_session *s = &h->s;

	if (request == VU_SET_VRING_ENABLE && s->q[s->queue].enabled)
		hostdev_poke(h, s->queue);
	switch (reply ? request : 0) {
	case VU_GET_FEATURES:
		s->offered = reply->p.u64;
		break;
	case VU_GET_PROTOCOL_FEATURES:
		s->its_pf = reply->p.u64 & (WANTED_PF | (is_fast(h) ? VP_BIT(VU_PF_INFLIGHT_SHMFD) : 0));
		break;
	case VU_GET_QUEUE_NUM:
		s->queues = (unsigned)VP_MIN(reply->p.u64, VU_MAX_QUEUES);
		break;
	case VU_GET_CONFIG:
		/* Empty: refused. It has less of it, and the link says how much is wanted. */
		s->config_size = reply->hdr.size == VU_CONFIG_HDR_SIZE + s->config_wanted ? s->config_wanted : 0;
		memcpy(s->config, reply->p.config.data, s->config_size);
		describe(h);
		break;
	case VU_SET_DEVICE_STATE_FD:
		hostdev_state_begun(h, reply->p.u64);
		break;
	case VU_CHECK_DEVICE_STATE:
		hostdev_state_checked(h, reply->p.u64);
		break;
	case VU_GET_VRING_BASE:
		stopped(h, &reply->p.state);
		break;
	}
}

/* What may be refused without the session's being over. */
static bool may_refuse(uint32_t request)
{
	return request == VU_SET_CONFIG || request == VU_NET_SET_MTU || request == VU_SET_BACKEND_REQ_FD;
}

int hostdev_session_answer(struct hostdev *h, struct vp_err *e)
{
	const struct vu_msg *m = &h->main.rx;
	const struct vu_msg_info *info = vu_msg_info(VU_FROM_FRONTEND, h->s.request);
	uint32_t request = h->s.request;
	char nb[24];
	int r;

	if (!h->s.waits)
		return vp_err_set(e, -EBADMSG, "it sent something unasked");
	r = vu_reply_check(VU_FROM_FRONTEND, request, m, h->main.rx_nfds, e);
	if (r)
		return r;
	if (info && info->reply != VU_REPLY_ALWAYS && m->p.u64) {
		if (!may_refuse(request))
			return vp_err_set(e, -EREMOTEIO, "it refused %s (%llu)",
					  vu_msg_name(VU_FROM_FRONTEND, request, nb, sizeof(nb)),
					  (unsigned long long)m->p.u64);
		vp_log(VP_LOG_NOTICE, "%s: the back-end refused %s", h->c.name,
		       vu_msg_name(VU_FROM_FRONTEND, request, nb, sizeof(nb)));
	}
	if (request == VU_GET_VRING_BASE && m->p.state.index != h->s.queue)
		return vp_err_set(e, -EBADMSG, "GET_VRING_BASE of ring %u was answered for ring %u", h->s.queue,
				  m->p.state.index);
	if (request == VU_GET_CONFIG && m->hdr.size > VU_CONFIG_HDR_SIZE + h->s.config_wanted)
		return vp_err_set(e, -EBADMSG, "GET_CONFIG of %u bytes was answered with %u", h->s.config_wanted,
				  m->hdr.size - VU_CONFIG_HDR_SIZE);
	h->s.waits = false;
	hostdev_rearm(h);
	done(h, request, m);
	return 0;
}

/* Only that the config space changed is of interest; memory and notifiers of ours it has not been given. */
int hostdev_session_request(struct hostdev *h, struct vp_err *e)
{
	struct vu_msg *m = &h->req.rx;
	bool need = has_pf(h, VU_PF_REPLY_ACK) && m->hdr.flags & VU_FLAG_NEED_REPLY;
	int r = vu_msg_check(VU_FROM_BACKEND, m, h->req.rx_nfds, h->s.pf, VU_ST_OWNED, e);

	if (r == -EBADMSG || r == -EBADF)
		return r;
	if (!r && m->hdr.request == VU_BE_CONFIG_CHANGE)
		h->s.changed = true;
	else
		r = -EOPNOTSUPP;
	if (!need)
		return 0;
	m->hdr.flags = VU_FLAG_VERSION | VU_FLAG_REPLY;
	m->hdr.size = sizeof(m->p.u64);
	m->p.u64 = r < 0;
	return vu_conn_send(&h->req, m, NULL, 0, e);
}
