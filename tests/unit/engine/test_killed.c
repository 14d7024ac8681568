/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A relay that is killed behind any of its instructions: the next one goes on, and each packet arrives once, in order
 * (virtq/place.h, docs/handover.md). The relay takes its burst step by step in a process of its own; whenever a step
 * has changed a ring or a line, a further process goes on with what is there, as the next daemon would.
 */
#include "relay_rig.h"

#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "virtq/place.h"

#define RINGS 0x1000u /* from there, of each side */
#define LEN   60u
#define MOST  12u

static struct vp_place *line; /* of a's ring, of b's */
static uint64_t number;	      /* of the first packet that is on its way */

/* What outlives a process, but for the buffers. */
struct left {
	struct vp_place line[2];
	uint8_t ring[2][2 * RINGS];
};

static void look(struct left *l)
{
	memcpy(l->line, line, sizeof(l->line));
	memcpy(l->ring[0], a.m.p + RINGS, sizeof(l->ring[0]));
	memcpy(l->ring[1], b.m.p + RINGS, sizeof(l->ring[1]));
}

static void restore(const struct left *l, const uint8_t *data)
{
	memcpy(line, l->line, sizeof(l->line));
	memcpy(a.m.p + RINGS, l->ring[0], sizeof(l->ring[0]));
	memcpy(b.m.p + RINGS, l->ring[1], sizeof(l->ring[1]));
	memcpy(b.m.p + DATA, data, (size_t)SIZE * cell_size);
}

/* As the next daemon: it knows where a packed ring once was, and a split one says it. */
static int resume(struct side *s, unsigned n, const struct vp_place *own, const struct vp_place *as_receiver)
{
	uint16_t used = *(uint16_t *)drv_ptr(&s->m, s->d.device + 2);
	struct vp_vq_conf c = drv_conf(&s->d, s->d.packed ? 0x80008000 : used);
	int r;

	c.out_only = !n;
	r = vp_vq_start(&s->q.vq, &c, NULL);
	s->q.vq.place = &line[n];
	return r ? r : vp_place_recover(&s->q.vq, own, as_receiver, vp_net_hdr_len(s->q.features));
}

static bool packet_is(const uint8_t *p, uint64_t which)
{
	for (unsigned i = 0; i < LEN; i++)
		if (p[i] != payload(which, i))
			return false;
	return true;
}

/* What b has got, beside buffers that come back unused; -1: not what a has sent, or not in that order. */
static int arrived(void)
{
	const unsigned hlen = vp_net_hdr_len(b.q.features);
	int n = 0;
	uint16_t id;
	uint32_t len;

	while (drv_get_used(&b.d, &id, &len)) {
		uint8_t got[LEN + 12];
		unsigned k = 0;

		if (len == hlen)
			continue;
		if (len != hlen + LEN)
			return -1;
		for (unsigned i = 0; i < b.out[id].n; i++)
			for (unsigned j = 0; j < b.out[id].b[i].len && k < len; j++)
				got[k++] = *drv_ptr(&b.m, b.out[id].b[i].addr + j);
		if (!packet_is(got + hlen, number + (unsigned)n++))
			return -1;
	}
	return n;
}

static const char *const wrong[] = {
	"nothing",
	"the sender's ring is refused",
	"the receiver's ring is refused",
	"a packet is not the next one",
	"what is given back to the sender is not what has arrived",
	"not all is sent that was not",
	"a packet behind is not the next one",
	"not all arrives that was not",
};

/* 0, or what is wrong. In a process of its own. */
static int goes_on(unsigned n)
{
	const struct vp_place own = line[0], peer = line[1];
	unsigned before = 0, more = 0;
	int got, rest;
	uint16_t id;
	uint32_t len;

	if (resume(&a, 0, &own, NULL))
		return 1;
	if (resume(&b, 1, &peer, own.intent ? &own : NULL))
		return 2;
	while (drv_get_used(&a.d, &id, &len))
		before++;
	got = arrived();
	if (got < 0)
		return 3;
	/* What has gone has arrived, and the other way round: neither is lost nor sent again. */
	if ((unsigned)got != before)
		return 4;
	run();
	while (drv_get_used(&a.d, &id, &len))
		more++;
	if (before + more != n)
		return 5;
	number += before;
	rest = arrived();
	return rest < 0 ? 6 : (unsigned)rest != more ? 7 : 0;
}

static void killed_here(unsigned n)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(goes_on(n));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (status)
		fail_msg("the next one: %s", WIFEXITED(status) && (unsigned)WEXITSTATUS(status) < VP_ARRAY_SIZE(wrong)
						     ? wrong[WEXITSTATUS(status)]
						     : "a signal, or an assertion");
}

/* Step by step through a burst of n packets. */
static unsigned killed_anywhere(unsigned n)
{
	static struct left was, now;
	const size_t size = (size_t)SIZE * cell_size;
	uint8_t *data = malloc(size);
	pid_t pid = fork();
	unsigned changes = 0;
	int status;

	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0))
			_exit(77);
		raise(SIGSTOP);
		run();
		_exit(0);
	}
	memset(&was, 0, sizeof(was)); /* so that the first look is one, too */
	while (assert_int_equal(waitpid(pid, &status, 0), pid), WIFSTOPPED(status)) {
		look(&now);
		if (memcmp(&was, &now, sizeof(now))) {
			was = now;
			memcpy(data, b.m.p + DATA, size);
			killed_here(n);
			restore(&now, data);
			changes++;
		}
		assert_int_equal(ptrace(PTRACE_SINGLESTEP, pid, 0, 0), 0);
	}
	free(data);
	assert_int_equal(status, 0);
	return changes;
}

/* n packets, and so many buffers, each of so many pieces. */
static void on_their_way(unsigned n, unsigned buffers, unsigned pieces)
{
	const unsigned to_send[3] = { vp_net_hdr_len(a.q.features), LEN / 2, LEN - LEN / 2 };
	const unsigned whole = vp_net_hdr_len(a.q.features) + LEN;
	const unsigned to_fill[3] = { 20, 40, 200 }, one = 200;
	uint8_t p[LEN];

	for (unsigned i = 0; i < n; i++) {
		for (unsigned k = 0; k < LEN; k++)
			p[k] = payload(number + i, k);
		assert_true(send_pieces(&plain, p, LEN, pieces == 1 ? &whole : to_send, pieces == 1 ? 1 : 3) >= 0);
	}
	for (unsigned i = 0; i < buffers; i++)
		assert_true(post(&b, pieces == 1 ? &one : to_fill, pieces, true) >= 0);
	drv_publish(&b.d);
}

static void drained(unsigned n)
{
	uint16_t id;
	uint32_t len;

	for (unsigned i = 0; i < n; i++)
		assert_true(drv_get_used(&a.d, &id, &len));
	assert_int_equal(arrived(), n);
	number += n;
}

static void burst(uint64_t fa, uint64_t fb, unsigned pieces, unsigned n)
{
	unsigned changes;

	cell_size = 512;
	start(fa, fb);
	a.q.vq.out_only = true;
	memset(line, 0, 2 * sizeof(*line));
	vp_place_reset(&line[0], &a.q.vq);
	vp_place_reset(&line[1], &b.q.vq);
	a.q.vq.place = &line[0];
	b.q.vq.place = &line[1];
	/* The lines still have in them what was given back before, which was of another shape and number. */
	on_their_way(MOST, MOST, 4 - pieces);
	assert_int_equal(run(), MOST);
	drained(MOST);
	/* As many again: what was being filled comes back unused. */
	on_their_way(n, 2 * n, pieces);
	changes = killed_anywhere(n);
	/* At the least the note, the intent, one ring and the other. */
	assert_true(changes >= 4);
	drained(n);
	stop();
}

static void test_at_each_instruction(void **state)
{
	static const uint64_t sides[] = { MODERN, MODERN | F_PACKED };

	for (unsigned i = 0; i < VP_ARRAY_SIZE(sides); i++)
		for (unsigned j = 0; j < VP_ARRAY_SIZE(sides); j++)
			for (unsigned pieces = 1; pieces <= 3; pieces += 2)
				for (unsigned n = 1; n <= 6; n += 5)
					burst(sides[i], sides[j], pieces, n);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_at_each_instruction) };

	line = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return line == MAP_FAILED ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
