// SPDX-License-Identifier: BSD-3-Clause
#include "double.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"

#define FP(p) vp_container_of(p, struct fake_port, port)
#define FD(d) vp_container_of(d, struct fake_dp, dp)

/* ---- the port ---- */

static int f_window(struct port *p, uint32_t slot, uint32_t serial, struct port_window *out)
{
	struct fake_port *f = FP(p);
	const struct vhp_abi_window *w = &f->c->state.windows[slot];

	if (slot >= VHP_MAX_WINDOWS || !le32toh(w->kind))
		return -ENOENT;
	if (le32toh(w->serial) != serial)
		return -ESTALE;
	if (f->win_fd[slot] < 0)
		return -EAGAIN;
	f->windows_given++;
	*out = (struct port_window){ .fd = dup(f->win_fd[slot]), .size = le64toh(w->size), .align = 2 << 20 };
	return out->fd < 0 ? -errno : 0;
}

static int f_set(int *slot, int fd)
{
	vp_close(slot);
	if (fd >= 0)
		*slot = dup(fd);
	return 0;
}

static int f_set_kick(struct port *p, uint32_t signal, int fd)
{
	return signal < VHP_MAX_SIGNALS ? f_set(&FP(p)->kick[signal], fd) : -EINVAL;
}

static int f_set_call(struct port *p, uint32_t signal, int fd)
{
	return signal < VHP_MAX_SIGNALS ? f_set(&FP(p)->call[signal], fd) : -EINVAL;
}

static void stopped(struct fake_port *f, const __u64 *args)
{
	struct vhp_abi_state *s = fake_begin(f);
	struct vhp_abi_queue *q = &s->queues[args[VHP_STOPPED_QUEUE]];
	uint32_t flags = le32toh(q->flags) & ~(VHP_QUEUE_STARTED | VHP_QUEUE_STOP);

	if (le32toh(q->run) == args[VHP_STOPPED_RUN]) {
		if (args[VHP_STOPPED_FLAGS] & VHP_STOPPED_F_BROKEN)
			flags |= VHP_QUEUE_BROKEN;
		q->flags = htole32(flags);
		q->base = htole32((uint32_t)args[VHP_STOPPED_BASE]);
	}
	fake_end(f);
}

static int f_command(struct port *p, struct vhp_ioc_command *c)
{
	struct fake_port *f = FP(p);
	struct sent *s = &f->sent[f->nsent % VP_ARRAY_SIZE(f->sent)];

	s->opcode = c->opcode;
	memcpy(s->args, c->args, sizeof(s->args));
	f->nsent++;
	if (f->command_rc)
		return f->command_rc;
	c->status = VHP_ST_OK;
	if (c->opcode == VHP_CMD_ATTACH) {
		c->status = f->attach_status;
		if (!c->status) {
			fake_begin(f)->flags = htole32(VHP_STATE_ATTACHED);
			fake_end(f);
		}
	} else if (c->opcode == VHP_CMD_BACKEND) {
		c->status = f->backend_status;
	} else if (c->opcode == VHP_CMD_DETACH) {
		fake_begin(f)->flags = 0;
		fake_end(f);
	} else if (c->opcode == VHP_CMD_QUEUE_STOPPED && !f->mute_stop) {
		stopped(f, c->args);
	}
	return 0;
}

static int f_event(struct port *p, uint32_t *flags)
{
	return -EAGAIN;
}

static void f_close(struct port *p)
{
}

static const struct port_ops f_ops = {
	.window = f_window, .set_kick = f_set_kick, .set_call = f_set_call, .command = f_command,
	.event = f_event, .close = f_close,
};

void fake_init(struct fake_port *f, unsigned int queues)
{
	memset(f, 0, sizeof(*f));
	f->c = mmap(NULL, VHP_CTRL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(f->c != MAP_FAILED);
	f->port = (struct port){ .ops = &f_ops, .fd = -1, .owner = true, .ctrl = f->c, .what = "fake" };
	f->port.info = (struct vhp_ioc_info){ .version = VHP_IOC_VERSION, .abi_version = VHP_ABI_VERSION,
					      .attachment = VHP_ATTACHMENT_IVSHMEM, .max_queues = queues,
					      .nsignals = 1 + queues, .name = "fake", .bus = "test" };
	f->c->state.abi_version = htole32(VHP_ABI_VERSION);
	f->c->state.device_type = htole32(1);
	f->c->state.max_queues = htole32(queues);
	for (unsigned int i = 0; i < VHP_MAX_WINDOWS; i++)
		f->win_fd[i] = -1;
	for (unsigned int i = 0; i < VHP_MAX_SIGNALS; i++)
		f->kick[i] = f->call[i] = -1;
}

void fake_free(struct fake_port *f)
{
	for (unsigned int i = 0; i < VHP_MAX_WINDOWS; i++)
		vp_close(&f->win_fd[i]);
	for (unsigned int i = 0; i < VHP_MAX_SIGNALS; i++) {
		vp_close(&f->kick[i]);
		vp_close(&f->call[i]);
	}
	munmap(f->c, VHP_CTRL_SIZE);
}

struct vhp_abi_state *fake_begin(struct fake_port *f)
{
	struct vhp_abi_state *s = &f->c->state;

	s->generation = htole32(le32toh(s->generation) + 1);
	return s;
}

void fake_end(struct fake_port *f)
{
	struct vhp_abi_state *s = &f->c->state;

	s->generation = htole32(le32toh(s->generation) + 1);
}

void fake_window(struct fake_port *f, unsigned int slot, uint64_t size, int fd)
{
	struct vhp_abi_state *s = fake_begin(f);
	struct vhp_abi_window *w = &s->windows[slot];

	vp_close(&f->win_fd[slot]);
	f->win_fd[slot] = fd >= 0 ? dup(fd) : memfd_create("window", MFD_CLOEXEC);
	if (fd < 0)
		assert_int_equal(ftruncate(f->win_fd[slot], (off_t)size), 0);
	w->size = htole64(size);
	w->serial = htole32(le32toh(w->serial) + 1);
	w->kind = htole32(VHP_WINDOW_POOL);
	w->flags = htole32(VHP_WINDOW_READY);
	s->nwindows = htole32(VP_MAX(le32toh(s->nwindows), slot + 1));
	s->regions_generation = htole32(le32toh(s->regions_generation) + 1);
	fake_end(f);
}

void fake_region(struct fake_port *f, uint64_t addr, uint64_t size, unsigned int window, uint64_t offset)
{
	struct vhp_abi_state *s = fake_begin(f);
	uint32_t n = le32toh(s->nregions);

	s->regions[n] = (struct vhp_abi_region){
		.addr = htole64(addr), .size = htole64(size), .offset = htole64(offset),
		.window = htole32(window), .flags = htole32(VHP_REGION_READ | VHP_REGION_WRITE),
	};
	s->nregions = htole32(n + 1);
	s->regions_generation = htole32(le32toh(s->regions_generation) + 1);
	fake_end(f);
}

void fake_queue(struct fake_port *f, unsigned int q, uint64_t at, uint32_t n, uint32_t base)
{
	struct vhp_abi_state *s = fake_begin(f);
	struct vhp_abi_queue *e = &s->queues[q];

	e->desc_addr = htole64(at);
	e->avail_addr = htole64(at + 0x1000);
	e->used_addr = htole64(at + 0x2000);
	e->size = htole32(n);
	e->base = htole32(base);
	e->run = htole32(le32toh(e->run) + 1);
	e->kick_signal = e->doorbell = htole32(1 + q);
	e->flags = htole32(VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED);
	s->nqueues = htole32(VP_MAX(le32toh(s->nqueues), q + 1));
	fake_end(f);
}

void fake_up(struct fake_port *f, unsigned int n)
{
	struct vhp_abi_state *s;

	fake_window(f, 0, 1 << 20, -1);
	fake_region(f, 0x10000, 1 << 20, 0, 0);
	for (unsigned int q = 0; q < n; q++)
		fake_queue(f, q, 0x10000 + q * 0x4000, 256, 7 + q);
	s = fake_begin(f);
	s->link_status = htole32(VHP_LINK_UP);
	s->link_epoch = htole64(1);
	s->mode = htole32(VHP_MODE_FAST);
	s->features[0] = s->required_features[0] = s->offered_features[0] = htole64(F_V1);
	s->config_size = htole32(12);
	fake_end(f);
}

unsigned int fake_count(const struct fake_port *f, uint32_t opcode, struct sent *last)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < f->nsent; i++)
		if (f->sent[i].opcode == opcode) {
			n++;
			if (last)
				*last = f->sent[i];
		}
	return n;
}

/* ---- the data path ---- */

static int once(int *rc)
{
	int r = *rc;

	*rc = 0;
	return r;
}

static bool d_ready(struct datapath *d)
{
	return FD(d)->ready;
}

static void d_features(struct datapath *d, uint64_t f[2])
{
	memcpy(f, FD(d)->features, sizeof(FD(d)->features));
}

static unsigned int d_max(struct datapath *d)
{
	return FD(d)->max_queues;
}

static int d_configure(struct datapath *d, const uint64_t features[2], struct vp_err *e)
{
	memcpy(FD(d)->configured, features, sizeof(FD(d)->configured));
	return 0;
}

static int d_mem(struct datapath *d, const struct memmap *m, struct vp_err *e)
{
	int rc = once(&FD(d)->fail_mem);

	if (rc)
		return vp_err_set(e, rc, "told to fail");
	FD(d)->mem = m;
	FD(d)->mems++;
	return 0;
}

static int d_start(struct datapath *d, unsigned int q, const struct dp_queue *c, struct vp_err *e)
{
	int rc = once(&FD(d)->fail_start);

	if (rc)
		return vp_err_set(e, rc, "told to fail");
	assert_false(FD(d)->running[q]);
	FD(d)->running[q] = true;
	FD(d)->q[q] = *c;
	FD(d)->base[q] = c->base;
	FD(d)->starts++;
	return 0;
}

static int d_enable(struct datapath *d, unsigned int q, bool on, struct vp_err *e)
{
	assert_true(FD(d)->running[q]);
	FD(d)->enabled[q] = on;
	return 0;
}

static int d_stop(struct datapath *d, unsigned int q, uint32_t *base, struct vp_err *e)
{
	int rc = once(&FD(d)->fail_stop);

	assert_true(FD(d)->running[q]);
	FD(d)->running[q] = FD(d)->enabled[q] = false;
	FD(d)->stops++;
	if (rc)
		return vp_err_set(e, rc, "told to fail");
	*base = FD(d)->base[q];
	return 0;
}

static void d_reset(struct datapath *d)
{
	memset(FD(d)->running, 0, sizeof(FD(d)->running));
	FD(d)->mem = NULL;
	FD(d)->resets++;
}

static void d_config(struct datapath *d, const struct dp_config *c)
{
	FD(d)->configs++;
}

static void d_carrier(struct datapath *d, bool on)
{
	FD(d)->carrier = on;
}

static unsigned int d_fds(struct datapath *d, struct pollfd *p)
{
	return 0;
}

static int d_handle(struct datapath *d, const struct pollfd *p, unsigned int n, uint64_t broken[2],
		    struct vp_err *e)
{
	broken[0] |= FD(d)->broken[0];
	broken[1] |= FD(d)->broken[1];
	FD(d)->broken[0] = FD(d)->broken[1] = 0;
	if (!FD(d)->lost)
		return 0;
	FD(d)->lost = FD(d)->ready = false;
	return vp_err_set(e, -ECONNRESET, "told to vanish");
}

static int d_describe(struct datapath *d, uint32_t type, uint32_t config_size, struct dp_desc *out, struct vp_err *e)
{
	*out = FD(d)->desc;
	out->config_size = VP_MIN(out->config_size, config_size);
	FD(d)->describes++;
	return 0;
}

static bool d_changed(struct datapath *d)
{
	bool changed = FD(d)->changed;

	FD(d)->changed = false;
	return changed;
}

static int d_set_config(struct datapath *d, uint32_t off, uint32_t len, const uint8_t *data, struct vp_err *e)
{
	FD(d)->sets++;
	FD(d)->set_off = off;
	FD(d)->set_len = len;
	FD(d)->set_byte = data[0];
	return 0;
}

void fake_dp_any(struct fake_dp *d)
{
	d->ops.device_type = 0;
	d->ops.describe = d_describe;
	d->ops.changed = d_changed;
	d->ops.set_config = d_set_config;
}

void fake_dp_init(struct fake_dp *d)
{
	memset(d, 0, sizeof(*d));
	d->ops = (struct datapath_ops){
		.name = "fake", .device_type = 1, .ready = d_ready, .features = d_features, .max_queues = d_max,
		.configure = d_configure, .set_mem = d_mem, .start = d_start, .enable = d_enable, .stop = d_stop,
		.reset = d_reset, .config = d_config, .carrier = d_carrier, .fds = d_fds, .handle = d_handle,
	};
	d->dp.ops = &d->ops;
	d->ready = true;
	d->features[0] = F_V1 | BIT(15) | BIT(28) | BIT(29) | BIT(34);
	d->max_queues = VHP_MAX_QUEUES;
}
