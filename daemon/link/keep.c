/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model of the reader: base/record.h. The places are held against the rings in virtq/place.c.
 */
#include "link/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attach/attach.h"
#include "base/foreign.h"
#include "base/log.h"
#include "base/util.h"
#include "context/context.h"
#include "handover/box.h"
#include "sys/fdstore.h"
#include "sys/timer.h"

#define MAGIC	 0x7670706cu
#define SOON_US	 5000 /* what a VMM says comes in bursts */
#define LATER_US 160000 /* one that never falls silent must not have a new box all the time: it costs, the keeper too */
#define AGAIN_US 1000000 /* when there was no room, or no file descriptor */
#define CLOSE_MS 2000

enum tag { TAG_KEEP = 1, TAG_PLACES, TAG_LINK, TAG_KEPT, TAG_ENGINES };

struct keep_rec {
	uint32_t version, pad;
	uint64_t serial;
};

/* The first line of the places. */
struct head {
	uint32_t magic, rings; /* of each side */
	uint64_t serial;       /* of the box that is with the keeper */
	uint32_t dirty;	       /* what is in it is not so any more, or will not be in a moment */
} __attribute__((aligned(64)));

struct vp_keep {
	int fd;
	struct head *head;
	size_t size;
	uint64_t serial;
	unsigned which; /* box0 or box1: where the next one goes */
	bool put;	/* the keeper has the other one */
	int box;	/* that one, also here; -1 = none */
	bool dirty, silent;
	uint64_t made_us, wait_us; /* the last box; how long behind it the next one comes, at least */
	/* what engines of its rings have (vp_keep_engine()), `each` bytes each; 0 = none */
	int engines_fd;
	uint8_t *engines;
	size_t each;
};

/* What the daemon before had of these, while a link of its is gone on with. */
static int engines_left = -1;

static const char *const boxes[] = { "box0", "box1" };

/* The link whose record is being written for a box; the journals of the one that is gone on with. */
static const struct vp_link *boxing;
static const struct vu_journal *were;

/* Head and lines; behind them the sessions' journals, which daemons before this one did not have. */
static size_t lines_size(unsigned rings)
{
	return sizeof(struct head) + (size_t)VP_SIDES * rings * sizeof(struct vp_place);
}

static size_t size_of(unsigned rings)
{
	return lines_size(rings) + VP_SIDES * sizeof(struct vu_journal);
}

/* ---- writing --------------------------------------------------------------------------------- */

static int memory_make(const char *name, size_t size, int *fd, void **p)
{
	/* seccomp control: memfd_create ftruncate fcntl mmap(arg2 & PROT_EXEC == 0) munmap */
	*fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0 || ftruncate(*fd, (off_t)size) ||
	    fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	*p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (*p != MAP_FAILED)
		return 0;
	*p = NULL;
	return -errno;
}

static void memory_free(struct vp_keep *k)
{
	if (k->engines)
		munmap(k->engines, k->head->rings * k->each);
	if (k->head)
		munmap(k->head, k->size);
	vp_close(&k->fd);
	vp_close(&k->engines_fd);
}

void vp_keep_new(struct vp_link *l, unsigned rings, size_t each)
{
	struct vp_keep *k;
	int r = -ENOMEM;

	if (!vp_fdstore_there())
		return;
	k = calloc(1, sizeof(*k));
	if (k) {
		k->box = -1;
		k->wait_us = SOON_US;
		k->fd = k->engines_fd = -1;
		k->size = size_of(rings);
		k->each = each;
		r = memory_make("places", k->size, &k->fd, (void **)&k->head);
		if (!r && each)
			r = memory_make("engines", rings * each, &k->engines_fd, (void **)&k->engines);
	}
	if (r) {
		vp_log(VP_LOG_WARNING, "link %s: it does not outlive this process: %s", l->conf.name, strerror(-r));
		if (k)
			memory_free(k);
		free(k);
		return;
	}
	*k->head = (struct head){ .magic = MAGIC, .rings = rings, .dirty = 1 };
	l->keep = k;
	vp_keep_touch(l);
}

/*
 * Emptied first: a connection in it may have others in its queue that linger (base/foreign.h), and the keeper would be
 * the last one that has it. Nobody goes on with what is in it, for the places are dirty.
 */
static void forget(struct vp_link *l)
{
	struct vp_keep *k = l->keep;

	if (k->box >= 0)
		vp_box_empty(k->box);
	vp_close(&k->box);
	if (k->put)
		vp_fdstore_drop(l->conf.name, boxes[!k->which]);
	k->put = false;
}

void vp_keep_free(struct vp_link *l)
{
	struct vp_keep *k = l->keep;

	if (!k)
		return;
	if (!l->leaving) {
		__atomic_store_n(&k->head->dirty, 1, __ATOMIC_RELEASE);
		forget(l);
	}
	memory_free(k);
	vp_close_foreign(&k->box);
	free(k);
	l->keep = NULL;
}

struct vp_place *vp_keep_places(const struct vp_link *l, unsigned side)
{
	return l->keep ? (struct vp_place *)(l->keep->head + 1) + side * l->keep->head->rings : NULL;
}

struct vu_journal *vp_keep_journal(const struct vp_link *l, unsigned side)
{
	return l->keep ? (struct vu_journal *)((char *)l->keep->head + lines_size(l->keep->head->rings)) + side : NULL;
}

const struct vu_journal *vp_keep_was(unsigned side)
{
	return were ? were + side : NULL;
}

bool vp_keep_boxing(const struct vp_link *l)
{
	return boxing == l;
}

void *vp_keep_engine(const struct vp_link *l, unsigned ring)
{
	return l->keep && l->keep->each ? l->keep->engines + ring * l->keep->each : NULL;
}

/* Pages that nobody has written stay so. */
int vp_keep_engine_load(const struct vp_link *l, unsigned ring)
{
	static const uint8_t zeroes[4096];
	uint8_t page[sizeof(zeroes)], *to = vp_keep_engine(l, ring);

	if (!to || engines_left < 0)
		return -ENOENT;
	for (size_t at = 0; at < l->keep->each; at += sizeof(page)) {
		const size_t n = VP_MIN(sizeof(page), l->keep->each - at);

		if (pread(engines_left, page, n, (off_t)(ring * l->keep->each + at)) != (ssize_t)n)
			return -EPROTO;
		if (memcmp(page, zeroes, n))
			memcpy(to + at, page, n);
	}
	return 0;
}

bool vp_keep_good(const struct vp_link *l)
{
	return l->keep && l->keep->put && !l->keep->dirty && vp_fdstore_there();
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg);

void vp_keep_touch(struct vp_link *l)
{
	struct vp_keep *k = l->keep;

	if (!k || l->leaving)
		return;
	__atomic_store_n(&k->head->dirty, 1, __ATOMIC_RELEASE);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (!k->dirty)
		vp_place_point(VP_POINT_MARKED);
	if (!k->dirty && !l->d->keep_waits) {
		l->d->keep_waits = true;
		vp_timer_in(l->d->event, &l->d->keep_timer, SOON_US, on_time, l->d, "keep");
	}
	k->dirty = true;
}

static int box_of(struct vp_link *l, int *fd, struct vp_err *e)
{
	const struct keep_rec s = { .version = VP_RECORD_VERSION, .serial = l->keep->serial + 1 };
	struct vp_rec r = { 0 };
	int ret;

	vp_rec_put(&r, TAG_KEEP, &s, sizeof(s));
	vp_rec_fd(&r, TAG_PLACES, VP_REC_FD_FILE, l->keep->fd);
	vp_rec_fd(&r, TAG_ENGINES, VP_REC_FD_FILE, l->keep->engines_fd);
	vp_rec_begin(&r, TAG_LINK);
	boxing = l;
	vp_link_save(l, &r);
	boxing = NULL;
	vp_rec_end(&r);
	if (l->ops->save_kept) {
		vp_rec_begin(&r, TAG_KEPT);
		l->ops->save_kept(l, &r);
		vp_rec_end(&r);
	}
	ret = vp_box_make(&r, fd, e);
	vp_rec_free(&r);
	return ret;
}

/* Twice as long each time that it changes again within that time and as long again. */
static void pace(struct vp_keep *k, uint64_t now)
{
	k->wait_us = now - k->made_us < 2 * k->wait_us ? VP_MIN(2 * k->wait_us, LATER_US) : SOON_US;
	k->made_us = now;
}

/* Into a new box. -EAGAIN: not yet. -EBUSY: something is short; it may be there later. */
static int commit(struct vp_link *l)
{
	struct vp_keep *k = l->keep;
	struct vp_err e = { 0 };
	int fd = -1, r = 0;

	if (!l->ops->at_rest(l))
		return -EAGAIN;
	if (l->ops->can_keep(l, &e))
		r = -EOPNOTSUPP;
	if (!r)
		r = box_of(l, &fd, &e);
	if (!r)
		r = vp_fdstore_try(l->conf.name, boxes[k->which], fd);
	if (r == -ENOTCONN)
		vp_err_set(&e, r, "the holder has gone");
	k->dirty = false;
	if (r < 0) {
		vp_close_foreign(&fd);
		if (!k->silent)
			vp_log(VP_LOG_INFO, "link %s: it does not outlive this process: %s", l->conf.name,
			       e.code ? e.msg : strerror(-r));
		k->silent = true;
		forget(l);
		k->dirty = r != -EOPNOTSUPP && r != -EMEDIUMTYPE && r != -ENOTCONN;
		return k->dirty ? -EBUSY : 0;
	}
	k->silent = false;
	vp_place_point(VP_POINT_BOXED);
	forget(l);
	k->box = fd;
	k->which = !k->which;
	k->put = true;
	k->serial++;
	k->head->serial = k->serial;
	__atomic_store_n(&k->head->dirty, 0, __ATOMIC_RELEASE);
	vp_place_point(VP_POINT_UNMARKED);
	return 0;
}

static int on_time(sd_event_source *s, uint64_t usec, void *arg)
{
	struct vp_daemon *d = arg;
	struct vp_link *l;
	struct vp_keep *k;
	bool more = false;
	uint64_t now;
	int r;

	d->keep_waits = false;
	sd_event_now(d->event, CLOCK_MONOTONIC, &now);
	for (unsigned i = 0; (l = vp_links_at(d->links, i)); i++) {
		k = l->keep;
		if (!k || !k->dirty)
			continue;
		r = now - k->made_us < k->wait_us ? -EAGAIN : commit(l);
		if (r != -EAGAIN)
			pace(k, now);
		if (r == -EBUSY)
			k->wait_us = AGAIN_US;
		more |= r != 0;
	}
	if (more) {
		d->keep_waits = true;
		vp_timer_in(d->event, &d->keep_timer, SOON_US, on_time, d, "keep");
	}
	return 0;
}

void vp_keeps_leave(struct vp_daemon *d)
{
	struct vp_link *l;

	for (unsigned i = 0; (l = vp_links_at(d->links, i)); i++)
		if (l->keep && (!l->keep->dirty || !commit(l)))
			l->leaving = l->keep->put;
}

void vp_keeps_inherit(struct vp_daemon *d, const struct vp_rec_in *in)
{
	struct vp_rec_in rest = *in;
	struct vp_conf_link was;
	struct vp_link *l;

	/* Those of links that were not handed over, too: their VMMs would wait for who has the connections in there. */
	while (vp_fdstore_there() && vp_links_record_next(&rest, &was)) {
		for (unsigned b = 0; b < VP_ARRAY_SIZE(boxes); b++)
			vp_fdstore_drop(was.name, boxes[b]);
		if (!vp_link_find(d->links, was.name) && was.endpoint == VP_ENDPOINT_PORT &&
		    was.attachment == VP_ATTACH_IVSHMEM)
			vp_ivshmem_keep_nothing(was.name, VHP_MAX_SIGNALS);
	}
	for (unsigned i = 0; (l = vp_links_at(d->links, i)); i++)
		if (l->keep)
			commit(l);
}

void vp_keeps_disown(struct vp_daemon *d, bool disown)
{
	struct vp_link *l;

	for (unsigned i = 0; (l = vp_links_at(d->links, i)); i++)
		if (l->keep && disown)
			__atomic_store_n(&l->keep->head->dirty, 1, __ATOMIC_RELEASE);
		else
			vp_keep_touch(l);
}

static void at_journal(enum vu_journal_point p)
{
	vp_place_point((enum vp_place_point)(VP_POINT_JOURNAL + p));
}

void vp_keeps_hook(void)
{
	const char *at = getenv("VHOST_PCI_CRASH_AT");

	if (at && sscanf(at, "%u,%u", &vp_place_crash_at, &vp_place_crash_n) != 2)
		vp_place_crash_at = 0;
	if (vp_place_crash_at >= VP_POINT_JOURNAL)
		vu_journal_at = at_journal;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* What is in a box, and its places. */
struct found {
	uint8_t *bytes;
	size_t n;
	struct vp_rec_fds fds;
	struct head *head; /* a copy, with the lines behind it */
	const struct vu_journal *journals; /* NULL = it has none */
};

bool vp_keeps_there(const struct vp_daemon *d)
{
	char name[VP_CONF_NAME_MAX];
	unsigned at[2] = { 0 };

	return vp_fdstore_next(&d->activation, boxes[0], &at[0], name, sizeof(name)) ||
	       vp_fdstore_next(&d->activation, boxes[1], &at[1], name, sizeof(name));
}

static void found_free(struct found *f)
{
	vp_rec_fds_close(&f->fds);
	free(f->bytes);
	free(f->head);
	memset(f, 0, sizeof(*f));
}

static int read_places(struct found *f, const struct vp_rec_in *in, struct vp_err *e)
{
	struct stat st;
	int fd, r = vp_rec_take(in, TAG_PLACES, VP_REC_FD_FILE, &fd, e);

	if (r)
		return r;
	if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)sizeof(*f->head) || st.st_size > 1 << 24)
		r = vp_err_set(e, -EPROTO, "where its rings were is missing, or malformed");
	f->head = r ? NULL : aligned_alloc(64, vp_align_up((size_t)st.st_size, 64));
	if (!r && !f->head)
		r = vp_err_set(e, -ENOMEM, "out of memory");
	if (!r && (pread(fd, f->head, (size_t)st.st_size, 0) != st.st_size || f->head->magic != MAGIC ||
		   f->head->rings > 1 << 16 ||
		   ((size_t)st.st_size != size_of(f->head->rings) &&
		    (size_t)st.st_size != lines_size(f->head->rings))))
		r = vp_err_set(e, -EPROTO, "where its rings were is malformed");
	if (!r && (size_t)st.st_size == size_of(f->head->rings))
		f->journals = (const struct vu_journal *)((const char *)f->head + lines_size(f->head->rings));
	vp_close(&fd);
	return r;
}

/* Empty the box. 0: it is the last one of a daemon that was at rest. */
static int open_box(int fd, struct found *f, struct vp_err *e)
{
	int r = vp_box_open(fd, &f->bytes, &f->n, &f->fds, e);
	const struct vp_rec_in in = { f->bytes, f->n, &f->fds };
	struct keep_rec s;

	if (r)
		return r;
	if (vp_rec_get(&in, TAG_KEEP, &s, sizeof(s)))
		return vp_err_set(e, -EPROTO, "its record is malformed, or of a newer version");
	if (s.version > VP_RECORD_VERSION)
		return vp_err_set(e, -EPROTONOSUPPORT, "its record is of version %u, and this daemon reads %u",
				  s.version, VP_RECORD_VERSION);
	r = read_places(f, &in, e);
	if (!r && s.serial != f->head->serial)
		return vp_err_set(e, -ESTALE, "its record is out of date");
	if (!r && f->head->dirty)
		return vp_err_set(e, -ESTALE,
				  "it was about to change, or waited for an answer, when that daemon ended");
	return r;
}

/* Those of another version have other sizes. */
static int engines_take(const struct vp_link *l, const struct vp_rec_in *in, struct vp_err *e)
{
	struct stat st;
	int r = vp_rec_take(in, TAG_ENGINES, VP_REC_FD_FILE, &engines_left, e);

	if (r || engines_left < 0)
		return r;
	return fstat(engines_left, &st) || st.st_size != (off_t)(l->keep->head->rings * l->keep->each) ?
		       vp_err_set(e, -EPROTO, "what its engines had written down is malformed, or of another version") :
		       0;
}

/* The link of that record, with its rings where they were. */
static int go_on(struct vp_daemon *d, const char *name, struct found *f, struct vp_err *e)
{
	const struct vp_rec_in in = { f->bytes, f->n, &f->fds };
	struct vp_link *l;
	struct vp_rec_in body, kept;
	bool more = vp_rec_find(&in, TAG_KEPT, &kept);
	static const struct vu_journal none[VP_SIDES];
	int r;

	if (!vp_rec_find(&in, TAG_LINK, &body))
		return vp_err_set(e, -EPROTO, "its record is malformed");
	were = f->journals ? f->journals : none;
	r = vp_links_restore(d->links, d, &body, e);
	l = vp_link_find(d->links, name);
	if (!r && !l) {
		were = NULL;
		/* It is another one now, which has been said. */
		vp_links_end_rest(d->links, &body);
		return 0;
	}
	if (!r && (!l->keep || f->head->rings != l->keep->head->rings))
		r = vp_err_set(e, -EPROTO, "it had another number of rings");
	if (!r)
		r = engines_take(l, &in, e);
	if (!r)
		r = l->ops->recover(l, (const struct vp_place *)(f->head + 1), f->head->rings, more ? &kept : NULL, e);
	were = NULL;
	vp_close(&engines_left);
	if (r && l) {
		/* Nothing of it was touched yet. */
		l->leaving = l->ops->save_kept;
		vp_link_remove(d->links, l);
	}
	if (r)
		return r;
	if (l->ops->go_on)
		l->ops->go_on(l);
	commit(l);
	return 0;
}

static bool restore(struct vp_daemon *d, const char *name)
{
	struct vp_err e = { 0 }, why = { 0 };
	struct found f[2] = { { 0 } };
	int r = -ENOENT;

	for (unsigned i = 0; i < 2; i++) {
		int fd = vp_fdstore_take(&d->activation, name, boxes[i]);
		int ret = fd < 0 ? -ENOENT : open_box(fd, &f[i], &e);

		if (fd >= 0)
			vp_fdstore_drop(name, boxes[i]);
		vp_close(&fd);
		if (!ret && r)
			r = go_on(d, name, &f[i], &e);
		/* Of two boxes one is out of date. */
		if (e.code && (!why.code || why.code == -ESTALE))
			why = e;
		memset(&e, 0, sizeof(e));
		found_free(&f[i]);
	}
	if (r)
		vp_log(VP_LOG_WARNING,
		       "link %s: this daemon cannot go on with it where the one before ended: %s; its VMMs connect "
		       "again",
		       name, why.code ? why.msg : strerror(-r));
	return !r;
}

void vp_keeps_restore(struct vp_daemon *d)
{
	char name[VP_CONF_NAME_MAX];
	unsigned n = 0, lost = 0;

	if (!vp_keeps_there(d))
		return;
	for (unsigned i = 0; i < VP_ARRAY_SIZE(boxes); i++)
		for (unsigned at = 0; vp_fdstore_next(&d->activation, boxes[i], &at, name, sizeof(name));)
			*(restore(d, name) ? &n : &lost) += 1;
	/* Sockets of those that start anew are free when nobody has them any more. */
	for (unsigned i = 0; i < CLOSE_MS && vp_foreign_closing(); i++)
		usleep(1000);
	vp_log(VP_LOG_INFO, "went on with %u links of the daemon before, %u start anew", n, lost);
}
