/* SPDX-License-Identifier: BSD-3-Clause */
/* What a guest must refuse of header and state page (docs/spec.md, sections 2, 3 and 9). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it */
#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "statepage/state.h"

static struct vhp_abi_control *block(void)
{
	struct vhp_abi_control *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	c->header = (struct vhp_abi_header){
		.magic = VHP_MAGIC, .abi_version = htole32(VHP_ABI_VERSION), .header_size = htole32(0x80),
		.state_offset = htole32(0x10000), .state_size = htole32(0x10000), .command_offset = htole32(0x1000),
		.command_size = htole32(0x1000), .pool_offset = htole64(0x200000), .pool_size = htole64(0x200000),
		.attachment = htole32(VHP_ATTACHMENT_IVSHMEM), .max_queues = htole32(2), .nsignals = htole32(3),
	};
	c->state.abi_version = htole32(VHP_ABI_VERSION);
	c->state.link_status = htole32(VHP_LINK_UP);
	c->state.max_queues = c->state.nqueues = htole32(2);
	c->state.nwindows = htole32(1);
	c->state.nregions = htole32(2);
	c->state.windows[0] = (struct vhp_abi_window){
		.size = htole64(0x10000), .serial = htole32(1), .kind = htole32(VHP_WINDOW_POOL),
	};
	c->state.regions[0] = (struct vhp_abi_region){ .addr = htole64(0x1000), .size = htole64(0x1000) };
	c->state.regions[1] =
		(struct vhp_abi_region){ .addr = htole64(0x2000), .size = htole64(0x1000), .offset = htole64(0xf000) };
	return c;
}

static void test_header(void **state)
{
	static const struct {
		size_t at;
		uint32_t value;
		int want;
	} bad[] = {
		{ 0x00, 0, -ENODEV },	    { 0x08, 0x10000, -EPROTO },	 { 0x08, 2, -EPROTO },
		{ 0x0c, 0x60, -EPROTO },    { 0x0c, 0, -EPROTO },	 { 0x0c, 0x100, -EPROTO },
		{ 0x10, 0x11000, -EPROTO }, { 0x14, 0x1000, -EPROTO },	 { 0x18, 0x2000, -EPROTO },
		{ 0x1c, 0x2000, -EPROTO },  { 0x20, 0x100000, -EPROTO }, { 0x34, 0, -EPROTO },
		{ 0x34, 129, -EPROTO },	    { 0x38, 2, -EPROTO },
	};
	struct vhp_abi_control *c = block();
	struct vp_err e;

	assert_int_equal(vp_state_header_check(c, &e), 0);
	for (size_t i = 0; i < VP_ARRAY_SIZE(bad); i++) {
		struct vhp_abi_header good = c->header;
		uint32_t v = htole32(bad[i].value);

		memcpy((uint8_t *)&c->header + bad[i].at, &v, sizeof(v));
		assert_int_equal(vp_state_header_check(c, &e), bad[i].want);
		c->header = good;
	}
	/* Where no pool is, its offset says nothing. */
	c->header.pool_offset = c->header.pool_size = 0;
	assert_int_equal(vp_state_header_check(c, &e), 0);
	free(c);
}

static void refused(struct vhp_abi_control *c)
{
	struct vp_state *s = malloc(sizeof(*s));
	struct vp_err e;

	assert_int_equal(vp_state_read(c, s, &e), -EPROTO);
	assert_int_equal(s->link_status, VHP_LINK_DOWN);
	assert_int_equal(s->nqueues + s->nwindows + s->nregions + s->config_size, 0);
	free(s);
	free(c);
}

static void test_state(void **state)
{
	struct vp_state *s = malloc(sizeof(*s));
	struct vhp_abi_control *c = block();
	struct vp_err e;

	assert_int_equal(vp_state_read(c, s, &e), 0);
	assert_int_equal(s->link_status, VHP_LINK_UP);
	assert_int_equal(s->nregions, 2);
	/* A writer that died in between. */
	c->state.generation = htole32(1);
	assert_int_equal(vp_state_read(c, s, &e), -EAGAIN);
	free(s);
	free(c);
#define BAD(field, v) do { c = block(); c->state.field = v; refused(c); } while (0)
	BAD(abi_version, htole32(0x10000));
	BAD(max_queues, htole32(129));
	BAD(nqueues, htole32(3));
	BAD(nwindows, htole32(510));
	BAD(nregions, htole32(510));
	BAD(config_size, htole32(257));
	BAD(queues[1].flags, htole32(VHP_QUEUE_STOP));
	BAD(queues[1].flags, htole32(VHP_QUEUE_STARTED));
	BAD(windows[0].size, htole64(0x10001));
	BAD(windows[0].serial, 0);
	BAD(windows[0].kind, 0);
	BAD(regions[0].size, 0);
	BAD(regions[0].window, htole32(1));
	BAD(regions[0].size, htole64(0x1001));
	BAD(regions[0].addr, htole64(0x3000));
	BAD(regions[1].addr, htole64(~UINT64_C(0xfff)));
	BAD(regions[1].offset, htole64(0xf001));
	BAD(regions[1].offset, htole64(~UINT64_C(0)));
#undef BAD
}

int main(void)
{
	const struct CMUnitTest t[] = { cmocka_unit_test(test_header), cmocka_unit_test(test_state) };

	return cmocka_run_group_tests(t, NULL, NULL);
}
