/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port as a record, for the daemon that goes on with it (docs/handover.md). There it has the same memory, says
 * nothing in it until vp_port_go_on(), and goes on where this one stopped: its guest sees nothing of that. Threat
 * model: base/record.h.
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "port/priv.h"

enum tag {
	TAG_MEMORY = 1, TAG_RECORD,
	/* of the second part */
	TAG_PORT, TAG_PAGE, TAG_TOLD, TAG_QUEUE, TAG_WINDOW, TAG_BUSY,
	/* of a window */
	TAG_PLACE = 32, TAG_FILE, TAG_ERROR,
};

enum {
	F_ONLINE = 1, F_ATTACHED = 2, F_UP = 4, F_LOGGED = 8, F_FALLING = 16, F_CUT = 32, F_BAD_FEATURES = 64,
	F_KEEPS = 128, F_COUNTED = 256, F_WAS_RUNNING = 512, F_LEFT_RUNNING = 1024,
};

struct port_rec {
	uint32_t flags, driver, generation, serial, answered, n_told;
	uint64_t driver_us, up_us, features, path[2];
	uint64_t counted[VHP_COUNTS], told_counts[VHP_COUNTS];
	uint64_t n_commands, n_refused, n_cuts, n_attaches, n_updates;
};

enum { Q_RUNNING = 1, Q_STOPPING = 2, Q_LINGERS = 4 };

struct queue_rec {
	uint32_t flags, run, gen, pad;
	uint64_t deadline, await;
};

enum { W_TRUNCATABLE = 1, W_DEAD = 2, W_CANCEL = 4 };

struct window_rec {
	uint32_t slot, state, flags, serial, kind, gen;
	uint64_t offset, size, locator, deadline;
};

/* A command that waits for windows. */
struct busy_rec {
	uint64_t deadline;
	struct vhp_abi_command cmd;
};

#define PART 1024u

struct page_part {
	uint64_t at;
	uint8_t  bytes[PART];
};

_Static_assert(!(sizeof(struct vhp_abi_state) % PART) && !(offsetof(struct vhp_abi_state, reserved3) % PART) &&
		       !(offsetof(struct vhp_abi_state, windows) % PART),
	       "the page is whole parts");

/* ---- writing ------------------------------------------------------------------------------- */

bool vp_port_at_rest(const struct vp_port *p, bool on_their_way)
{
	if (p->settle_deadline || p->depth)
		return false;
	if (on_their_way)
		return true;
	if (p->busy)
		return false;
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state == WIN_GIVING || p->win[i].state == WIN_TAKING)
			return false;
	return true;
}

void vp_port_save(struct vp_port *p, struct vp_rec *r)
{
	vp_rec_fd(r, TAG_MEMORY, VP_REC_FD_FILE, p->memfd);
	vp_rec_fd(r, TAG_RECORD, VP_REC_FD_FILE, p->recordfd);
}

static void save_window(struct vp_port *p, unsigned slot, struct vp_rec *r)
{
	const struct port_win *w = &p->win[slot];
	const struct window_rec s = {
		.slot = slot, .state = w->state, .serial = w->serial, .kind = w->kind, .gen = w->gen,
		.flags = (w->truncatable ? W_TRUNCATABLE : 0) | (w->dead ? W_DEAD : 0) |
			 (w->cancel ? W_CANCEL : 0),
		.offset = w->offset, .size = w->size, .locator = w->locator, .deadline = w->deadline,
	};

	vp_rec_begin(r, TAG_WINDOW);
	vp_rec_put(r, TAG_PLACE, &s, sizeof(s));
	vp_rec_fd(r, TAG_FILE, VP_REC_FD_FILE, w->fd);
	vp_rec_str(r, TAG_ERROR, w->error);
	vp_rec_end(r);
}

static bool is_zero(const uint8_t *p)
{
	return !*p && !memcmp(p, p + 1, PART - 1);
}

/* The next part behind at; the middle is reserved, and never written. */
static size_t part_next(size_t at)
{
	at += PART;
	return at == offsetof(struct vhp_abi_state, reserved3) ? offsetof(struct vhp_abi_state, windows) : at;
}

/* What is in it: nearly all of it is zero, and there may be a thousand ports. */
static void save_page(struct vp_port *p, struct vp_rec *r)
{
	const uint8_t *st = (const uint8_t *)&p->st;
	struct page_part part;

	for (size_t at = 0; at < sizeof(p->st); at = part_next(at)) {
		if (!port_page_used(p, at, PART) || is_zero(st + at))
			continue;
		part.at = at;
		memcpy(part.bytes, st + at, PART);
		vp_rec_put(r, TAG_PAGE, &part, sizeof(part));
	}
}

void vp_port_save_hot(struct vp_port *p, struct vp_rec *r)
{
	struct port_rec s = {
		.flags = (p->online ? F_ONLINE : 0) | (p->attached ? F_ATTACHED : 0) | (p->up ? F_UP : 0) |
			 (p->logged ? F_LOGGED : 0) | (p->falling ? F_FALLING : 0) | (p->cut ? F_CUT : 0) |
			 (p->bad_features ? F_BAD_FEATURES : 0) | (p->keeps ? F_KEEPS : 0) |
			 (p->has_counted ? F_COUNTED : 0) | (p->was_running ? F_WAS_RUNNING : 0) |
			 (p->left_running ? F_LEFT_RUNNING : 0),
		.driver = p->driver, .generation = p->generation, .serial = p->serial, .answered = p->answered,
		.n_told = p->n_told, .driver_us = p->driver_us, .up_us = p->up_us, .features = p->features,
		.path = { p->path[0], p->path[1] }, .n_commands = p->n_commands, .n_refused = p->n_refused,
		.n_cuts = p->n_cuts, .n_attaches = p->n_attaches, .n_updates = p->n_updates,
	};

	memcpy(s.counted, p->counted, sizeof(s.counted));
	memcpy(s.told_counts, p->told_counts, sizeof(s.told_counts));
	vp_rec_put(r, TAG_PORT, &s, sizeof(s));
	save_page(p, r);
	vp_rec_put(r, TAG_TOLD, p->told, sizeof(p->told));
	for (unsigned q = 0; q < p->nqueues; q++) {
		const struct port_queue *n = &p->q[q];
		const struct queue_rec qs = {
			.flags = (n->running ? Q_RUNNING : 0) | (n->stopping ? Q_STOPPING : 0) |
				 (n->lingers ? Q_LINGERS : 0),
			.run = n->run, .gen = n->gen, .deadline = n->deadline, .await = n->await,
		};

		vp_rec_put(r, TAG_QUEUE, &qs, sizeof(qs));
	}
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state != WIN_FREE)
			save_window(p, i, r);
	if (p->busy) {
		const struct busy_rec b = { .deadline = p->busy_deadline, .cmd = p->cmd };

		vp_rec_put(r, TAG_BUSY, &b, sizeof(b));
	}
}

/* ---- reading ------------------------------------------------------------------------------- */

int vp_port_record_memory(const struct vp_rec_in *in, struct vp_port_conf *pc, struct vp_err *e)
{
	int r = vp_rec_take(in, TAG_MEMORY, VP_REC_FD_FILE, &pc->kept_memfd, e);

	if (!r)
		r = vp_rec_take(in, TAG_RECORD, VP_REC_FD_FILE, &pc->kept_state, e);
	if (!r && (pc->kept_memfd < 0 || pc->kept_state < 0))
		r = vp_err_set(e, -EPROTO, "the record of a port lacks its memory");
	pc->kept = pc->silent = true;
	return r;
}

/* As mem_copy() of window.c would find the file. */
static int load_window(struct vp_port *p, const struct vp_rec_in *in, struct vp_err *e)
{
	struct window_rec s;
	struct port_win *w;
	struct stat st;
	int r;

	if (vp_rec_get(in, TAG_PLACE, &s, sizeof(s)) || s.slot >= VHP_MAX_WINDOWS ||
	    p->win[s.slot].state != WIN_FREE ||
	    s.state == WIN_FREE || s.state > WIN_FAILED)
		return vp_err_set(e, -EPROTO, "the record of a window is malformed");
	w = &p->win[s.slot];
	r = vp_rec_take(in, TAG_FILE, VP_REC_FD_FILE, &w->fd, e);
	if (r)
		return r;
	if ((w->fd < 0 && s.kind != VHP_WINDOW_POOL && s.state != WIN_FAILED) || (w->fd >= 0 && fstat(w->fd, &st)) ||
	    vp_rec_text(in, TAG_ERROR, w->error, sizeof(w->error)))
		return vp_err_set(e, -EPROTO, "the record of a window is malformed");
	if (w->fd >= 0) {
		w->dev = st.st_dev;
		w->ino = st.st_ino;
	}
	w->state = (enum win_state)s.state;
	w->truncatable = s.flags & W_TRUNCATABLE;
	w->dead = s.flags & W_DEAD;
	w->cancel = s.flags & W_CANCEL;
	w->offset = s.offset;
	w->size = s.size;
	w->locator = s.locator;
	w->serial = s.serial;
	w->kind = s.kind;
	w->gen = s.gen;
	w->deadline = s.deadline;
	return 0;
}

/* What is looked up in the page by its numbers. */
static bool page_ok(const struct vp_port *p, const struct vhp_abi_state *st)
{
	if (le32toh(st->nregions) > VHP_MAX_REGIONS || le32toh(st->nwindows) > VHP_MAX_WINDOWS ||
	    le32toh(st->nqueues) != p->nqueues || le32toh(st->config_size) > VHP_CONFIG_MAX)
		return false;
	for (unsigned i = 0; i < le32toh(st->nregions); i++)
		if (le32toh(st->regions[i].window) >= VHP_MAX_WINDOWS)
			return false;
	return true;
}

static int load_queue(struct vp_port *p, unsigned q, const struct vp_rec_in *body)
{
	struct queue_rec s;

	if (q >= p->nqueues || vp_rec_get_this(body, &s, sizeof(s)))
		return -EPROTO;
	p->q[q] = (struct port_queue){
		.running = s.flags & Q_RUNNING, .stopping = s.flags & Q_STOPPING, .lingers = s.flags & Q_LINGERS,
		.run = s.run, .gen = s.gen, .deadline = s.deadline, .await = s.await,
	};
	return 0;
}

static void load_port(struct vp_port *p, const struct port_rec *s)
{
	p->online = s->flags & F_ONLINE;
	p->attached = s->flags & F_ATTACHED;
	p->up = s->flags & F_UP;
	p->logged = s->flags & F_LOGGED;
	p->falling = s->flags & F_FALLING;
	p->cut = s->flags & F_CUT;
	p->bad_features = s->flags & F_BAD_FEATURES;
	p->keeps = s->flags & F_KEEPS;
	p->has_counted = s->flags & F_COUNTED;
	p->was_running = s->flags & F_WAS_RUNNING;
	p->left_running = s->flags & F_LEFT_RUNNING;
	p->driver = (enum vp_port_driver)s->driver;
	p->generation = s->generation;
	p->serial = s->serial;
	p->answered = s->answered;
	p->n_told = s->n_told;
	p->driver_us = s->driver_us;
	p->up_us = s->up_us;
	p->features = s->features;
	memcpy(p->path, s->path, sizeof(p->path));
	memcpy(p->counted, s->counted, sizeof(p->counted));
	memcpy(p->told_counts, s->told_counts, sizeof(p->told_counts));
	p->n_commands = s->n_commands;
	p->n_refused = s->n_refused;
	p->n_cuts = s->n_cuts;
	p->n_attaches = s->n_attaches;
	p->n_updates = s->n_updates;
}

/* Memory that was never touched stays so. */
static void clear_part(struct vp_port *p, size_t at)
{
	if (!port_page_used(p, at, PART))
		return;
	memset((uint8_t *)&p->st + at, 0, PART);
	memset((uint8_t *)&p->pub + at, 0, PART);
}

/* Entries up to there may be in the part at `at`. */
static void part_used(struct vp_port *p, size_t at)
{
	const size_t win = offsetof(struct vhp_abi_state, windows), reg = offsetof(struct vhp_abi_state, regions);
	const size_t n = (at + PART - (at < reg ? win : reg)) / sizeof(struct vhp_abi_region);

	if (at >= reg)
		p->used_regions = VP_MAX(p->used_regions, VP_MIN((unsigned)n, VHP_MAX_REGIONS));
	else if (at >= win)
		p->used_windows = VP_MAX(p->used_windows, VP_MIN((unsigned)n, VHP_MAX_WINDOWS));
}

_Static_assert(sizeof(struct vhp_abi_region) == sizeof(struct vhp_abi_window), "as many in a part");

/* Parts come in rising order. What the port has made of its page so far goes. */
static bool load_page(struct vp_port *p, const struct vp_rec_in *in)
{
	struct vp_rec_in rest = *in, body;
	uint8_t *st = (uint8_t *)&p->st, *pub = (uint8_t *)&p->pub;
	struct page_part part;
	size_t at = 0;
	unsigned tag;

	while (vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_PAGE)
			continue;
		if (body.n != sizeof(part))
			return false;
		memcpy(&part, body.p, sizeof(part));
		for (; at < sizeof(p->st) && at < part.at; at = part_next(at))
			clear_part(p, at);
		if (at != part.at || at >= sizeof(p->st))
			return false;
		part_used(p, at);
		memcpy(st + at, part.bytes, PART);
		memcpy(pub + at, part.bytes, PART);
		at = part_next(at);
	}
	for (; at < sizeof(p->st); at = part_next(at))
		clear_part(p, at);
	return page_ok(p, &p->st);
}

int vp_port_restore_hot(struct vp_port *p, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	struct port_rec s;
	struct busy_rec b;
	unsigned tag, q = 0;
	int r = 0;

	if (vp_rec_get(in, TAG_PORT, &s, sizeof(s)) || s.driver > VP_PORT_DRIVER_RUNS || s.n_told > VHP_CONFIG_MAX ||
	    !load_page(p, in) || vp_rec_get(in, TAG_TOLD, p->told, sizeof(p->told)))
		return vp_err_set(e, -EPROTO, "the record of a port is malformed");
	/* Those that making it without a guest may have come to; nothing was given. */
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		vp_close(&p->win[i].fd);
		p->win[i] = (struct port_win){ .fd = -1 };
	}
	while (!r && vp_rec_next(&rest, &tag, &body))
		if (tag == TAG_QUEUE && load_queue(p, q++, &body))
			r = vp_err_set(e, -EPROTO, "the record of a port's queues is malformed");
		else if (tag == TAG_WINDOW)
			r = load_window(p, &body, e);
	if (!r && q != p->nqueues)
		r = vp_err_set(e, -EPROTO, "the record of a port's queues lacks some");
	if (r)
		return r;
	r = vp_rec_get(in, TAG_BUSY, &b, sizeof(b));
	if (r == -EPROTO)
		return vp_err_set(e, r, "the record of a port's command is malformed");
	p->busy = !r;
	p->busy_deadline = r ? 0 : b.deadline;
	if (!r)
		p->cmd = b.cmd;
	load_port(p, &s);
	p->regions_dirty = p->touched = false;
	return 0;
}

void vp_port_anew(struct vp_port *p)
{
	p->anew = true;
}

void vp_port_go_on(struct vp_port *p)
{
	p->silent = false;
	if (p->anew)
		port_page_again(p);
	p->anew = false;
	port_arm(p);
}

int vp_port_window_fd(const struct vp_port *p, unsigned slot)
{
	return slot < VHP_MAX_WINDOWS ? p->win[slot].fd : -1;
}

bool vp_port_is_silent(const struct vp_port *p)
{
	return p->silent;
}
