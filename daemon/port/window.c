/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Windows and regions (spec, "Windows and regions"): which memory the device VM has, in
 * which slot, and the order in which it comes and goes.
 *
 *   FREE -> GIVING -> READY -> REVOKING -> TAKING -> FREE
 *              |        ^---------'  named again before it was taken
 *              `-> FAILED -> FREE    (tried again after a while)
 *
 * Threat model: the memory's fds come from the driver VM's front-end. A file that can be truncated
 * kills a VMM that maps it (SIGBUS), so it is refused unless it is sealed, or can be. That goes for huge pages as for
 * others.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/foreign.h"
#include "base/log.h"
#include "port/priv.h"

static struct vhp_abi_window *went(struct vp_port *p, unsigned slot)
{
	return &p->st.windows[slot];
}

static void entry_clear(struct vp_port *p, unsigned slot)
{
	struct vhp_abi_window none = { 0 };

	if (!memcmp(went(p, slot), &none, sizeof(none)))
		return;
	port_touch_regions(p);
	*went(p, slot) = none;
}

static void entry_ready(struct vp_port *p, unsigned slot, bool ready)
{
	uint32_t flags = htole32(ready ? VHP_WINDOW_READY : 0);

	if (went(p, slot)->flags == flags)
		return;
	port_touch_regions(p);
	went(p, slot)->flags = flags;
}

static void win_free(struct vp_port *p, unsigned slot)
{
	struct port_win *w = &p->win[slot];

	entry_clear(p, slot);
	vp_close_foreign(&w->fd);
	*w = (struct port_win){ .fd = -1 };
}

static void win_failed(struct vp_port *p, unsigned slot, const char *why)
{
	struct port_win *w = &p->win[slot];
	bool again = w->error[0] && !strcmp(w->error, why);

	snprintf(w->error, sizeof(w->error), "%s", why);
	w->state = WIN_FAILED;
	w->deadline = port_now(p) + PORT_RETRY_US;
	entry_clear(p, slot);
	if (!again)
		vp_log(VP_LOG_WARNING, "port %.32s: a window of %llu MiB cannot be given: %s", p->conf.name,
		       (unsigned long long)w->size >> 20, why);
}

static void win_take(struct vp_port *p, unsigned slot)
{
	struct port_win *w = &p->win[slot];

	entry_clear(p, slot);
	w->deadline = 0;
	w->state = WIN_TAKING;
	if (!p->aops || p->aops->take(p->att, slot) != VP_LATER)
		win_free(p, slot);
}

static void win_give(struct vp_port *p, unsigned slot)
{
	struct port_win *w = &p->win[slot];
	struct vhp_abi_window *e = went(p, slot);
	struct vp_err err = { 0 };
	char what[64];
	struct vp_port_window req = { .slot = slot, .fd = w->fd, .offset = w->offset, .size = w->size, .what = what };
	int r;

	if (!++p->serial)
		p->serial = 1;
	w->serial = req.serial = p->serial;
	w->deadline = 0;
	w->cancel = w->dead = false;
	if (w->truncatable && !p->conf.unsealed_ok) {
		win_failed(p, slot,
			   "its file could be truncated, which would kill the device VM; give the driver VM a "
			   "memory-backend-memfd (with hugetlb=on for huge pages), which is sealed");
		return;
	}
	snprintf(what, sizeof(what), "window %u of port %.32s", slot, p->conf.name);
	/* The entry comes before the device: the attachment may complete from inside the call. */
	w->state = WIN_GIVING;
	r = p->aops->give(p->att, &req, &w->kind, &w->locator, &err);
	if (r < 0) {
		win_failed(p, slot, err.code ? err.msg : strerror(-r));
		return;
	}
	port_touch_regions(p);
	p->used_windows = VP_MAX(p->used_windows, slot + 1);
	*e = (struct vhp_abi_window){
		.size = htole64(w->size), .locator = htole64(w->locator), .serial = htole32(w->serial),
		.kind = htole32(w->kind),
	};
	if (!r) {
		w->state = WIN_READY;
		w->error[0] = 0;
		e->flags = htole32(VHP_WINDOW_READY);
	}
}

/* ---- which window a region lies in ------------------------------------------ */

static bool same_file(const struct port_win *w, const struct port_region *m)
{
	return w->dev == m->dev && w->ino == m->ino;
}

static uint64_t win_offset(const struct port_region *m)
{
	return m->r.win_size ? m->r.win_offset : m->r.offset;
}

static uint64_t win_size(const struct port_region *m)
{
	return m->r.win_size ? m->r.win_size : m->r.size;
}

static int find_window(struct vp_port *p, const struct port_region *m)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		struct port_win *w = &p->win[i];

		if (w->state == WIN_FREE || w->state == WIN_TAKING || w->cancel || !same_file(w, m))
			continue;
		if (m->r.own ? w->offset == win_offset(m) && w->size == win_size(m) :
			       vp_range_inside(m->r.offset, m->r.size, w->offset, w->size))
			return (int)i;
	}
	return -1;
}

/* A new window for m: the whole file, or all that the present table names of it. */
static int new_window(struct vp_port *p, const struct port_region *m)
{
	uint64_t from = win_offset(m), to = from + win_size(m);
	struct port_win *w;
	unsigned slot = 0;

	while (slot < VHP_MAX_WINDOWS && p->win[slot].state != WIN_FREE)
		slot++;
	if (slot == VHP_MAX_WINDOWS)
		return -1;
	w = &p->win[slot];
	for (unsigned i = 0; i < p->n_mem && !m->r.own; i++)
		if (p->mem[i].dev == m->dev && p->mem[i].ino == m->ino) {
			from = VP_MIN(from, p->mem[i].r.offset);
			to = VP_MAX(to, p->mem[i].r.offset + p->mem[i].r.size);
		}
	if (p->conf.whole_files) {
		from = 0;
		to = m->file_size;
	}
	*w = (struct port_win){
		.dev = m->dev, .ino = m->ino, .truncatable = m->truncatable, .offset = from, .size = to - from
	};
	w->fd = fcntl(m->r.fd, F_DUPFD_CLOEXEC, 3);
	if (w->fd < 0)
		win_failed(p, slot, "out of file descriptors; raise LimitNOFILE=");
	else if (m->r.own && (from != win_offset(m) || w->size != win_size(m)))
		win_failed(p, slot, "it would show more of its file than was granted; use Attachment=shmem");
	else
		win_give(p, slot);
	return (int)slot;
}

static int pool_window(struct vp_port *p)
{
	unsigned slot = 0;

	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state == WIN_READY && p->win[i].kind == VHP_WINDOW_POOL)
			return (int)i;
	while (slot < VHP_MAX_WINDOWS && p->win[slot].state != WIN_FREE)
		slot++;
	if (slot == VHP_MAX_WINDOWS)
		return -1;
	if (!++p->serial)
		p->serial = 1;
	p->win[slot] = (struct port_win){
		.state = WIN_READY, .fd = -1, .size = p->conf.pool_size, .kind = VHP_WINDOW_POOL,
		.locator = VHP_CTRL_POOL_OFF, .serial = p->serial,
	};
	port_touch_regions(p);
	p->used_windows = VP_MAX(p->used_windows, slot + 1);
	*went(p, slot) = (struct vhp_abi_window){
		.size = htole64(p->conf.pool_size), .locator = htole64(VHP_CTRL_POOL_OFF), .serial = htole32(p->serial),
		.kind = htole32(VHP_WINDOW_POOL), .flags = htole32(VHP_WINDOW_READY),
	};
	return (int)slot;
}

/* ---- keeping in line --------------------------------------------------------- */

static bool wanted(const struct vp_port *p)
{
	/* While the link is up its memory stays: the guest may have to stop queues first. */
	return p->online && p->attached && p->driver != VP_PORT_NO_DRIVER &&
	       (p->up || !(p->hold & (VP_PORT_HOLD_POLICY | VP_PORT_HOLD_ADMIN | VP_PORT_HOLD_PROTOCOL)));
}

static bool shows_inflight(const struct vp_port *p)
{
	for (unsigned i = 0; i < le32toh(p->st.nregions); i++)
		if (p->st.regions[i].flags & htole32(VHP_REGION_INFLIGHT))
			return true;
	return false;
}

static void put_regions(struct vp_port *p, const struct vhp_abi_region *r, unsigned n)
{
	unsigned old = le32toh(p->st.nregions), nwin = 0;

	for (unsigned i = 0; i < p->used_windows; i++)
		if (went(p, i)->kind)
			nwin = i + 1;
	p->st.nwindows = htole32(nwin);
	if (old == n && (!n || !memcmp(p->st.regions, r, n * sizeof(*r))))
		return;
	port_touch_regions(p);
	p->used_regions = VP_MAX(p->used_regions, n);
	if (n)
		memcpy(p->st.regions, r, n * sizeof(*r));
	if (old > n)
		memset(&p->st.regions[n], 0, (old - n) * sizeof(*r));
	p->st.nregions = htole32(n);
	p->st.inflight_queues = htole32(shows_inflight(p) ? p->inflight_queues : 0);
	p->st.inflight_entries = htole32(shows_inflight(p) ? p->inflight_entries : 0);
}

/* Give up a window that no region names. */
static void unused(struct vp_port *p, unsigned slot)
{
	struct port_win *w = &p->win[slot];

	switch (w->state) {
	case WIN_GIVING:
		if (!w->cancel) {
			w->cancel = true;
			entry_clear(p, slot);
		}
		break;
	case WIN_READY:
		if (w->kind == VHP_WINDOW_POOL) {
			win_free(p, slot);
			break;
		}
		w->state = WIN_REVOKING;
		/* The regions went in this very update, whose generation this is. */
		port_touch_regions(p);
		w->gen = le32toh(p->st.regions_generation);
		w->deadline = port_now(p) + PORT_SYNC_US;
		break;
	case WIN_FAILED:
		if (!w->dead)
			win_free(p, slot);
		break;
	default:
		break;
	}
}

static bool shown(const struct vp_port *p, uint64_t addr)
{
	for (unsigned i = 0; i < le32toh(p->st.nregions); i++)
		if (p->st.regions[i].addr == htole64(addr))
			return true;
	return false;
}

bool vp_port_shows(const struct vp_port *p, uint64_t addr, uint64_t size)
{
	for (unsigned i = 0; i < le32toh(p->st.nregions) && size; i++) {
		const struct vhp_abi_region *r = &p->st.regions[i];
		uint64_t at = le64toh(r->addr), n = le64toh(r->size);

		if (r->flags & htole32(VHP_REGION_INFLIGHT) || addr < at || addr - at >= n ||
		    p->win[le32toh(r->window)].state != WIN_READY)
			continue;
		n = VP_MIN(n - (addr - at), size);
		addr += n;
		size -= n;
	}
	return !size;
}

bool vp_port_shows_whole(const struct vp_port *p, uint64_t addr, uint64_t size)
{
	for (unsigned i = 0; i < le32toh(p->st.nregions); i++) {
		const struct vhp_abi_region *r = &p->st.regions[i];

		if (vp_range_inside(addr, size, le64toh(r->addr), le64toh(r->size)))
			return vp_port_shows(p, addr, size);
	}
	return false;
}

bool vp_port_windows_leaving(const struct vp_port *p)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		const struct port_win *w = &p->win[i];

		if (w->state == WIN_REVOKING || w->state == WIN_TAKING || (w->state == WIN_GIVING && w->cancel) ||
		    (w->state == WIN_FAILED && w->dead))
			return true;
	}
	return false;
}

bool vp_port_windows_out(const struct vp_port *p)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		const struct port_win *w = &p->win[i];

		if (w->state != WIN_FREE && w->kind != VHP_WINDOW_POOL && (w->state != WIN_FAILED || w->dead))
			return true;
	}
	return false;
}

/*
 * The link works without the in-flight area when there is no place for it (an ivshmem window wants a root port). Who
 * has begun without it does not get it later: queues that began then would differ from those before.
 */
static bool do_without(const struct vp_port *p, const struct port_region *m, const struct port_win *w)
{
	return m->r.flags & VHP_REGION_INFLIGHT && ((w && w->state == WIN_FAILED) || (p->up && !shows_inflight(p)));
}

void vp_port_set_inflight(struct vp_port *p, unsigned queues, unsigned entries)
{
	p->inflight_queues = queues;
	p->inflight_entries = entries;
}

bool vp_port_keeps_account(const struct vp_port *p)
{
	return p->attached && p->keeps && shows_inflight(p);
}

static bool can_show(const struct port_win *w)
{
	return w->state == WIN_READY || w->state == WIN_REVOKING;
}

/* It is named: if it was about to go, it stays. */
static void stays(struct port_win *w)
{
	w->used = true;
	if (w->state != WIN_REVOKING)
		return;
	w->state = WIN_READY;
	w->deadline = 0;
}

static struct vhp_abi_region region(const struct port_region *m, uint64_t from, uint64_t size, unsigned slot,
				    const struct port_win *w)
{
	return (struct vhp_abi_region){
		.addr = htole64(m->r.addr + from), .size = htole64(size),
		.offset = htole64(m->r.fd < 0 ? m->r.offset : m->r.offset + from - w->offset),
		.window = htole32(slot), .flags = htole32(m->r.flags),
	};
}

/*
 * Until m's own window is there, windows that are parts of that one show what they have of m. out has room for `room`;
 * *n counts. Returns whether they show all.
 */
static bool show_parts(struct vp_port *p, const struct port_region *m, struct vhp_abi_region *out, unsigned *n,
		       unsigned room)
{
	bool all = true;

	for (uint64_t from = 0, to; from < m->r.size; from = to) {
		uint64_t at = m->r.offset + from;
		int slot = -1;

		to = m->r.size;
		for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
			const struct port_win *w = &p->win[i];

			if (!can_show(w) || !same_file(w, m) ||
			    !vp_range_inside(w->offset, w->size, m->r.win_offset, m->r.win_size))
				continue;
			if (w->offset <= at && at - w->offset < w->size)
				slot = (int)i;
			else if (w->offset > at)
				to = VP_MIN(to, w->offset - m->r.offset);
		}
		if (slot < 0 || *n >= room) {
			all = false;
			continue;
		}
		to = VP_MIN(m->r.size, p->win[slot].offset + p->win[slot].size - m->r.offset);
		stays(&p->win[slot]);
		out[(*n)++] = region(m, from, to - from, (unsigned)slot, &p->win[slot]);
	}
	return all;
}

void port_windows_update(struct vp_port *p)
{
	struct vhp_abi_region out[VHP_MAX_REGIONS];
	unsigned n = 0;

	p->n_unready = 0;
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		p->win[i].used = false;
	for (unsigned i = 0; wanted(p) && i < p->n_mem; i++) {
		const struct port_region *m = &p->mem[i];
		bool pool = m->r.fd < 0;
		int slot = pool ? pool_window(p) : find_window(p, m);
		struct port_win *w;
		bool added;

		if (slot < 0 && !pool)
			slot = new_window(p, m);
		added = p->up && m->r.own && (m->r.late || !shown(p, m->r.addr));
		if (m->r.win_size && (slot < 0 || !can_show(&p->win[slot]))) {
			if (slot >= 0)
				p->win[slot].used = true;
			/* Those that follow have room for one region each. */
			if (!show_parts(p, m, out, &n, VHP_MAX_REGIONS - (p->n_mem - i - 1)))
				p->n_unready += !added;
			continue;
		}
		if (slot < 0) {
			p->n_unready += !added;  /* a slot is free again when a window has been taken */
			continue;
		}
		w = &p->win[slot];
		w->used = true;
		if (do_without(p, m, w) || (added && !can_show(w)))
			continue;
		stays(w);
		if (w->state != WIN_READY)
			p->n_unready++;
		if (w->state == WIN_FAILED)
			continue;
		out[n++] = region(m, 0, m->r.size, (unsigned)slot, w);
	}
	put_regions(p, out, n);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (!p->win[i].used && p->win[i].state != WIN_FREE)
			unused(p, i);
}

void port_windows_withdraw(struct vp_port *p)
{
	put_regions(p, NULL, 0);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		struct port_win *w = &p->win[i];

		if ((w->state == WIN_READY || w->state == WIN_REVOKING) && w->kind != VHP_WINDOW_POOL)
			win_take(p, i);
		else if (w->state != WIN_FREE)
			unused(p, i);
	}
	put_regions(p, NULL, 0);
}

void port_windows_lost(struct vp_port *p)
{
	put_regions(p, NULL, 0);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state != WIN_FREE)
			win_free(p, i);
	put_regions(p, NULL, 0);
}

bool port_windows_going(const struct vp_port *p)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state == WIN_TAKING || (p->win[i].state == WIN_GIVING && p->win[i].cancel))
			return true;
	return false;
}

void port_windows_sync(struct vp_port *p, uint32_t gen)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state == WIN_REVOKING && (int32_t)(gen - p->win[i].gen) >= 0)
			win_take(p, i);
}

void port_windows_timer(struct vp_port *p, uint64_t now)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		struct port_win *w = &p->win[i];

		if (!w->deadline || w->deadline > now)
			continue;
		w->deadline = 0;
		if (w->state == WIN_REVOKING)
			win_take(p, i);
		else if (w->state == WIN_FAILED && w->dead)
			win_take(p, i);  /* it is made anew when it has gone */
		else if (w->state == WIN_FAILED && w->fd >= 0 && wanted(p))
			win_give(p, i);
	}
}

uint64_t port_windows_deadline(const struct vp_port *p)
{
	uint64_t t = 0;

	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].deadline && (!t || p->win[i].deadline < t))
			t = p->win[i].deadline;
	return t;
}

/* ---- from the attachment -------------------------------------------------------- */

void vp_port_window_given(struct vp_port *p, unsigned slot, int result, const char *why)
{
	struct port_win *w = &p->win[slot];

	if (w->state != WIN_GIVING)
		return;
	vp_port_begin(p);
	if (w->cancel && !result) {
		w->cancel = false;
		win_take(p, slot);
	} else if (w->cancel) {
		win_free(p, slot);
	} else if (result) {
		win_failed(p, slot, why ? why : strerror(-result));
	} else {
		w->state = WIN_READY;
		w->error[0] = 0;
		entry_ready(p, slot, true);
	}
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_window_taken(struct vp_port *p, unsigned slot)
{
	if (p->win[slot].state != WIN_TAKING)
		return;
	vp_port_begin(p);
	win_free(p, slot);
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_window_failed(struct vp_port *p, unsigned slot, const char *why)
{
	struct port_win *w = &p->win[slot];

	if (w->state != WIN_READY)
		return;
	vp_port_begin(p);
	win_failed(p, slot, why);
	w->dead = true;
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_windows_retry(struct vp_port *p)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		if (p->win[i].state == WIN_FAILED && !p->win[i].dead)
			p->win[i].deadline = port_now(p);
	port_arm(p);
}

/* ---- the memory ------------------------------------------------------------------ */

void port_mem_free(struct vp_port *p)
{
	for (unsigned i = 0; i < p->n_mem; i++)
		vp_close_foreign(&p->mem[i].r.fd);
	free(p->mem);
	p->mem = NULL;
	p->n_mem = 0;
}

static bool can_shrink(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals >= 0 && seals & F_SEAL_SHRINK)
		return false;
	/*
	 * A memfd that its owner left open to sealing can be sealed by whoever has it, of huge pages or not. A file by
	 * name cannot.
	 */
	return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0;
}

/* Where the window is said, the region lies in it. */
static bool window_ok(const struct vp_port_region *r)
{
	uint64_t end;

	return !r->win_size || (!((r->win_size | r->win_offset) & 4095) &&
				!vp_add_overflow(r->win_offset, r->win_size, &end) &&
				vp_range_inside(r->offset, r->size, r->win_offset, r->win_size));
}

static int mem_check(const struct vp_port_region *r, unsigned n, struct vp_err *e)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t end;

		if (!r[i].size || (r[i].addr | r[i].size | r[i].offset) & 4095 ||
		    vp_add_overflow(r[i].addr, r[i].size, &end) || vp_add_overflow(r[i].offset, r[i].size, &end) ||
		    !window_ok(&r[i]))
			return vp_err_set(e, -EINVAL,
					  "memory region at 0x%llx of 0x%llx bytes does not consist of whole pages",
					  (unsigned long long)r[i].addr, (unsigned long long)r[i].size);
		if (i && (r[i].addr < r[i - 1].addr || r[i].addr - r[i - 1].addr < r[i - 1].size))
			return vp_err_set(e, -EINVAL, "memory regions overlap at 0x%llx",
					  (unsigned long long)r[i].addr);
	}
	return 0;
}

static int mem_copy(struct port_region *m, const struct vp_port_region *r, struct vp_err *e)
{
	struct stat st;

	m->r = *r;
	if (r->fd < 0)
		return 0;
	m->r.fd = fcntl(r->fd, F_DUPFD_CLOEXEC, 3);
	if (m->r.fd < 0 || fstat(m->r.fd, &st) < 0)
		return vp_err_set(e, -errno, "memory region at 0x%llx: %m", (unsigned long long)r->addr);
	/* A device has no size, and nobody truncates it; that it reaches so far was seen when it was mapped. */
	if (S_ISCHR(st.st_mode))
		st.st_size = (off_t)(r->offset + r->size);
	else if ((uint64_t)st.st_size < r->offset + r->size)
		return vp_err_set(e, -EINVAL, "memory region at 0x%llx lies outside its file",
				  (unsigned long long)r->addr);
	m->dev = st.st_dev;
	m->ino = st.st_ino;
	m->file_size = (uint64_t)st.st_size;
	m->truncatable = !S_ISCHR(st.st_mode) && can_shrink(m->r.fd);
	return 0;
}

int vp_port_set_memory(struct vp_port *p, const struct vp_port_region *r, unsigned n, struct vp_err *e)
{
	struct port_region *m = NULL;
	int ret = 0;

	if (n > VHP_MAX_REGIONS)
		ret = vp_err_set(e, -E2BIG, "%u memory regions; this ABI carries %u", n, VHP_MAX_REGIONS);
	if (!ret)
		ret = mem_check(r, n, e);
	if (!ret && n) {
		m = calloc(n, sizeof(*m));
		ret = m ? 0 : vp_err_set(e, -ENOMEM, "out of memory");
	}
	vp_port_begin(p);
	port_mem_free(p);
	p->limit = ret == -E2BIG;
	if (!ret) {
		p->mem = m;
		p->n_mem = 0;
		for (unsigned i = 0; i < n && !ret; i++) {
			struct port_region *one = &m[p->n_mem++];

			one->r.fd = -1;
			ret = mem_copy(one, &r[i], e);
			/*
			 * A driver VM that serves another VM has that one's memory in its own table, in the BARs of its
			 * ports. It is not the driver VM's to pass on; and two VMs that serve each other would be given
			 * their own memory, without end.
			 */
			if (!ret && one->r.fd >= 0 && port_lends(p->conf.driver_vm, one->dev, one->ino)) {
				vp_close_foreign(&one->r.fd);
				p->n_mem--;
			}
		}
		if (ret)
			port_mem_free(p);
	}
	port_evaluate(p);
	vp_port_commit(p);
	return ret;
}
