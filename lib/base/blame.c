/* SPDX-License-Identifier: BSD-3-Clause */
#include "blame.h"

#include <pthread.h>
#include <time.h>

#include "util.h"

#define BLAME_MAX        64         /* peers; one that has been good for long makes room, else the last one */
#define BLAME_HOLD_MS    1000u      /* after the second time: twice that; doubled with each further one */
#define BLAME_HOLD_SHIFT 6          /* at most 64 times that */
#define BLAME_FORGET_MS  600000u

static struct culprit {
	uint64_t who;                   /* these two are read without the lock */
	uint64_t until;                 /* CLOCK_MONOTONIC, ms */
	uint64_t last;
	unsigned times;
} culprits[BLAME_MAX];
static unsigned n_culprits;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* FNV-1a. */
uint64_t vp_blame_id(const char *name)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (; *name; name++)
		h = (h ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
	return h ? h : 1;
}

uint64_t vp_blame_either(uint64_t a, uint64_t b)
{
	/* Not a ^ b: for a VM that serves itself that is 0, which is nobody. */
	uint64_t h = (VP_MIN(a, b) * UINT64_C(0x9e3779b97f4a7c15)) ^
		     (VP_MAX(a, b) * UINT64_C(0xc2b2ae3d27d4eb4f));

	return h ? h : 1;
}

void vp_blame(uint64_t who)
{
	uint64_t now = now_ms();
	struct culprit *c = NULL;
	unsigned i, n;

	if (!who)
		return;
	pthread_mutex_lock(&lock);
	n = n_culprits;
	for (i = 0; i < n && !c; i++)
		if (culprits[i].who == who)
			c = &culprits[i];
	if (!c && n < BLAME_MAX)
		c = &culprits[n++];
	for (i = 0; !c && i < n; i++)
		c = culprits[i].last + BLAME_FORGET_MS < now || i + 1 == n ? &culprits[i] : NULL;
	if (c->who != who || c->last + BLAME_FORGET_MS < now)
		c->times = 0;
	__atomic_store_n(&c->who, who, __ATOMIC_RELAXED);
	c->last = now;
	if (c->times++)
		now += (uint64_t)BLAME_HOLD_MS << VP_MIN(c->times - 1, (unsigned)BLAME_HOLD_SHIFT);
	__atomic_store_n(&c->until, now, __ATOMIC_RELAXED);
	__atomic_store_n(&n_culprits, n, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
}

bool vp_blame_held(uint64_t who)
{
	unsigned i, n = __atomic_load_n(&n_culprits, __ATOMIC_ACQUIRE);

	for (i = 0; who && i < n; i++)
		if (__atomic_load_n(&culprits[i].who, __ATOMIC_RELAXED) == who)
			return now_ms() < __atomic_load_n(&culprits[i].until, __ATOMIC_RELAXED);
	return false;
}

void vp_blame_forget(void)
{
	pthread_mutex_lock(&lock);
	__atomic_store_n(&n_culprits, 0, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
}
