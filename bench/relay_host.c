/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The relay engine alone: two vhost-user server sockets, one thread, no
 * daemon around it. What remains is what a packet costs, so that a difference
 * to vhost-pcid shows what the daemon's loop adds, and profilers see one loop.
 *
 *   relay_host SOCKET_A SOCKET_B
 *
 * Commands on standard input: "stats" answers one JSON line, "quit" ends. Not a
 * hardened program: it serves front-ends that the benchmark started.
 */
#include <errno.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cycles.h"
#include "engine/relay.h"
#include "net/offload.h"
#include "vhostuser/backend.h"

#ifndef VIRTIO_F_IN_ORDER
#define VIRTIO_F_IN_ORDER 35
#endif

#define LOOK_EVERY 4096 /* rounds between looks at the sockets */

enum { RX, TX, QUEUES };

struct side {
	const char *path;
	int listen_fd;
	struct vu_backend *session;
	struct vp_memtab *tab;
	uint64_t features;
	struct vp_queue q[QUEUES];
	bool usable[QUEUES];
};

static int on_features(void *ctx, uint64_t features, struct vp_err *e)
{
	((struct side *)ctx)->features = features;
	return 0;
}

static int on_mem_table(void *ctx, const struct vu_mem_region *m, int *fds, unsigned n, struct vp_err *e)
{
	struct vp_region_desc d[VU_MAX_TABLE_REGIONS] = { 0 };
	struct side *s = ctx;
	unsigned i;
	int ret = 0;

	for (i = 0; i < n && !ret; i++) {
		d[i] = (struct vp_region_desc){ .gpa = m[i].gpa, .size = m[i].size, .uva = m[i].uva,
						.offset = m[i].mmap_offset };
		ret = vp_map_new(&d[i].map, fds[i], m[i].mmap_offset, m[i].size, 0, e);
	}
	vp_memtab_free(s->tab);
	s->tab = NULL;
	s->usable[RX] = s->usable[TX] = false; /* drivers here set their rings up after their memory */
	if (!ret && n)
		ret = vp_memtab_build(&s->tab, d, n, e);
	for (i = 0; i < n; i++)
		vp_map_unref(d[i].map);
	return ret;
}

static int ring_start(struct side *s, unsigned q, struct vp_err *e)
{
	const struct vu_ring *r = vu_backend_ring(s->session, q);
	bool packed = s->features & VP_BIT(VIRTIO_F_RING_PACKED);
	struct vp_vq_conf c = { .size = (uint16_t)r->num, .base = r->base, .features = s->features, .tab = s->tab };
	int ret;

	if (!s->tab ||
	    vp_memtab_uva_to_gpa(s->tab, r->desc, vp_vq_desc_bytes(c.size), &c.desc) ||
	    vp_memtab_uva_to_gpa(s->tab, r->avail, vp_vq_driver_bytes(c.size, packed), &c.driver) ||
	    vp_memtab_uva_to_gpa(s->tab, r->used, vp_vq_device_bytes(c.size, packed), &c.device))
		return vp_err_set(e, -EFAULT, "ring %u does not lie in the driver's memory", q);
	/* DPDK's front-end leaves the used half of a packed ring's base out: it is where the available half is. */
	if (packed && !(c.base >> 16))
		c.base |= c.base << 16;
	ret = vp_vq_start(&s->q[q].vq, &c, e);
	if (ret)
		return ret;
	s->q[q].features = s->features;
	s->q[q].blocked_since = 0;
	vp_vq_disable_kicks(&s->q[q].vq);
	s->usable[q] = true;
	return 0;
}

static int on_ring_changed(void *ctx, unsigned q, unsigned what, struct vp_err *e)
{
	struct side *s = ctx;

	s->q[q].call_fd = vu_backend_ring(s->session, q)->call_fd;
	return what & VU_RING_STARTED ? ring_start(s, q, e) : 0;
}

static int on_ring_stop(void *ctx, unsigned q, uint32_t *base, struct vp_err *e)
{
	struct side *s = ctx;

	*base = vp_vq_base(&s->q[q].vq);
	s->usable[q] = false;
	return 0;
}

static int on_reset(void *ctx, struct vp_err *e)
{
	struct side *s = ctx;

	s->usable[RX] = s->usable[TX] = false;
	return 0;
}

static const struct vu_backend_ops ops = {
	.set_features = on_features,
	.mem_table = on_mem_table,
	.ring_changed = on_ring_changed,
	.ring_stop = on_ring_stop,
	.reset = on_reset,
};

static int side_listen(struct side *s, const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	s->path = path;
	s->q[RX].call_fd = s->q[TX].call_fd = -1;
	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	unlink(path);
	s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->listen_fd < 0 || bind(s->listen_fd, (struct sockaddr *)&a, sizeof(a)) || listen(s->listen_fd, 1))
		return -errno;
	return 0;
}

static void side_drop(struct side *s)
{
	s->usable[RX] = s->usable[TX] = false;
	vu_backend_destroy(s->session);
	s->session = NULL;
	vp_memtab_free(s->tab);
	s->tab = NULL;
	s->q[RX].call_fd = s->q[TX].call_fd = -1;
}

static void side_serve(struct side *s)
{
	struct vu_backend_cfg cfg = {
		.features = VP_BIT(VIRTIO_F_VERSION_1) | VP_BIT(VIRTIO_F_RING_PACKED) | VP_BIT(VIRTIO_F_IN_ORDER) |
			    VP_BIT(VIRTIO_RING_F_INDIRECT_DESC) | VP_BIT(VIRTIO_RING_F_EVENT_IDX) |
			    VP_BIT(VIRTIO_NET_F_MRG_RXBUF),
		.pf = VP_BIT(VU_PF_MQ) | VP_BIT(VU_PF_REPLY_ACK),
		.max_queues = QUEUES, .queue_num = 1,
	};
	struct pollfd p = { .fd = s->session ? vu_backend_fd(s->session) : s->listen_fd };
	struct vp_err e = { 0 };
	int ret = 0;

	p.events = s->session ? vu_backend_events(s->session) : POLLIN;
	if (poll(&p, 1, 0) <= 0)
		return;
	if (!s->session) {
		int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0)
			s->session = vu_backend_new(fd, &cfg, &ops, s, &e);
		if (!s->session)
			fprintf(stderr, "relay_host: %s: %s\n", s->path, e.msg);
		return;
	}
	if (p.revents & POLLOUT)
		ret = vu_backend_writable(s->session, &e);
	if (!ret && p.revents & (POLLIN | POLLHUP | POLLERR))
		ret = vu_backend_readable(s->session, &e);
	if (ret) {
		if (ret != -ECONNRESET)
			fprintf(stderr, "relay_host: %s: %s\n", s->path, e.msg);
		side_drop(s);
	}
}

static void print_stats(const struct side *side)
{
	struct vp_queue_stats t = { 0 };
	uint64_t drops = 0;

	for (unsigned i = 0; i < 2; i++) {
		const struct vp_queue_stats *s = &side[i].q[TX].stats;

		t.packets += s->packets;
		t.bytes += s->bytes;
		t.bursts += s->bursts;
		t.calls += s->calls;
		t.busy_cycles += s->busy_cycles;
		for (unsigned d = 0; d < VP_DROP_MAX; d++)
			drops += s->drops[d];
	}
	printf("{\"packets\": %llu, \"bytes\": %llu, \"bursts\": %llu, \"calls\": %llu, \"busy_cycles\": %llu, "
	       "\"drops\": %llu, \"tsc\": %llu}\n",
	       (unsigned long long)t.packets, (unsigned long long)t.bytes, (unsigned long long)t.bursts,
	       (unsigned long long)t.calls, (unsigned long long)t.busy_cycles, (unsigned long long)drops,
	       (unsigned long long)vp_cycles());
	fflush(stdout);
}

/* False when asked to end. */
static bool command(const struct side *side)
{
	struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
	char line[64] = "";

	if (poll(&p, 1, 0) <= 0)
		return true;
	if (read(STDIN_FILENO, line, sizeof(line) - 1) <= 0 || !strncmp(line, "quit", 4))
		return false;
	if (!strncmp(line, "stats", 5))
		print_stats(side);
	return true;
}

static void direction(struct side *from, struct side *to, struct vp_scratch *scratch)
{
	if (from->usable[TX])
		vp_relay_run(&from->q[TX], to->usable[RX] ? &to->q[RX] : NULL, scratch);
}

int main(int argc, char **argv)
{
	static struct side side[2];
	struct vp_scratch *scratch = vp_scratch_new();
	uint64_t round = 0;

	if (argc != 3 || !scratch) {
		fprintf(stderr, "usage: relay_host SOCKET_A SOCKET_B\n");
		return 2;
	}
	vp_map_guard_faults();
	for (int i = 0; i < 2; i++) {
		int ret = side_listen(&side[i], argv[1 + i]);

		if (ret) {
			fprintf(stderr, "relay_host: %s: %s\n", argv[1 + i], strerror(-ret));
			return 1;
		}
	}
	for (;; round++) {
		if (round % LOOK_EVERY == 0 || (!side[0].usable[TX] && !side[1].usable[TX])) {
			if (!command(side))
				break;
			side_serve(&side[0]);
			side_serve(&side[1]);
			if (!side[0].usable[TX] && !side[1].usable[TX])
				usleep(1000);
		}
		direction(&side[0], &side[1], scratch);
		direction(&side[1], &side[0], scratch);
	}
	unlink(argv[1]);
	unlink(argv[2]);
	return 0;
}
