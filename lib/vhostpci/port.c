/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, closing, and following the state page: docs/spec.md sections 3, 4, 6 and 7. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/virtio_config.h>

#include "vhostpci/internal.h"

/* What the ring code, the header code and the offload code handle. */
#define FEATURES                                                                                                  \
	(VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_F_IN_ORDER) |                  \
	 VP_BIT(VIRTIO_F_ACCESS_PLATFORM) | VP_BIT(VIRTIO_F_ORDER_PLATFORM) | VP_BIT(VIRTIO_F_ANY_LAYOUT) |       \
	 VP_BIT(VIRTIO_RING_F_EVENT_IDX) | VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VP_BIT(VIRTIO_NET_F_MRG_RXBUF) | \
	 VP_BIT(VIRTIO_NET_F_CSUM) | VP_BIT(VIRTIO_NET_F_GUEST_CSUM) | VP_BIT(VIRTIO_NET_F_GUEST_TSO4) |          \
	 VP_BIT(VIRTIO_NET_F_GUEST_TSO6) | VP_BIT(VIRTIO_NET_F_GUEST_ECN) | VP_BIT(VIRTIO_NET_F_HOST_TSO4) |      \
	 VP_BIT(VIRTIO_NET_F_HOST_TSO6) | VP_BIT(VIRTIO_NET_F_HOST_ECN) | VP_BIT(VIRTIO_NET_F_HOST_USO) |         \
	 VP_BIT(VIRTIO_NET_F_GUEST_USO4) | VP_BIT(VIRTIO_NET_F_GUEST_USO6) | VP_BIT(VIRTIO_NET_F_MQ) |            \
	 VP_BIT(VIRTIO_NET_F_MTU) | VP_BIT(VIRTIO_NET_F_MAC) | VP_BIT(VIRTIO_NET_F_STATUS) |                      \
	 VP_BIT(VIRTIO_NET_F_SPEED_DUPLEX) | VP_BIT(VIRTIO_NET_F_GUEST_ANNOUNCE) | VP_BIT(VIRTIO_NET_F_CTRL_VQ) | \
	 VP_BIT(VIRTIO_NET_F_CTRL_RX) | VP_BIT(VIRTIO_NET_F_CTRL_VLAN) | VP_BIT(VIRTIO_NET_F_CTRL_RX_EXTRA) |     \
	 VP_BIT(VIRTIO_NET_F_CTRL_MAC_ADDR) | VP_BIT(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS))

#define VIRTIO_ID_NET_ 1u
#define COUNT_MS       1050u /* between two COUNTERS: the specification allows one a second */
#define MAX_ROUNDS     8 /* of one vhp_update(): our own answers change the state too */

static void give_error(struct vhp_error *err, const struct vp_err *e, int code)
{
	if (!err)
		return;
	err->code = code;
	snprintf(err->msg, sizeof(err->msg), "%s", e->msg);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

static const struct vhp_region_map *find_map(const struct vhp_port *p, const struct vhp_region_map *want)
{
	unsigned i;

	for (i = 0; p->maps && i < p->maps->n; i++) {
		const struct vhp_region_map *m = &p->maps->m[i];

		if (m->slot == want->slot && m->serial == want->serial && m->offset == want->offset &&
		    m->size == want->size && m->writable == want->writable)
			return m;
	}
	return NULL;
}

void vhp_maps_unref(struct vhp_maps *m)
{
	if (!m || __atomic_sub_fetch(&m->refs, 1, __ATOMIC_ACQ_REL))
		return;
	while (m->n)
		vp_map_unref(m->m[--m->n].map);
	free(m);
}

/* The whole window, of which a region of this port, mapped or about to be, has a part. NULL: none. */
static struct vp_map *find_window(const struct vhp_port *p, const struct vhp_maps *new,
				  const struct vhp_region_map *want)
{
	const struct vhp_maps *const both[] = { p->maps, new };

	for (unsigned k = 0; k < VP_ARRAY_SIZE(both); k++)
		for (unsigned i = 0; both[k] && i < both[k]->n; i++)
			if (both[k]->m[i].slot == want->slot && both[k]->m[i].serial == want->serial)
				return both[k]->m[i].map->within;
	return NULL;
}

/* A window with a key has one mapping: regions are parts of it. As transport's map(). */
static int map_within(struct vhp_port *p, const struct vhp_maps *new, const struct vp_state_window *w,
		      struct vhp_region_map *m, struct vp_err *e)
{
	struct vp_map *window = vp_map_ref(find_window(p, new, m));
	int ret = 0;

	if (!window)
		ret = p->t->ops->map(p->t, w, m->slot, 0, w->size, true, &window, e);
	if (!ret)
		ret = vp_map_within(&m->map, window, m->offset, m->size, e);
	vp_map_unref(window);
	return ret;
}

/*
 * Map what regions[] names, keeping what is mapped already; a new table replaces the old. -EAGAIN: a window is missing.
 */
static int build_memory(struct vhp_port *p, const struct vp_state *s, struct vp_err *e)
{
	struct vp_region_desc *d = calloc(s->nregions + 1, sizeof(*d));
	struct vhp_maps *maps = calloc(1, sizeof(*maps) + s->nregions * sizeof(maps->m[0])), *old_maps = p->maps;
	struct vp_memtab *tab = NULL, *old = p->tab;
	unsigned i;
	int ret = 0;

	if (maps)
		maps->refs = 1;
	if (!d || !maps) {
		ret = vp_err_set(e, -ENOMEM, "out of memory");
		goto out;
	}
	for (i = 0; i < s->nregions; i++) {
		struct vhp_region_map *m = &maps->m[i];
		const struct vp_state_region *r = &s->regions[i];
		const struct vp_state_window *w = &s->windows[r->window];
		const struct vhp_region_map *have;

		*m = (struct vhp_region_map){ r->window, w->serial, r->offset, r->size, r->flags & VHP_REGION_WRITE,
					      NULL };
		have = find_map(p, m);
		if (have) {
			m->map = vp_map_ref(have->map);
		} else if (p->protect) {
			ret = map_within(p, maps, w, m, e);
			if (ret)
				goto out;
		} else {
			ret = p->t->ops->map(p->t, w, r->window, r->offset, r->size, m->writable, &m->map, e);
			if (ret)
				goto out;
		}
		maps->n = i + 1;
		d[i] = (struct vp_region_desc){ .gpa = r->addr, .size = r->size, .uva = r->addr,
						.offset = r->offset, .map = m->map };
	}
	ret = vp_memtab_build(&tab, d, s->nregions, e);
	if (ret)
		goto out;
	/* Running queues move over; nobody else uses the port meanwhile. */
	p->tab = tab;
	for (i = 0; i < p->nq; i++) {
		struct vhp_queue *q = &p->q[i];

		if (q->started && vp_vq_rebind(&q->rq.vq, tab, NULL, e)) {
			/* Its ring is gone: a loan that is given back later must not find its way there. */
			vp_vq_break(&q->rq.vq, VP_VQ_BAD_RING);
			vhp_loans_end(p, q, old_maps);
		}
		vhp_loans_keep(q, old_maps);
	}
	vp_memtab_free(old);
	p->maps = maps;
	maps = old_maps;
out:
	vhp_maps_unref(maps);
	free(d);
	return ret;
}

static void drop_memory(struct vhp_port *p)
{
	vp_memtab_free(p->tab);
	p->tab = NULL;
	vhp_maps_unref(p->maps);
	p->maps = NULL;
}

/* ---- queues ---------------------------------------------------------------------------------------- */

static int report_stopped(struct vhp_port *p, unsigned i, uint64_t flags, struct vp_err *e)
{
	struct vhp_queue *q = &p->q[i];
	uint64_t args[4] = { i, q->run, vp_vq_base(&q->rq.vq), flags };
	uint32_t status;

	return p->t->ops->command(p->t, VHP_CMD_QUEUE_STOPPED, args, 4, &status, NULL, e);
}

static uint64_t broken_flags(const struct vhp_queue *q)
{
	if (!q->rq.vq.broken)
		return 0;
	return VHP_STOPPED_F_BROKEN | (q->refused ? VHP_STOPPED_F_REFUSED : 0);
}

static void queue_stop(struct vhp_port *p, struct vhp_queue *q)
{
	vhp_loans_end(p, q, p->maps);
	q->started = false;
	q->enabled = false;
}

static int queue_start(struct vhp_port *p, unsigned i, const struct vp_state *s, struct vp_err *e)
{
	const struct vp_state_queue *pq = &s->queues[i];
	struct vhp_queue *q = &p->q[i];
	struct vp_vq_conf c = {
		.size = pq->size > UINT16_MAX ? 0 : (uint16_t)pq->size,
		.base = pq->base,
		.features = s->features[0],
		.out_only = i & 1,
		.desc = pq->desc,
		.driver = pq->avail,
		.device = pq->used,
		.tab = p->tab,
		.grows = s->flags & VHP_STATE_MAP,
	};
	int ret;

	if (!q->burst) {
		q->burst = calloc(1, sizeof(*q->burst));
		q->used = malloc(VP_BURST * sizeof(*q->used));
		if (!q->burst || !q->used)
			return vp_err_set(e, -ENOMEM, "out of memory");
	}
	q->run = pq->run;
	q->reported = q->asked = q->refused = false;
	ret = vp_vq_start(&q->rq.vq, &c, e);
	if (ret) {
		vp_vq_break(&q->rq.vq, VP_VQ_BAD_RING);
		q->reported = true;
		return report_stopped(p, i, VHP_STOPPED_F_BROKEN | VHP_STOPPED_F_NO_BASE, e);
	}
	q->rq.features = s->features[0];
	q->rq.blocked_since = 0;
	vp_vq_disable_kicks(&q->rq.vq);
	q->started = true;
	return 0;
}

static void queue_signals(struct vhp_port *p, unsigned i, const struct vp_state *s)
{
	const struct vp_state_queue *pq = &s->queues[i];
	int kick = p->t->ops->kick_fd(p->t, i, pq->kick_signal);

	p->q[i].rq.call_fd = p->t->ops->call_fd(p->t, i, pq->doorbell);
	p->kicks_serial += kick != p->q[i].kick_fd;
	p->q[i].kick_fd = kick;
}

/* Stop what must stop, answering STOP requests; before the memory changes. */
static int stop_queues(struct vhp_port *p, const struct vp_state *s, struct vp_err *e)
{
	unsigned i;
	int ret = 0;

	for (i = 0; i < p->nq && !ret; i++) {
		const struct vp_state_queue *pq = &s->queues[i];
		struct vhp_queue *q = &p->q[i];
		bool run = i < s->nqueues && (pq->flags & VHP_QUEUE_STARTED) && pq->run == q->run;
		bool same = run && s->link_status == VHP_LINK_UP;
		/*
		 * Also while the link is on its way down: the daemon waits for the answer before it touches the ring.
		 */
		bool stop = run && (pq->flags & VHP_QUEUE_STOP);
		const uint32_t both = VHP_QUEUE_STARTED | VHP_QUEUE_STOP;
		bool broken = q->rq.vq.broken;
		uint64_t flags = broken_flags(q);

		if (q->started && (!same || stop)) {
			queue_stop(p, q);
			if (stop)
				ret = report_stopped(p, i, flags, e);
		} else if (q->started && broken && !q->reported) {
			queue_stop(p, q);
			q->reported = true;
			ret = report_stopped(p, i, flags, e);
		} else if (i < s->nqueues && (pq->flags & both) == both && pq->run != q->run) {
			/* Started and stopped before we looked: it stands where it stood, and the answer is awaited. */
			uint64_t args[4] = { i, pq->run, pq->base, 0 };
			uint32_t status;

			q->run = pq->run;
			ret = p->t->ops->command(p->t, VHP_CMD_QUEUE_STOPPED, args, 4, &status, NULL, e);
		}
	}
	return ret;
}

static int start_queues(struct vhp_port *p, const struct vp_state *s, struct vp_err *e)
{
	unsigned i;
	int ret;

	for (i = 0; i < p->nq && i < s->nqueues; i++) {
		const struct vp_state_queue *pq = &s->queues[i];
		struct vhp_queue *q = &p->q[i];
		const uint32_t f = pq->flags & (VHP_QUEUE_STARTED | VHP_QUEUE_STOP | VHP_QUEUE_BROKEN);

		if (!q->started && f == VHP_QUEUE_STARTED && pq->run != q->run) {
			ret = queue_start(p, i, s, e);
			if (ret)
				return ret;
		}
		if (q->started) {
			queue_signals(p, i, s);
			q->enabled = pq->flags & VHP_QUEUE_ENABLED;
			if (!q->enabled)
				vhp_tell(p, q);
		}
	}
	return 0;
}

/*
 * Queues that wait for memory: ask for it, once until regions[] changes. What is refused breaks its queue, and the next
 * round says so.
 */
static int ask_for_memory(struct vhp_port *p, struct vp_err *e)
{
	int ret = 0;

	__atomic_store_n(&p->wants, false, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < p->nq && !ret; i++) {
		struct vhp_queue *q = &p->q[i];
		const struct vp_miss *m = &q->rq.vq.xl.miss;
		uint64_t args[3] = { m->addr, VP_MIN(m->size, VHP_MAP_MAX),
				     m->acc == VP_WRITE ? VHP_REGION_WRITE : VHP_REGION_READ };
		uint32_t status = VHP_ST_OK;

		if (!q->started || !q->rq.vq.stalled || q->asked || vp_memtab_find(p->tab, m->addr) >= 0)
			continue;
		q->asked = true;
		ret = p->t->ops->command(p->t, VHP_CMD_MAP, args, 3, &status, NULL, e);
		q->refused = !ret && status != VHP_ST_OK && status != VHP_ST_LIMIT;
		if (q->refused)
			vp_vq_break(&q->rq.vq, VP_VQ_BAD_ADDR);
	}
	return ret;
}

/* Bring the port in line with s. */
static int apply(struct vhp_port *p, const struct vp_state *s, struct vp_err *e)
{
	bool up = s->link_status == VHP_LINK_UP, fresh;
	uint32_t status;
	uint64_t gen;
	int ret;

	ret = stop_queues(p, s, e);
	if (ret)
		return ret;
	fresh = !p->have || s->regions_generation != p->cur->regions_generation || p->map_pending;
	if (fresh) {
		for (unsigned i = 0; i < p->nq; i++)
			p->q[i].asked = false;
		p->up = false; /* whatever fails here: what the queues would use is not what the page says */
		ret = build_memory(p, s, e);
		p->map_pending = ret != 0;
		if (ret && ret != -EAGAIN)
			return ret;
		gen = s->regions_generation;
		if (!ret && (s->flags & VHP_STATE_ATTACHED))
			ret = p->t->ops->command(p->t, VHP_CMD_SYNC, &gen, 1, &status, NULL, e);
		if (ret && ret != -EAGAIN)
			return ret;
	}
	p->hdr_len = vp_net_hdr_len(s->features[0]);
	p->up = up && !p->map_pending;
	ret = p->up ? start_queues(p, s, e) : 0;
	return !ret && p->up ? ask_for_memory(p, e) : ret;
}

/* What all pairs have moved since the port was opened, by VHP_COUNT_*. */
static void counts(const struct vhp_port *p, uint64_t n[VHP_COUNTS])
{
	struct vhp_counters c;

	memset(n, 0, VHP_COUNTS * sizeof(n[0]));
	for (unsigned i = 0; !vhp_pair_info(p, i, &c); i++) {
		n[VHP_COUNT_FROM_PACKETS] += c.recv_packets;
		n[VHP_COUNT_FROM_BYTES] += c.recv_bytes;
		n[VHP_COUNT_FROM_DROPPED] += c.recv_errors;
		n[VHP_COUNT_TO_PACKETS] += c.send_packets;
		n[VHP_COUNT_TO_BYTES] += c.send_bytes;
		n[VHP_COUNT_TO_DROPPED] += c.send_errors;
	}
}

static int attach(struct vhp_port *p, uint64_t features, struct vp_err *e)
{
	uint64_t args[4] = { VHP_ABI_VERSION, features, 0, VIRTIO_ID_NET_ }, value[6];
	uint32_t status;
	int ret;

	ret = p->t->ops->command(p->t, VHP_CMD_ATTACH, args, 4, &status, value, e);
	if (ret)
		return ret;
	switch (status) {
	case VHP_ST_OK:
		counts(p, p->count_base);
		memset(p->counted, 0, sizeof(p->counted));
		return 0;
	case VHP_ST_FEATURES:
		return vp_err_set(e, -EOPNOTSUPP,
				  "the link needs virtio features 0x%llx, which this program does not take: narrow the "
				  "link's offloads, or widen params.features",
				  (unsigned long long)value[0]);
	case VHP_ST_VERSION:
		return vp_err_set(e, -EPROTO, "the daemon speaks ABI %u.%u, this library %u.%u",
				  VHP_ABI_VER_MAJOR((uint32_t)value[0]), VHP_ABI_VER_MINOR((uint32_t)value[0]),
				  VHP_ABI_MAJOR, VHP_ABI_MINOR);
	case VHP_ST_DEVICE_TYPE:
		return vp_err_set(e, -EOPNOTSUPP,
				  "the link serves a device of virtio type %llu, this library serves network devices",
				  (unsigned long long)value[0]);
	default:
		return vp_err_set(e, -EACCES, "the daemon refuses: %s", vp_state_status_str(status));
	}
}

static bool any_unreported(const struct vhp_port *p)
{
	unsigned i;

	for (i = 0; i < p->nq; i++)
		if (p->q[i].started && p->q[i].rq.vq.broken && !p->q[i].reported)
			return true;
	return false;
}

bool vhp_changed(const struct vhp_port *p)
{
	return vp_state_generation(p->t->ctrl) != p->seen || __atomic_load_n(&p->wants, __ATOMIC_RELAXED);
}

int vhp_update(struct vhp_port *p, struct vhp_error *err)
{
	struct vp_err e = { 0 };
	struct vp_state *s;
	unsigned round;
	int ret;
	VHP_GATE(p);

	ret = p->t->ops->pump(p->t, &e);
	for (round = 0; !ret && round < MAX_ROUNDS; round++) {
		if (p->have && !vhp_changed(p) && !p->map_pending && p->t_serial == p->t->serial &&
		    !any_unreported(p))
			break;
		p->t_serial = p->t->serial;
		ret = vp_state_read(p->t->ctrl, p->next, &e);
		if (ret == -EAGAIN) {
			ret = 0; /* half written: signal 0 comes again */
			break;
		}
		if (ret == -EPROTO)
			apply(p, p->next, &e); /* which is a link that is down */
		else if (!ret)
			ret = apply(p, p->next, &e);
		s = p->cur;
		p->cur = p->next;
		p->next = s;
		p->seen = p->cur->generation;
		p->have = true;
		if (!ret && !(p->cur->flags & VHP_STATE_ATTACHED) &&
		    (p->cur->link_reason == VHP_REASON_TIMEOUT || p->cur->link_reason == VHP_REASON_NOT_ATTACHED)) {
			/*
			 * We were too slow once (stopped by a debugger, a host that swaps) and were cut; or there is a
			 * new daemon, which took the port over: here we are again.
			 */
			ret = attach(p, p->path, &e);
			continue;
		}
		if (p->map_pending)
			break; /* until the window arrives */
	}
	if (ret) {
		give_error(err, &e, ret);
		if (ret == -ENODEV) {
			unsigned i;

			for (i = 0; i < p->nq; i++)
				queue_stop(p, &p->q[i]);
			p->up = false;
		}
		return ret;
	}
	return p->up;
}

int vhp_report(struct vhp_port *p, struct vhp_error *err)
{
	struct vp_err e = { 0 };
	uint64_t n[VHP_COUNTS], now;
	struct timespec ts;
	uint32_t status;
	int ret;

	if (!p->have || !(p->cur->flags & VHP_STATE_ATTACHED) || !(p->cur->flags & VHP_STATE_COUNT))
		return 0;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
	if (now < p->count_ms)
		return 0;
	counts(p, n);
	for (unsigned i = 0; i < VHP_COUNTS; i++)
		n[i] -= p->count_base[i];
	if (!memcmp(n, p->counted, sizeof(n)))
		return 0;
	p->count_ms = now + COUNT_MS;
	memcpy(p->counted, n, sizeof(n));
	ret = p->t->ops->command(p->t, VHP_CMD_COUNTERS, n, VHP_COUNTS, &status, NULL, &e);
	if (ret)
		give_error(err, &e, ret);
	return ret;
}

/* ---- open and close ---------------------------------------------------------------------------------- */

static void port_free(struct vhp_port *p)
{
	if (p->t)
		p->t->ops->close(p->t);
	free(p->scratch);
	free(p->cur);
	free(p->next);
	free(p->q);
	free(p);
}

int vhp_open(struct vhp_port **out, const char *where, const struct vhp_params *params, struct vhp_error *err)
{
	const struct vhp_abi_header *h;
	struct vp_err e = { 0 };
	uint64_t features = FEATURES;
	struct vhp_port *p;
	int ret, pkey = 0;
	unsigned i;

	*out = NULL;
	if (params && params->size != sizeof(*params)) {
		ret = vp_err_set(&e, -EINVAL, "params.size is %zu, this library expects %zu", params->size,
				 sizeof(*params));
		give_error(err, &e, ret);
		return ret;
	}
	if (params && params->features)
		features &= params->features;
	vp_map_guard_faults();
	p = calloc(1, sizeof(*p));
	if (!p) {
		ret = vp_err_set(&e, -ENOMEM, "out of memory");
		goto fail;
	}
	p->cur = calloc(1, sizeof(*p->cur));
	p->next = calloc(1, sizeof(*p->next));
	p->scratch = vp_scratch_new();
	if (!p->cur || !p->next || !p->scratch) {
		ret = vp_err_set(&e, -ENOMEM, "out of memory");
		goto fail;
	}
	if (params && params->protect) {
		pkey = vhp_gate_key(&e);
		if (pkey < 0) {
			ret = pkey;
			goto fail;
		}
		p->protect = true;
	}
	if (p->protect && !strncmp(where, "unix:", 5))
		ret = vp_err_set(&e, -EOPNOTSUPP,
				 "%s: protect is for ports of a device VM (/dev/vhost-pciN); the memory of a local "
				 "port comes as file descriptors, which this program could map again",
				 where);
	else if (!strncmp(where, "unix:", 5))
		ret = vhp_transport_local(&p->t, where + 5, &e);
	else
		ret = vhp_transport_dev(&p->t, where, !(params && params->no_kicks), pkey, &e);
	if (ret)
		goto fail;
	ret = vp_state_header_check(p->t->ctrl, &e);
	if (ret)
		goto fail;
	h = p->t->ctrl;
	memcpy(p->name, h->name, sizeof(h->name));
	p->nq = le32toh(h->max_queues) & ~1u;
	p->q = calloc(p->nq ? p->nq : 1, sizeof(*p->q));
	if (!p->q) {
		ret = vp_err_set(&e, -ENOMEM, "out of memory");
		goto fail;
	}
	for (i = 0; i < p->nq; i++)
		p->q[i].rq.call_fd = p->q[i].kick_fd = -1;
	p->path = features;
	ret = attach(p, features, &e);
	if (ret)
		goto fail;
	*out = p;
	return 0;
fail:
	give_error(err, &e, ret);
	if (p)
		port_free(p);
	return ret;
}

/* Of a port that ends: ret says whether the daemon can still be told. */
static int stop_last(struct vhp_port *p, unsigned i, int ret)
{
	uint64_t flags = broken_flags(&p->q[i]);
	struct vp_err e;
	VHP_GATE(p);

	queue_stop(p, &p->q[i]);
	return ret ? ret : report_stopped(p, i, flags, &e);
}

void vhp_close(struct vhp_port *p)
{
	struct vp_err e;
	uint32_t status;
	unsigned i;
	int ret = 0;

	if (!p)
		return;
	for (i = 0; i < p->nq; i++) {
		struct vhp_queue *q = &p->q[i];

		if (q->started)
			ret = stop_last(p, i, ret);
		free(q->burst);
		free(q->used);
	}
	drop_memory(p);
	if (!ret)
		p->t->ops->command(p->t, VHP_CMD_DETACH, NULL, 0, &status, NULL, &e);
	port_free(p);
}

int vhp_fd(const struct vhp_port *p)
{
	return p->t->fd;
}

void vhp_port_info(const struct vhp_port *p, struct vhp_port_info *info)
{
	const struct vp_state *s = p->cur;
	unsigned i;

	*info = (struct vhp_port_info){
		.up = p->up,
		.reason = p->up ? "" : p->map_pending ? "a window is missing" : vp_state_reason_str(s->link_reason),
		.mode = vp_state_mode_str(s->mode),
		.epoch = s->link_epoch,
		.features = s->features[0],
		.max_pairs = p->nq / 2,
		.regions = s->nregions,
	};
	memcpy(info->name, p->name, sizeof(info->name));
	for (i = 0; i < p->nq / 2; i++)
		if (p->q[2 * i].enabled || p->q[2 * i + 1].enabled)
			info->pairs = i + 1;
	if (s->config_size >= 6)
		memcpy(info->mac, s->config, 6);
	if (s->config_size >= 12 && (s->offered_features[0] & VP_BIT(VIRTIO_NET_F_MTU)))
		info->mtu = (uint16_t)(s->config[10] | s->config[11] << 8);
}
