/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver VM for the fault campaign, in one host process: the vhost-user front-end and the virtio-net driver
 * of one queue pair, with numbered traffic both ways (traffic.h).
 *
 * It behaves as a VMM that reconnects: when the back-end is gone it tries again for ever, and hands its rings over as
 * they are, a split ring at the used index that the device left in memory; a packed one does not tell where it was, and
 * starts empty (as after a reset of the driver).
 *
 * SIGTERM: stop the rings, end. SIGUSR1: reset (stop the rings, start empty ones).
 * SIGUSR2: suspend and resume (stop the rings, go on where they stood).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/util.h"
#include "traffic.h"
#include "vhostuser/frontend.h"
#include "virtq/drvq.h"

#ifndef VIRTIO_F_IN_ORDER
#define VIRTIO_F_IN_ORDER 35
#endif

#define MEM_SIZE (8u << 20)
#define GPA      UINT64_C(0x100000000)
/* Rings and buffers in turn in AREAS places: whoever is still at work on an old ring harms the old one only. */
#define AREAS    4u
#define AREA     (2u << 20)
#define RING_MAX (32u << 10)
#define BUFFERS  (256u << 10)
#define STRIDE   2048u
#define HDR      12u
#define SIZE     256u
#define CALL_MS  8000

static struct {
	struct end end;
	const char *path;
	uint64_t features;
	unsigned size, rx_len;
	bool poll;
	uint8_t *mem;
	int memfd, sigfd;
	struct vu_frontend *f;
	struct ring {
		struct vp_drvq q;
		bool     made;
		unsigned area;
		int      kick, call;
		unsigned buf_of[SIZE], free[SIZE], nfree;
	} ring[2];   /* 0: receive, 1: transmit */
	bool quit, reset, suspend;
} d;

static uint32_t ring_off(unsigned i)
{
	return d.ring[i].area * AREA + i * RING_MAX;
}

static uint32_t buf_off(unsigned i, unsigned b)
{
	return d.ring[i].area * AREA + BUFFERS + (i * SIZE + b) * STRIDE;
}

static void nudge(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return; /* full: raised already */
}

static void drain(int fd)
{
	uint64_t v;

	if (read(fd, &v, sizeof(v)) < 0)
		return;
}

static void publish(struct ring *r)
{
	vp_drvq_publish(&r->q);
	if (vp_drvq_need_kick(&r->q))
		nudge(r->kick);
}

static void offer(unsigned buf)
{
	struct vp_drvq_buf b = { .addr = GPA + buf_off(0, buf), .len = d.rx_len, .write = true };
	int id = vp_drvq_add(&d.ring[0].q, &b, 1);

	if (id >= 0)
		d.ring[0].buf_of[id] = buf;
}

static int ring_make(unsigned i)
{
	struct ring *r = &d.ring[i];
	int ret;

	if (r->made)
		vp_drvq_fini(&r->q);
	r->area = (r->area + 1) % AREAS;
	ret = vp_drvq_init(&r->q, (uint16_t)d.size, d.features, vp_gptr_from_map(d.mem + ring_off(i)));
	if (ret)
		return ret;
	r->made = true;
	r->nfree = 0;
	for (unsigned b = 0; b < d.size; b++)
		if (i)
			r->free[r->nfree++] = b;
		else
			offer(b);
	if (!i)
		vp_drvq_publish(&r->q);
	return 0;
}

/* Where the back-end goes on: for an empty ring its start, else behind what was used. */
static uint32_t ring_base(unsigned i)
{
	struct vp_drvq *q = &d.ring[i].q;

	return q->packed ? 0x80008000 : vp_ld16(q->device, 2);
}

static int ring_start(unsigned i, uint32_t base, struct vp_err *e)
{
	struct ring *r = &d.ring[i];
	uint64_t driver, device, at = (uintptr_t)d.mem + ring_off(i);
	struct vu_frontend_ring fr = {
		.num = d.size, .base = base, .kick_fd = r->kick, .call_fd = r->call, .err_fd = -1
	};
	int ret;

	vp_drvq_layout((uint16_t)d.size, r->q.packed, &driver, &device);
	fr.desc = at;
	fr.avail = at + driver;
	fr.used = at + device;
	ret = vu_frontend_start_ring(d.f, i, &fr, e);
	if (!ret)
		ret = vu_frontend_enable(d.f, i, true, e);
	/* Whatever lies in the ring already: one look, as VMMs give. */
	nudge(r->kick);
	return ret;
}

static int rings_stop(uint32_t *base, struct vp_err *e)
{
	int ret = 0;

	for (unsigned i = 0; i < 2 && !ret; i++)
		ret = vu_frontend_stop_ring(d.f, i, &base[i], e);
	return ret;
}

static int session_begin(struct vp_err *e)
{
	struct vu_mem_region m = { .gpa = GPA, .size = MEM_SIZE, .uva = (uintptr_t)d.mem };
	uint64_t pf = VP_BIT(VU_PF_REPLY_ACK) | VP_BIT(VU_PF_CONFIG) | VP_BIT(VU_PF_STATUS) |
		      VP_BIT(VU_PF_CONFIGURE_MEM_SLOTS),
		 offered;
	int ret;

	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", d.path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		ret = vp_err_set(e, -errno, "%s: %s", d.path, strerror(errno));
		vp_close(&fd);
		return ret;
	}
	d.f = vu_frontend_new(fd, CALL_MS, e);
	if (!d.f)
		return -ENOMEM;
	ret = vu_frontend_negotiate(d.f, pf, &offered, e);
	if (!ret && d.features & ~offered)
		ret = vp_err_set(e, -EOPNOTSUPP, "features 0x%llx are not offered",
				 (unsigned long long)(d.features & ~offered));
	if (!ret)
		ret = vu_frontend_set_features(d.f, d.features, e);
	if (!ret)
		ret = vu_frontend_set_mem(d.f, &m, &d.memfd, 1, e);
	for (unsigned i = 0; i < 2 && !ret; i++) {
		if (!d.ring[i].made || d.ring[i].q.packed)
			ret = ring_make(i);
		if (!ret)
			ret = ring_start(i, ring_base(i), e);
	}
	return ret;
}

static void session_end(void)
{
	vu_frontend_destroy(d.f);
	d.f = NULL;
	d.end.page->running = 0;
}

/* ---- traffic ----------------------------------------------------------------------------------------------------- */

static void ring_broken(unsigned i)
{
	end_bad(&d.end, &d.end.page->broken, "the used entries of the %s queue make no sense",
		i ? "transmit" : "receive");
	d.reset = true;
}

/* One packet: its first buffer is id; it may go on in others. False: not all of it is there. */
static bool take_packet(uint16_t id, uint32_t len)
{
	static uint8_t pkt[PKT_MAX + STRIDE];
	struct ring *r = &d.ring[0];
	unsigned used[64], n = 0, want;
	struct virtio_net_hdr_mrg_rxbuf h;
	uint32_t at = 0;

	memcpy(&h, d.mem + buf_off(0, r->buf_of[id]), HDR);
	want = d.features & VP_BIT(VIRTIO_NET_F_MRG_RXBUF) ? h.num_buffers : 1;
	if (len < HDR || want < 1 || want > VP_ARRAY_SIZE(used) || h.hdr.flags || h.hdr.gso_type) {
		end_bad(&d.end, &d.end.page->corrupt,
			"a receive buffer of %u bytes with a header of %u buffers, flags %u, type %u", len, want,
			h.hdr.flags, h.hdr.gso_type);
		want = 1;
	}
	for (;;) {
		uint32_t skip = n ? 0 : HDR;

		used[n++] = r->buf_of[id];
		if (len > skip && at + len - skip <= sizeof(pkt)) {
			memcpy(pkt + at, d.mem + buf_off(0, used[n - 1]) + skip, len - skip);
			at += len - skip;
		}
		if (n == want)
			break;
		if (vp_drvq_get(&r->q, &id, &len) != 1) {
			end_bad(&d.end, &d.end.page->corrupt, "a packet of %u buffers of which %u came", want, n);
			break;
		}
	}
	if (want == n && at)
		end_take(&d.end, pkt, at);
	for (unsigned i = 0; i < n; i++) {
		memset(d.mem + buf_off(0, used[i]), 0xee, d.rx_len); /* what is not written anew is noticed */
		offer(used[i]);
	}
	return true;
}

static unsigned receive(void)
{
	struct ring *r = &d.ring[0];
	unsigned n = 0;
	uint32_t len;
	uint16_t id;
	int ret;

	while ((ret = vp_drvq_get(&r->q, &id, &len)) > 0) {
		take_packet(id, len);
		n++;
	}
	if (ret < 0)
		ring_broken(0);
	if (n)
		publish(r);
	return n;
}

static void reclaim(void)
{
	struct ring *r = &d.ring[1];
	uint32_t len;
	uint16_t id;
	int ret;

	while ((ret = vp_drvq_get(&r->q, &id, &len)) > 0) {
		/* Whoever reads it after giving it back reads rubbish. */
		memset(d.mem + buf_off(1, r->buf_of[id]), 0xdd, 256);
		r->free[r->nfree++] = r->buf_of[id];
	}
	if (ret < 0)
		ring_broken(1);
}

static unsigned transmit(void)
{
	struct ring *r = &d.ring[1];
	unsigned n, done = 0;

	reclaim();
	n = end_may_send(&d.end);
	for (; done < n && r->nfree; done++) {
		unsigned buf = r->free[r->nfree - 1];
		uint32_t at = buf_off(1, buf), len;
		struct vp_drvq_buf b[2] = { { .addr = GPA + at } };
		bool two = end_random(&d.end) & 1;
		int id;

		memset(d.mem + at, 0, HDR);
		len = end_make(&d.end, d.mem + at + HDR);
		/* Whole, or the header in a descriptor of its own. */
		b[0].len = two ? HDR : HDR + len;
		b[1].addr = GPA + at + HDR;
		b[1].len = len;
		id = vp_drvq_add(&r->q, b, two ? 2 : 1);
		if (id < 0) {
			end_unmake(&d.end);
			break;
		}
		r->nfree--;
		r->buf_of[id] = buf;
	}
	if (done)
		publish(r);
	return done;
}

/*
 * ---- life ----------------------------------------------------------------------------------------------------------
 */

static void signals(void)
{
	struct signalfd_siginfo s;

	while (read(d.sigfd, &s, sizeof(s)) == sizeof(s)) {
		d.quit |= s.ssi_signo == SIGTERM;
		d.reset |= s.ssi_signo == SIGUSR1;
		d.suspend |= s.ssi_signo == SIGUSR2;
	}
}

/* Is the back-end still there? */
static bool session_lives(short revents)
{
	return vu_frontend_fd(d.f) >= 0 && !(revents & (POLLIN | POLLHUP | POLLERR));
}

static int asked(struct vp_err *e)
{
	uint32_t base[2] = { 0 };
	bool reset = d.reset;
	int ret;

	d.reset = d.suspend = false;
	ret = rings_stop(base, e);
	for (unsigned i = 0; i < 2 && !ret && !d.quit; i++) {
		if (reset)
			ret = ring_make(i);
		if (!ret)
			ret = ring_start(i, reset ? ring_base(i) : base[i], e);
	}
	d.end.page->sessions++;
	return ret;
}

static int run(struct vp_err *e)
{
	struct pollfd p[3] = { { d.sigfd, POLLIN, 0 },
			       { vu_frontend_fd(d.f), POLLIN, 0 },
			       { d.ring[0].call, POLLIN, 0 } };

	for (;;) {
		unsigned n = receive() + transmit();
		int ms = 0;

		if (!n && !d.poll) {
			ms = end_wait_ms(&d.end, 20);
			if (vp_drvq_enable_calls(&d.ring[0].q))
				ms = 0;
		}
		p[0].revents = p[1].revents = p[2].revents = 0;
		poll(p, d.poll ? 2 : 3, d.poll && !n ? 1 : ms);
		if (!d.poll)
			vp_drvq_disable_calls(&d.ring[0].q);
		if (p[2].revents & POLLIN)
			drain(d.ring[0].call);
		if (p[0].revents)
			signals();
		if (!session_lives(p[1].revents))
			return vp_err_set(e, -ECONNRESET, "the back-end went away");
		if (d.quit || d.reset || d.suspend) {
			int ret = asked(e);

			if (ret || d.quit)
				return ret;
		}
	}
}

static int options(int argc, char **argv)
{
	struct end_options o = END_DEFAULTS(0);

	d.size = SIZE;
	d.rx_len = STRIDE;
	d.features = VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_NET_F_MRG_RXBUF);
	for (int i = 1; i < argc; i++) {
		const char *v = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--packed"))
			d.features |= VP_BIT(VIRTIO_F_RING_PACKED);
		else if (!strcmp(argv[i], "--event-idx"))
			d.features |= VP_BIT(VIRTIO_RING_F_EVENT_IDX);
		else if (!strcmp(argv[i], "--in-order"))
			d.features |= VP_BIT(VIRTIO_F_IN_ORDER);
		else if (!strcmp(argv[i], "--poll"))
			d.poll = true;
		else if (!strcmp(argv[i], "--socket") && ++i)
			d.path = v;
		else if (!strcmp(argv[i], "--rx-len") && ++i)
			d.rx_len = VP_MIN(VP_MAX((unsigned)atoi(v), 128u), STRIDE);
		else if (!end_option(&o, argc, argv, &i))
			return -EINVAL;
	}
	if (!o.file || !d.path)
		return -EINVAL;
	return end_open(&d.end, &o);
}

int main(int argc, char **argv)
{
	sigset_t set;
	int ret = options(argc, argv);

	if (ret) {
		fprintf(stderr, "usage: fault-driver --socket PATH " END_USAGE " [--rx-len N]\n"
			"                    [--packed] [--event-idx] [--in-order] [--poll]: %s\n", strerror(-ret));
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d.sigfd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	d.memfd = memfd_create("driver VM", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (d.sigfd < 0 || d.memfd < 0 || ftruncate(d.memfd, MEM_SIZE) ||
	    fcntl(d.memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
		goto failed;
	d.mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, d.memfd, 0);
	if (d.mem == MAP_FAILED)
		goto failed;
	for (unsigned i = 0; i < 2; i++) {
		d.ring[i].kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		d.ring[i].call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (d.ring[i].kick < 0 || d.ring[i].call < 0)
			goto failed;
	}
	while (!d.quit) {
		struct vp_err e = { 0 };

		ret = session_begin(&e);
		if (!ret) {
			d.end.page->sessions++;
			d.end.page->running = 1;
			ret = run(&e);
		}
		if (ret)
			end_bad(&d.end, &d.end.page->errors, "%s", e.code ? e.msg : strerror(-ret));
		session_end();
		signals();
		if (ret && !d.quit)
			poll(&(struct pollfd){ d.sigfd, POLLIN, 0 }, 1, 10);
		signals();
	}
	return 0;
failed:
	perror("fault-driver");
	return 1;
}
