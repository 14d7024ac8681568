/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the device VM's VMM says which devices there are. It can name every id there is,
 * which leaves its own VM without windows; what is kept does not grow with what it says.
 */
#include "port/winid.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "conf/conf.h"
#include "vhost-pci/abi.h"

#define IDS (VHP_IVSHMEM_ID_MAX + 1 - VHP_IVSHMEM_WINDOW_ID)

struct vp_winids {
	struct vp_winids *next;
	unsigned          refs;
	uint32_t          at;              /* given last */
	uint64_t          taken[IDS / 64];  /* by a caller here */
	uint64_t          others[IDS / 64]; /* of somebody else, or lost sight of */
	char              vm[VP_CONF_NAME_MAX];
};

static struct vp_winids *all;

static bool get(const uint64_t *map, uint32_t i)
{
	return map[i / 64] >> (i % 64) & 1;
}

static void set(uint64_t *map, uint32_t id, bool on)
{
	uint32_t i = id - VHP_IVSHMEM_WINDOW_ID;

	if (i < IDS)
		map[i / 64] = (map[i / 64] & ~(UINT64_C(1) << (i % 64))) | (uint64_t)on << (i % 64);
}

/*
 * Rather not those of a process before us, so that what it left is told apart in logs. Not in seconds, which two
 * processes may begin in; vp_winid_adopt() sees to those that are still there.
 */
void vp_winids_jump(struct vp_winids *s)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	s->at = (uint32_t)((uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000) % IDS;
}

struct vp_winids *vp_winids_get(const char *vm)
{
	struct vp_winids *s = all;

	while (s && strcmp(s->vm, vm))
		s = s->next;
	if (!s) {
		s = calloc(1, sizeof(*s));
		if (!s)
			return NULL;
		snprintf(s->vm, sizeof(s->vm), "%s", vm);
		vp_winids_jump(s);
		s->next = all;
		all = s;
	}
	s->refs++;
	return s;
}

void vp_winids_put(struct vp_winids *s)
{
	struct vp_winids **p = &all;

	if (!s || --s->refs)
		return;
	while (*p != s)
		p = &(*p)->next;
	*p = s->next;
	free(s);
}

uint32_t vp_winid_take(struct vp_winids *s)
{
	for (uint32_t n = 0; n < IDS; n++) {
		s->at = (s->at + 1) % IDS;
		if (get(s->taken, s->at) || get(s->others, s->at))
			continue;
		set(s->taken, VHP_IVSHMEM_WINDOW_ID + s->at, true);
		return VHP_IVSHMEM_WINDOW_ID + s->at;
	}
	return 0;
}

void vp_winid_adopt(struct vp_winids *s, uint32_t id)
{
	uint32_t i = id - VHP_IVSHMEM_WINDOW_ID;

	set(s->taken, id, true);
	/* Once its device has gone, its name is not the next one's at once. */
	if (i < IDS)
		s->at = i;
}

void vp_winid_release(struct vp_winids *s, uint32_t id)
{
	set(s->taken, id, false);
	set(s->others, id, false);
}

void vp_winid_lose(struct vp_winids *s, uint32_t id)
{
	set(s->taken, id, false);
	set(s->others, id, true);
}

void vp_winids_listed(struct vp_winids *s)
{
	memset(s->others, 0, sizeof(s->others));
}

void vp_winid_seen(struct vp_winids *s, uint32_t id)
{
	set(s->others, id, true);
}

/* ---- for another daemon ---------------------------------------------------------------------- */

/* The one given last, then those in use. */
void vp_winids_save(const struct vp_winids *s, unsigned tag, struct vp_rec *r)
{
	uint16_t list[1 + IDS];
	unsigned n = 0;

	list[n++] = (uint16_t)s->at;
	for (uint32_t i = 0; i < IDS; i++)
		if (get(s->others, i))
			list[n++] = (uint16_t)i;
	vp_rec_put(r, tag, list, n * sizeof(*list));
}

int vp_winids_restore(struct vp_winids *s, unsigned tag, const struct vp_rec_in *in)
{
	struct vp_rec_in body;
	uint16_t i;

	if (!vp_rec_find(in, tag, &body) || body.n < sizeof(i) || body.n % sizeof(i))
		return -EPROTO;
	for (size_t at = 0; at < body.n; at += sizeof(i)) {
		memcpy(&i, body.p + at, sizeof(i));
		if (i >= IDS)
			return -EPROTO;
		if (at)
			set(s->others, VHP_IVSHMEM_WINDOW_ID + i, true);
		else
			s->at = i;
	}
	return 0;
}
