/* SPDX-License-Identifier: BSD-3-Clause */
/* A ring that was left at any moment of a burst goes on: virtq/place.h, docs/handover.md. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "driver.h"

#define MEM    (1u << 16)
#define RING   0x4000u
#define DATA   0x8000u
#define SIZE   16u
#define RUNT   12u
#define LEN    77u /* of what is given back as it should be */
#define CANARY 0x5a

/* Where the daemon is killed. */
enum stage {
	NOTHING,
	NOTED,
	HALF, /* half of the entries are written */
	WRITTEN,
	INTENT, /* decided: it is given back, whatever happens */
	SEEN,	/* the driver sees it, the line does not say so yet */
	TAKEN,	/* the same, and the driver has put other buffers there */
	SHOWN,	/* the line does */
	OVER,	/* there is no intent any more */
	STAGES
};

struct bed {
	struct drv_mem m;
	struct drv d;
	uint64_t end;
	struct vp_virtq vq;
	struct vp_place own, peer; /* peer: of the ring that sends to this one */
	unsigned given;		   /* chains that the driver made available, in all */
	unsigned back;		   /* that it has got back */
	uint16_t order[1 << 10];   /* ids in the order in which they were made available */
};

static struct bed *bed;

static void fill(struct bed *b, unsigned slots, bool write)
{
	struct drv_buf buf[4];
	int id;

	for (unsigned i = 0; i < slots; i++)
		buf[i] = (struct drv_buf){ .addr = DATA + 256 * i, .len = 256, .write = write };
	while ((id = drv_add(&b->d, buf, slots, 0)) >= 0)
		b->order[b->given++] = (uint16_t)id;
	drv_publish(&b->d);
}

static void start(struct bed *b, struct vp_virtq *vq, uint32_t base, bool sends)
{
	struct vp_vq_conf c = drv_conf(&b->d, base);
	struct vp_err e = { 0 };

	c.out_only = sends;
	assert_int_equal(vp_vq_start(vq, &c, &e), 0);
}

static void up(uint64_t features, uint16_t first, bool sends, unsigned slots)
{
	const bool packed = features & F_PACKED;

	bed = calloc(1, sizeof(*bed));
	drv_mem_init(&bed->m, MEM, NULL, 0);
	memset(bed->m.p, CANARY, MEM);
	bed->end = drv_init(&bed->d, &bed->m, SIZE, F_VERSION_1 | features, RING);
	if (!packed) {
		bed->d.avail = bed->d.published = bed->d.used = first;
		drv_set_avail_idx(&bed->d, first);
		drv_put16(&bed->m, bed->d.device + 2, first);
	}
	fill(bed, slots, !sends);
	start(bed, &bed->vq, packed ? 0x80008000 : first, sends);
	bed->vq.place = &bed->own;
	vp_place_reset(&bed->own, &bed->vq);
}

static void down(void)
{
	drv_free(&bed->d);
	drv_mem_free(&bed->m);
	free(bed);
}

/* Take n chains. */
static void take(struct vp_virtq *vq, struct vp_used *u, unsigned n, bool sends)
{
	static struct vp_burst b;

	assert_int_equal(vp_vq_fetch_dir(vq, &b, n, sends ? VP_READ : VP_WRITE), n);
	for (unsigned i = 0; i < n; i++)
		u[i] = (struct vp_used){ .len = sends ? 0 : LEN, .id = b.chain[i].id, .slots = b.chain[i].slots };
	vp_vq_advance(vq, &b, n);
}

/* The driver gets n chains, in its order, each with len bytes, and no other one. */
static void driver_gets(unsigned n, uint32_t len)
{
	uint16_t id;
	uint32_t got;

	for (unsigned i = 0; i < n; i++) {
		assert_true(drv_get_used(&bed->d, &id, &got));
		assert_int_equal(id, bed->order[bed->back++]);
		assert_int_equal(got, len);
	}
	assert_false(drv_get_used(&bed->d, &id, &got));
}

/* The line's position alone is what SEEN leaves out. */
static void show_in_ring(struct vp_virtq *vq, struct vp_shown s)
{
	vq->place = NULL;
	vp_vq_show(vq, s);
	vq->place = &bed->own;
}

/* The steps of a burst, as a relay takes them, up to a kill. */
static void burst(const struct vp_used *u, unsigned n, enum stage kill, bool sends)
{
	struct vp_virtq *vq = &bed->vq;
	const unsigned slots = vp_used_slots(u, n);
	const uint16_t from = vp_vq_pos(vq), to = vp_vq_pos_behind(vq, slots);
	struct vp_place *decides = sends ? &bed->own : &bed->peer;
	const uint64_t intent = sends ? vp_place_intent(from, to, 0, 0) : vp_place_intent(1, 2, from, to);
	struct vp_shown s;

	if (kill >= NOTED)
		vp_vq_note(vq, u, n, slots);
	/* A sender's entries are written behind its intent. */
	if (kill >= (sends ? HALF : INTENT))
		decides->intent = intent;
	if (kill < HALF)
		return;
	if (kill == HALF) {
		vp_vq_write(vq, u, (n + 1) / 2);
		return;
	}
	s = vp_vq_write(vq, u, n);
	bed->own.head = s.head;
	if (kill == SEEN || kill == TAKEN)
		show_in_ring(vq, s);
	if (kill >= SHOWN)
		vp_vq_show(vq, s);
	if (kill >= OVER)
		decides->intent = 0;
}

/* As the next daemon: base is what the record had, which may be long ago. */
static int next(uint32_t base, bool sends)
{
	const struct vp_place own = bed->own, peer = bed->peer;

	start(bed, &bed->vq, base, sends);
	bed->vq.place = &bed->own;
	bed->peer = (struct vp_place){ 0 };
	return vp_place_recover(&bed->vq, &own, !sends && peer.intent ? &peer : NULL, RUNT);
}

static void killed_at(uint64_t features, uint16_t first, bool sends, unsigned slots, unsigned before, unsigned n,
		      enum stage kill)
{
	const bool packed = features & F_PACKED;
	const bool decided = kill >= (sends ? HALF : INTENT);
	struct vp_used u[VP_BURST];
	uint32_t base;

	up(features, first, sends, slots);
	base = vp_vq_base(&bed->vq);
	for (unsigned i = 0; i < before; i++) {
		take(&bed->vq, u, 1, sends);
		burst(u, 1, OVER, sends);
		driver_gets(1, sends ? 0 : LEN);
		fill(bed, slots, !sends);
	}
	take(&bed->vq, u, n, sends);
	burst(u, n, kill, sends);
	if (kill == TAKEN) {
		driver_gets(n, sends ? 0 : LEN);
		fill(bed, slots, !sends);
	}
	assert_int_equal(next(base, sends), 0);
	if (kill == TAKEN)
		driver_gets(0, 0);
	else if (decided)
		driver_gets(n, sends ? 0 : LEN);
	else if (packed && !sends && kill >= NOTED)
		driver_gets(n, RUNT);
	else
		driver_gets(0, 0);
	/* Nothing is left of it, and the ring goes on: for a lap and more. */
	assert_int_equal(bed->own.intent, 0);
	assert_int_equal(bed->own.how, VP_PLACE_NONE);
	assert_int_equal(bed->own.pos, vp_vq_pos(&bed->vq));
	for (unsigned i = 0; i < 2 * SIZE; i++) {
		fill(bed, slots, !sends);
		take(&bed->vq, u, 1, sends);
		burst(u, 1, OVER, sends);
		driver_gets(1, sends ? 0 : LEN);
	}
	down();
}

static const uint64_t formats[] = { 0, F_PACKED };

/* Every length of burst from every position: all wrap-arounds of a packed ring are among them. */
static void test_at_each_stage(void **state)
{
	for (unsigned f = 0; f < 2; f++)
		for (unsigned sends = 0; sends < 2; sends++)
			for (unsigned before = 0; before < 2 * SIZE; before += 3)
				for (unsigned n = 1; n <= SIZE; n++)
					for (enum stage k = NOTHING; k < STAGES; k++)
						killed_at(formats[f], 0, sends, 1, before, n, k);
}

static void test_chains_of_several_descriptors(void **state)
{
	for (unsigned sends = 0; sends < 2; sends++)
		for (unsigned slots = 2; slots <= 3; slots++)
			for (unsigned before = 0; before < SIZE; before++)
				for (unsigned n = 1; n <= SIZE / slots; n++)
					for (enum stage k = NOTHING; k < STAGES; k++)
						killed_at(F_PACKED, 0, sends, slots, before, n, k);
}

/* The index of a split ring runs over. */
static void test_split_index_wraps(void **state)
{
	for (unsigned sends = 0; sends < 2; sends++)
		for (unsigned first = 65536 - SIZE - 1; first < 65536; first++)
			for (enum stage k = NOTHING; k < STAGES; k++)
				killed_at(0, (uint16_t)first, sends, 1, 0, SIZE, k);
}

/* ---- lines that make no sense ---- */

static int with(const struct vp_place *own, const struct vp_place *peer)
{
	struct vp_virtq vq;

	start(bed, &vq, bed->d.packed ? 0x80008000 : 0, !peer && own->intent);
	return vp_place_recover(&vq, own, peer, RUNT);
}

static void test_refused_packed(void **state)
{
	const uint16_t here = 0x8000;
	const struct vp_place noted = { .pos = here, .how = VP_PLACE_ONES, .n = 3 };
	struct vp_place p, to = { .intent = vp_place_intent(1, 2, here, here + 3) };

	up(F_PACKED, 0, false, 1);
	p = (struct vp_place){ .pos = SIZE };
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = (struct vp_place){ .pos = here | SIZE };
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.how = VP_PLACE_UNKNOWN;
	assert_int_equal(with(&p, NULL), -ENODATA);
	p = noted, p.how = VP_PLACE_HOWS;
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.n = 0;
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.n = SIZE + 1; /* more than the ring has */
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.n = VP_PLACE_SINGLE + 1;
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.how = VP_PLACE_MANY, p.n = VP_PLACE_SLOTS + 1;
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.how = VP_PLACE_MANY; /* chains without a slot */
	assert_int_equal(with(&p, NULL), -EPROTO);
	p.slots[0] = p.slots[1] = 1, p.slots[2] = SIZE;
	assert_int_equal(with(&p, NULL), -EPROTO);
	/* The sender's intent: about another place, with nothing written, to outside. */
	p = noted, p.pos = here + 1;
	assert_int_equal(with(&p, &to), -EPROTO);
	p = noted, p.how = VP_PLACE_NONE;
	assert_int_equal(with(&p, &to), -EPROTO);
	p = noted, to.intent = vp_place_intent(1, 2, here, here + SIZE);
	assert_int_equal(with(&p, &to), -EPROTO);
	/* A sender's own: another place, another number of chains. */
	p = noted, p.intent = vp_place_intent(here + 1, here + 4, 0, 0);
	assert_int_equal(with(&p, NULL), -EPROTO);
	p = noted, p.intent = vp_place_intent(here, here + 4, 0, 0);
	assert_int_equal(with(&p, NULL), -EPROTO);
	down();
}

static void test_refused_split(void **state)
{
	struct vp_place p = { 0 }, to = { .intent = vp_place_intent(1, 2, 0, SIZE + 1) };

	up(0, 0, false, 1);
	assert_int_equal(with(&p, &to), -EPROTO);
	p.intent = vp_place_intent(0, SIZE + 1, 0, 0);
	assert_int_equal(with(&p, NULL), -EPROTO);
	p.intent = vp_place_intent(0, VP_BURST + 1, 0, 0);
	assert_int_equal(with(&p, NULL), -EPROTO);
	p.intent = vp_place_intent(0, 0xffff, 0, 0);
	assert_int_equal(with(&p, NULL), -EPROTO);
	driver_gets(0, 0);
	down();
}

/* Is all but what the device may write in this ring as it was? */
static bool untouched(const uint8_t *before)
{
	const uint64_t from = bed->d.packed ? bed->d.desc : bed->d.device;
	const uint64_t to = from + (bed->d.packed ? 16 * SIZE : 4 + 8 * SIZE);

	return !memcmp(bed->m.p, before, from) && !memcmp(bed->m.p + to, before + to, RING + 0x1000 - to) &&
	       bed->m.p[RING - 1] == CANARY && bed->m.p[bed->end] == CANARY;
}

static void test_any_line(void **state)
{
	uint8_t *before = malloc(MEM);
	uint64_t seed = 7;

	for (unsigned f = 0; f < 2; f++) {
		up(formats[f], 0, false, 1);
		memcpy(before, bed->m.p, MEM);
		for (unsigned i = 0; i < 200000; i++) {
			struct vp_place p, to;
			const uint64_t r = drv_rand(&seed);
			/* Near the truth, so that it comes further than the first check. */
			const uint16_t at = (uint16_t)((r >> 8) % (SIZE + 2) | (r & 1 ? 0x8000 : 0));
			struct vp_virtq vq;
			struct vp_burst b;

			for (unsigned k = 0; k < sizeof(p) / 8; k++) {
				((uint64_t *)&p)[k] = drv_rand(&seed);
				((uint64_t *)&to)[k] = drv_rand(&seed);
			}
			p.pos = at;
			p.how %= VP_PLACE_HOWS + 1;
			p.n %= 80;
			for (unsigned k = 0; k < VP_PLACE_SLOTS; k++)
				p.slots[k] %= 4;
			if (r & 2)
				p.intent = vp_place_intent(at, (uint16_t)(at + (r >> 32) % 80), 0, 0);
			to.intent = vp_place_intent(1, 2, at, (uint16_t)(at + (r >> 40) % 40));
			start(bed, &vq, bed->d.packed ? 0x80008000 : 0, r & 4);
			if (!vp_place_recover(&vq, &p, r & 8 ? &to : NULL, RUNT)) {
				if (vq.packed) {
					assert_in_range(vq.used_idx, 0, SIZE - 1);
					assert_in_range(vq.last_avail, 0, SIZE - 1);
				}
				b.slow = true;
				vp_vq_fetch(&vq, &b, VP_BURST);
			}
			assert_true(untouched(before));
			memcpy(bed->m.p + RING, before + RING, 0x1000);
		}
		down();
	}
	free(before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_at_each_stage),	  cmocka_unit_test(test_chains_of_several_descriptors),
		cmocka_unit_test(test_split_index_wraps), cmocka_unit_test(test_refused_packed),
		cmocka_unit_test(test_refused_split),	  cmocka_unit_test(test_any_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
