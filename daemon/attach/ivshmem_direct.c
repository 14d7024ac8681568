/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the device VM's VMM may not read its socket. Then nothing is ever published, and calls
 * are forwarded. A doorbell that its guest can ring once it can ring for good, also when the driver VM
 * has taken another eventfd: that wakes a VM that finds nothing to do. Fast mode only, within a trust
 * group.
 */
#include "attach/ivshmem_direct.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "sys/fds.h"
#include "attach/ivshmem_windows.h"
#include "sys/timer.h"

/*
 * KVM has room for 1000 ioeventfds and such in a VM, and QEMU ends the VM when there is no more. What a device's
 * handshake needs (two for each signal) counts too; the rest is for the VM's other devices.
 */
#define DOORBELLS_VM  600
#define LOOK_US       2000u      /* has QEMU read it? */
#define LOOK_MAX_US   100000u
#define CACHE	      4 /* call fds of a queue that are remembered: a VMM masks an interrupt by another eventfd */

struct known {
	int      fd;                 /* our duplicate, so that the id remains its own; -1 = none */
	uint64_t id;                 /* 0 = not known */
	uint32_t doorbell;
};

struct dqueue {
	struct known k[CACHE];
	unsigned     next;           /* to be replaced */
	uint32_t     want;           /* doorbell to be published, 0 = default */
	bool         straight;       /* it is published */
};

struct vp_ivdirect {
	struct vp_ivdirect *next;    /* all of the process */
	sd_event           *event;
	const char         *vm, *name;
	struct vp_port     *port;
	unsigned            first_peer, nsig;
	uint32_t           *used;    /* doorbells; outlives this process, as they do */
	uint32_t            default_doorbell;
	int                 sock;    /* -1 = no device */
	bool                waiting; /* doorbells are on their way to QEMU */
	bool                full;    /* it was said */
	uint32_t            look_us;
	sd_event_source    *timer;
	struct dqueue       q[VHP_MAX_QUEUES];
};

static struct vp_ivdirect *all;

static unsigned vm_used(const char *vm)
{
	unsigned n = 0;

	for (const struct vp_ivdirect *x = all; x; x = x->next)
		if (!strcmp(x->vm, vm))
			n += *x->used + 2 * x->nsig;
	return n;
}

static void publish(struct vp_ivdirect *x, unsigned q)
{
	x->q[q].straight = x->q[q].want != 0;
	vp_port_set_wire(x->port, q, 1 + q, x->q[q].want ? x->q[q].want : x->default_doorbell + q);
}

/*
 * Has QEMU read all that was sent? It handles a message at once, under the lock that a guest's access
 * to an unknown doorbell needs as well. So a guest that rings after this rings the right one.
 */
static bool taken(const struct vp_ivdirect *x)
{
	int left = 0;

	/* seccomp control: ioctl(arg1 == SIOCOUTQ) */
	return !ioctl(x->sock, SIOCOUTQ, &left) && !left;
}

static int on_look(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_ivdirect *x = arg;

	if (x->sock < 0)
		return 0;
	if (!taken(x)) {
		x->look_us = VP_MIN(2 * x->look_us, LOOK_MAX_US);
		vp_timer_in(x->event, &x->timer, x->look_us, on_look, x, x->name);
		return 0;
	}
	x->waiting = false;
	vp_port_begin(x->port);
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		if (x->q[q].want && !x->q[q].straight)
			publish(x, q);
	vp_port_commit(x->port);
	return 0;
}

static void look_later(struct vp_ivdirect *x)
{
	x->waiting = true;
	x->look_us = LOOK_US;
	vp_timer_in(x->event, &x->timer, LOOK_US, on_look, x, x->name);
}

/* A doorbell of its own for fd; 0 = there is none. */
static uint32_t make_doorbell(struct vp_ivdirect *x, int fd)
{
	uint32_t peer = x->first_peer + *x->used / x->nsig, vector = *x->used % x->nsig;

	if (vm_used(x->vm) >= DOORBELLS_VM || peer >= VHP_IVSHMEM_WINDOW_ID) {
		if (!x->full)
			vp_log(VP_LOG_NOTICE,
			       "%s: %u doorbells are in use, more is not safe for the VM: further calls are forwarded "
			       "until the device is plugged anew",
			       x->name, *x->used);
		x->full = true;
		return 0;
	}
	/* Vectors of a peer are numbered in the order of their messages. What does not fit now was not sent at all. */
	if (vp_ivshmem_send(x->sock, peer, fd))
		return 0;
	++*x->used;
	look_later(x);
	return VHP_IVSHMEM_DOORBELL(peer, vector);
}

static void forget(struct dqueue *d)
{
	for (unsigned i = 0; i < CACHE; i++)
		vp_close(&d->k[i].fd);
	d->next = 0;
}

void vp_ivdirect_set(struct vp_ivdirect *x, unsigned q, int call)
{
	struct dqueue *d = &x->q[q];
	struct known *k = NULL;
	uint64_t id;

	d->want = 0;
	if (x->sock >= 0 && call >= 0) {
		id = vp_eventfd_id(call);
		for (unsigned i = 0; id && i < CACHE; i++)
			if (d->k[i].fd >= 0 && d->k[i].id == id)
				k = &d->k[i];
		if (k) {
			d->want = k->doorbell;
		} else {
			k = &d->k[d->next++ % CACHE];
			vp_close(&k->fd);
			d->want = make_doorbell(x, call);
			if (d->want && id)
				/* seccomp control: fcntl */
				*k = (struct known){ fcntl(call, F_DUPFD_CLOEXEC, 3), id, d->want };
		}
	} else {
		forget(d);
	}
	/*
	 * The page shows a new doorbell when QEMU has it. Until then its calls are forwarded, as they
	 * are with the old one's.
	 */
	if (d->want && x->waiting) {
		uint32_t want = d->want;

		if (d->straight) {
			d->want = 0;
			publish(x, q);
			d->want = want;
		}
		return;
	}
	if (d->want || d->straight)
		publish(x, q);
}

void vp_ivdirect_device(struct vp_ivdirect *x, int sock, bool fresh)
{
	x->sock = sock;
	if (fresh)
		*x->used = 0;
	x->full = x->waiting = false;
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++) {
		forget(&x->q[q]);
		x->q[q].want = 0;
		if (x->q[q].straight)
			publish(x, q);
	}
}

unsigned vp_ivdirect_count(const struct vp_ivdirect *x, unsigned *used)
{
	unsigned n = 0;

	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		n += x->q[q].straight;
	*used = *x->used;
	return n;
}

int vp_ivdirect_new(struct vp_ivdirect **out, sd_event *event, const char *vm, const char *name, struct vp_port *p,
		    unsigned first_peer, unsigned nsig, uint32_t default_doorbell)
{
	struct vp_ivdirect *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	*x = (struct vp_ivdirect){
		.next = all, .event = event, .vm = vm, .name = name, .port = p, .first_peer = first_peer, .nsig = nsig,
		.default_doorbell = default_doorbell, .sock = -1, .used = vp_port_attachment_word(p),
	};
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		for (unsigned i = 0; i < CACHE; i++)
			x->q[q].k[i].fd = -1;
	all = x;
	*out = x;
	return 0;
}

void vp_ivdirect_free(struct vp_ivdirect *x)
{
	struct vp_ivdirect **at = &all;

	if (!x)
		return;
	while (*at != x)
		at = &(*at)->next;
	*at = x->next;
	sd_event_source_disable_unref(x->timer);
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		forget(&x->q[q]);
	free(x);
}

/* ---- for another daemon ------------------------------------------------------------------------- */

enum tag { TAG_DIRECT = 1, TAG_QUEUE, /* of a queue */ TAG_STATE = 32, TAG_CALL = 33 };

struct direct_rec {
	uint32_t waiting, full;
};

struct queue_rec {
	uint32_t queue, want, straight, next;
	uint32_t doorbell[CACHE]; /* 0 = none */
};

static void save_queue(const struct vp_ivdirect *x, unsigned q, struct vp_rec *r)
{
	const struct dqueue *d = &x->q[q];
	struct queue_rec s = { .queue = q, .want = d->want, .straight = d->straight, .next = d->next };
	bool any = d->want || d->straight;

	for (unsigned i = 0; i < CACHE; i++) {
		s.doorbell[i] = d->k[i].fd >= 0 ? d->k[i].doorbell : 0;
		any |= s.doorbell[i] != 0;
	}
	if (!any)
		return;
	vp_rec_begin(r, TAG_QUEUE);
	vp_rec_put(r, TAG_STATE, &s, sizeof(s));
	for (unsigned i = 0; i < CACHE; i++)
		if (s.doorbell[i])
			vp_rec_fd(r, TAG_CALL + i, VP_REC_FD_EVENTFD, d->k[i].fd);
	vp_rec_end(r);
}

void vp_ivdirect_save(const struct vp_ivdirect *x, struct vp_rec *r)
{
	const struct direct_rec s = { .waiting = x->waiting, .full = x->full };

	vp_rec_put(r, TAG_DIRECT, &s, sizeof(s));
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		save_queue(x, q, r);
}

static int load_queue(struct vp_ivdirect *x, const struct vp_rec_in *in, struct vp_err *e)
{
	struct queue_rec s;
	struct dqueue *d;
	int r = 0;

	if (vp_rec_get(in, TAG_STATE, &s, sizeof(s)) || s.queue >= VHP_MAX_QUEUES)
		return vp_err_set(e, -EPROTO, "the record of its doorbells is malformed");
	d = &x->q[s.queue];
	d->want = s.want;
	d->straight = s.straight;
	d->next = s.next % CACHE;
	for (unsigned i = 0; !r && i < CACHE; i++) {
		if (!s.doorbell[i] || d->k[i].fd >= 0)
			continue;
		r = vp_rec_take(in, TAG_CALL + i, VP_REC_FD_EVENTFD, &d->k[i].fd, e);
		d->k[i].id = r ? 0 : vp_eventfd_id(d->k[i].fd);
		d->k[i].doorbell = s.doorbell[i];
	}
	return r;
}

int vp_ivdirect_restore(struct vp_ivdirect *x, int sock, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct direct_rec s;
	unsigned tag;
	int r = 0;

	if (vp_rec_get(in, TAG_DIRECT, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "the record of its doorbells is malformed");
	x->sock = sock;
	x->full = s.full;
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_QUEUE)
			r = load_queue(x, &body, e);
	if (!r && s.waiting)
		look_later(x);
	return r;
}
