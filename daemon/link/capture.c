/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <urcu/urcu-qsbr.h>

#include "base/util.h"
#include "context/context.h"
#include "device/device.h"
#include "engine/tap.h"
#include "front/vdev.h"
#include "link/link.h"
#include "threads/worker.h"

struct vp_capture {
	struct vp_tap      tap;
	struct vp_link    *l;        /* NULL = it has gone */
	struct vp_capture *next;     /* of the link */
	void             (*ended)(void *ctx, const char *link, const char *why);
	void              *ctx;
	int                fd;
	uint32_t           ring_size;
	void              *mem;
	size_t             mem_size;
};

static unsigned n_captures;

void vp_captures_apply(struct vp_link *l)
{
	for (unsigned s = 0; s < VP_SIDES; s++) {
		struct vp_vdev *v = l->ops->vdev(l, s);

		for (unsigned i = 0; v && i < vp_vdev_rings(v); i++) {
			struct vp_queue *q = &vp_vdev_ring(v, i)->rq;

			/* What a driver receives on a port link was sent by the other VM. */
			q->tap_side = (uint8_t)(vp_vdev_use(v, i) == VP_QUEUE_RECEIVES ? !s : s);
			q->tap_queue = (uint16_t)i;
			__atomic_store_n(&q->tap, l->taps, __ATOMIC_RELEASE);
		}
	}
}

/* Power of two. */
static uint32_t ring_size(uint32_t buffer, unsigned rings)
{
	uint32_t size = VP_CAPRING_MIN;

	while (size * 2ull * rings <= buffer)
		size *= 2;
	return size;
}

static int make_rings(struct vp_capture *c, uint32_t buffer, struct vp_err *e)
{
	const unsigned n = 1 + worker_pool_size(c->l->d->workers);
	size_t each;

	c->tap.ring = calloc(n, sizeof(*c->tap.ring));
	if (!c->tap.ring)
		return vp_err_set(e, -ENOMEM, "out of memory");
	c->tap.n = n;
	c->ring_size = ring_size(buffer, n);
	each = VP_CAPRING_PAGE + c->ring_size;
	c->mem_size = n * each;
	/* seccomp control: memfd_create ftruncate fcntl */
	c->fd = memfd_create("vhost-pci capture", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (c->fd < 0 || ftruncate(c->fd, (off_t)c->mem_size) ||
	    fcntl(c->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return vp_err_set(e, -errno, "a capture's buffer of %zu bytes: %m", c->mem_size);
	c->mem = mmap(NULL, c->mem_size, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (c->mem == MAP_FAILED) {
		c->mem = NULL;
		return vp_err_set(e, -errno, "a capture's buffer of %zu bytes cannot be mapped: %m", c->mem_size);
	}
	for (unsigned i = 0; i < n; i++)
		vp_capring_init(&c->tap.ring[i], (uint8_t *)c->mem + i * each, c->ring_size);
	return 0;
}

static void capture_free(struct vp_capture *c)
{
	if (c->mem)
		munmap(c->mem, c->mem_size);
	vp_close(&c->fd);
	free(c->tap.ring);
	free(c);
	n_captures--;
}

static int may_start(const struct vp_link *l, uint32_t snaplen, uint32_t buffer, struct vp_err *e)
{
	struct vp_queue_stats s;

	if (!l->ops->sent(l, VP_SIDE_DRIVER, &s))
		return vp_err_set(e, -EINVAL,
				  "link %s has mode %s: what passes through it is in its VMs only. In its device VM "
				  "use vhost-pci-agent --capture or tcpdump on the agent's interface, or vhost-pci-fwd "
				  "--capture; or give the link Mode=copy",
				  l->conf.name, vp_mode_name(l->decision.mode));
	if (!snaplen || snaplen > VP_CAPTURE_SNAPLEN)
		return vp_err_set(e, -EINVAL, "snaplen is 1 to %u bytes of a packet", VP_CAPTURE_SNAPLEN);
	if (buffer < 2 * VP_CAPRING_MIN || buffer > VP_CAPTURE_BUFFER_MAX)
		return vp_err_set(e, -EINVAL, "buffer is %u to %u bytes", 2 * VP_CAPRING_MIN, VP_CAPTURE_BUFFER_MAX);
	if (n_captures >= VP_CAPTURES_MAX)
		return vp_err_set(e, -EDQUOT, "%u captures run already, and that is the most; end one", n_captures);
	return 0;
}

int vp_capture_start(struct vp_capture **out, struct vp_link *l, uint32_t snaplen, uint32_t buffer,
		     void (*ended)(void *ctx, const char *link, const char *why), void *ctx, struct vp_err *e)
{
	struct vp_capture *c;
	int r = may_start(l, snaplen, buffer, e);

	if (r)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return vp_err_set(e, -ENOMEM, "out of memory");
	n_captures++;
	c->fd = -1;
	c->l = l;
	c->tap.snaplen = snaplen;
	c->ended = ended;
	c->ctx = ctx;
	r = make_rings(c, buffer, e);
	if (r) {
		capture_free(c);
		return r;
	}
	c->next = l->captures;
	l->captures = c;
	c->tap.next = l->taps;
	l->taps = &c->tap;
	vp_captures_apply(l);
	*out = c;
	return 0;
}

static void unlink_tap(struct vp_link *l, struct vp_capture *c)
{
	struct vp_capture **p = &l->captures;
	struct vp_tap *t;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	if (l->taps == &c->tap)
		l->taps = c->tap.next;
	for (t = l->taps; t; t = t->next)
		if (t->next == &c->tap)
			__atomic_store_n(&t->next, c->tap.next, __ATOMIC_RELEASE);
	vp_captures_apply(l);
	/* Whoever was at it has gone on. */
	urcu_qsbr_synchronize_rcu();
}

void vp_capture_stop(struct vp_capture *c)
{
	if (!c)
		return;
	if (c->l)
		unlink_tap(c->l, c);
	capture_free(c);
}

void vp_capture_info(const struct vp_capture *c, struct vp_capture_info *info)
{
	*info = (struct vp_capture_info){ .fd = c->fd, .rings = c->tap.n, .ring_size = c->ring_size };
}

void vp_captures_end(struct vp_link *l, const char *why)
{
	struct vp_capture *c;

	l->taps = NULL;
	while ((c = l->captures)) {
		l->captures = c->next;
		c->l = NULL;
		c->ended(c->ctx, l->conf.name, why);
	}
}
