/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhost-user's DEVICE_STATE with a back-end on the host: what it knows beyond its rings, such as the files that the
 * driver VM has open. When an administrator takes the link down and the queues have stopped, the daemon asks for the
 * state and ends the connection. The next back-end gets it before anything else. It goes with the daemon, with the
 * driver VM that it is about, and when a queue has started: what is known is the back-end's again.
 *
 * The state passes through a pipe. Nothing waits for the back-end: the time for an answer holds for the whole state.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "attach/hostdev_priv.h"
#include "base/log.h"
#include "context/context.h"
#include "sys/source.h"

enum { SAVE, LOAD }; /* direction; the phase, "stopped", is 0 */

#define NO_FD	  0x100u	/* of the answer */
#define ERROR	  0xffu
#define STATE_MAX (16u << 20)
#define PART	  (64u << 10)

void hostdev_state_stop(struct hostdev *h)
{
	vp_source_end(&h->state.io);
	vp_close(&h->state.pipe);
	if (!h->state.kept)
		hostdev_state_forget(h);
	h->s.moving = false;
}

void hostdev_state_forget(struct hostdev *h)
{
	free(h->state.data);
	h->state.data = NULL;
	h->state.size = h->state.room = h->state.at = 0;
	h->state.kept = false;
}

static void failed(struct hostdev *h, const char *why)
{
	vp_log(VP_LOG_WARNING, "%s: what the driver VM has open in the back-end is lost: %s", h->c.name, why);
	h->s.ran = false;
	hostdev_state_forget(h);
	hostdev_state_stop(h);
}

/* The back-end has all of it, or we have. */
static void check(struct hostdev *h)
{
	struct vu_msg m = { .hdr.request = VU_CHECK_DEVICE_STATE };

	vp_source_end(&h->state.io);
	vp_close(&h->state.pipe);
	h->s.moving = false;
	hostdev_send(h, &m, NULL);
}

static int on_save(sd_event_source *src, int fd, uint32_t revents, void *arg)
{
	struct hostdev *h = arg;
	struct hostdev_state *st = &h->state;
	ssize_t n;

	if (st->size == st->room) {
		uint8_t *more = st->room < STATE_MAX ? realloc(st->data, st->room + PART) : NULL;

		if (!more) {
			hostdev_drop(h, true, "its state is too large");
			return 0;
		}
		st->data = more;
		st->room += PART;
	}
	n = read(fd, st->data + st->size, st->room - st->size);
	if (n > 0)
		st->size += (size_t)n;
	else if (!n)
		check(h);
	else if (errno != EAGAIN && errno != EINTR)
		hostdev_drop(h, true, "its state cannot be read");
	return 0;
}

static int on_load(sd_event_source *src, int fd, uint32_t revents, void *arg)
{
	struct hostdev *h = arg;
	struct hostdev_state *st = &h->state;
	ssize_t n = 0;

	if (st->at < st->size)
		n = write(fd, st->data + st->at, st->size - st->at);
	if (n > 0)
		st->at += (size_t)n;
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		hostdev_drop(h, true, "it does not take the state of the last one");
	else if (st->at == st->size)
		check(h);
	return 0;
}

static bool begin(struct hostdev *h, uint32_t direction)
{
	struct vu_msg m = { .hdr = { .request = VU_SET_DEVICE_STATE_FD, .size = 8 }, .p.u64 = direction };
	int p[2];
	bool ok;

	h->state.at = 0;
	/* seccomp control: pipe2 */
	if (pipe2(p, O_CLOEXEC) < 0 || fcntl(p[direction], F_SETFL, O_NONBLOCK) < 0) {
		failed(h, "there is no pipe for its state");
		return true;
	}
	h->state.pipe = p[direction];
	ok = hostdev_send(h, &m, &p[!direction]);
	close(p[!direction]);
	return ok;
}

void hostdev_state_begun(struct hostdev *h, uint64_t answer)
{
	bool load = h->state.kept;

	if (answer & ERROR || !(answer & NO_FD))
		failed(h, answer & ERROR ? "it refuses" : "it wants a channel of its own for the state");
	else if (vp_source_add(&h->state.io, h->c.d->event, h->state.pipe, load ? EPOLLOUT : EPOLLIN,
			       load ? on_load : on_save, h) < 0)
		failed(h, "out of memory");
	else
		h->s.moving = true;
	hostdev_rearm(h);
}

void hostdev_state_checked(struct hostdev *h, uint64_t answer)
{
	bool load = h->state.kept;

	if (answer) {
		failed(h, load ? "it failed to load the state of the last one" : "it failed to save its state");
		return;
	}
	h->state.kept = true;
	vp_log(VP_LOG_NOTICE, "%s: the back-end's state, %zu bytes, was %s", h->c.name, h->state.size,
	       load ? "loaded" : "saved for the next one");
	h->s.saved = !load;
}

bool hostdev_step_load(struct hostdev *h)
{
	if (!h->state.kept)
		return false;
	if (h->state.epoch != le64toh(page(h)->link_epoch)) {
		hostdev_state_forget(h);
		return false;
	}
	if (has_pf(h, VU_PF_DEVICE_STATE))
		return begin(h, LOAD);
	failed(h, "the next one cannot load a state (DEVICE_STATE)");
	return false;
}

bool hostdev_step_save(struct hostdev *h)
{
	const struct vhp_abi_state *st = page(h);

	if (!h->s.ran || le32toh(st->link_status) == VHP_LINK_UP || le32toh(st->link_reason) != VHP_REASON_ADMIN ||
	    !has_pf(h, VU_PF_DEVICE_STATE) || hostdev_runs(h))
		return false;
	h->s.ran = false;
	hostdev_state_forget(h);
	h->state.epoch = le64toh(st->link_epoch);
	return begin(h, SAVE);
}
