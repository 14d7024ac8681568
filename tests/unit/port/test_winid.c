/* SPDX-License-Identifier: BSD-3-Clause */
/* Ids of window devices: what goes round, and what it passes over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "vhost-pci/abi.h"
#include "port/winid.h"

#define FIRST VHP_IVSHMEM_WINDOW_ID
#define LAST  VHP_IVSHMEM_ID_MAX
#define N     (LAST + 1 - FIRST)

/* Taken ids are never given again before they are released, however often it has gone round. */
static void test_goes_round(void **state)
{
	struct vp_winids *s = vp_winids_get("b");
	uint32_t kept = vp_winid_take(s), kept2, id;

	assert_in_range(kept, FIRST, LAST);
	for (unsigned i = 0; i < N + 100; i++) {
		id = vp_winid_take(s);
		assert_in_range(id, FIRST, LAST);
		assert_int_not_equal(id, kept);
		vp_winid_release(s, id);
	}
	kept2 = vp_winid_take(s);
	for (unsigned i = 0; i < N - 2; i++)
		assert_int_not_equal(vp_winid_take(s), 0);
	assert_int_equal(vp_winid_take(s), 0);
	vp_winid_release(s, kept2);
	assert_int_equal(vp_winid_take(s), kept2);
	vp_winids_put(s);
}

/* Ports of one VM share them; another VM has its own. */
static void test_of_a_vm(void **state)
{
	struct vp_winids *s = vp_winids_get("b"), *t = vp_winids_get("b"), *u = vp_winids_get("c");
	uint32_t id = vp_winid_take(s);

	assert_ptr_equal(s, t);
	assert_ptr_not_equal(s, u);
	vp_winids_put(s);
	for (unsigned i = 0; i < N - 1; i++)
		assert_int_not_equal(vp_winid_take(t), id);
	for (unsigned i = 0; i < N; i++)
		assert_int_not_equal(vp_winid_take(u), 0);
	vp_winids_put(t);
	vp_winids_put(u);
	vp_winids_put(NULL);
}

/* A device that was lost sight of keeps its id until a list of the VM's devices is without it. */
static void test_lost_and_listed(void **state)
{
	struct vp_winids *s = vp_winids_get("b");
	uint32_t id = vp_winid_take(s), mine = vp_winid_take(s);

	vp_winid_lose(s, id);
	for (unsigned i = 0; i < N - 2; i++)
		assert_int_not_equal(vp_winid_take(s), id);
	assert_int_equal(vp_winid_take(s), 0);
	/* Still there. Names of other things do no harm. */
	vp_winids_listed(s);
	vp_winid_seen(s, id);
	vp_winid_seen(s, 0);
	vp_winid_seen(s, FIRST - 1);
	vp_winid_seen(s, LAST + 1);
	vp_winid_seen(s, UINT32_MAX);
	assert_int_equal(vp_winid_take(s), 0);
	/* Gone. What is taken stays taken, on the list or not: it may be on its way. */
	vp_winids_listed(s);
	assert_int_equal(vp_winid_take(s), id);
	assert_int_equal(vp_winid_take(s), 0);
	vp_winid_release(s, mine);
	vp_winid_adopt(s, mine);
	assert_int_equal(vp_winid_take(s), 0);
	vp_winids_put(s);
}

/* The name of a device that was left behind is not that of the next one, as soon as it has gone. */
static void test_behind_what_was_adopted(void **state)
{
	struct vp_winids *s = vp_winids_get("b");

	vp_winid_adopt(s, FIRST + 77);
	vp_winid_release(s, FIRST + 77);
	assert_int_equal(vp_winid_take(s), FIRST + 78);
	vp_winid_adopt(s, FIRST - 1);
	vp_winid_adopt(s, LAST + 1);
	assert_int_equal(vp_winid_take(s), FIRST + 79);
	vp_winids_put(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_goes_round),
		cmocka_unit_test(test_of_a_vm),
		cmocka_unit_test(test_lost_and_listed),
		cmocka_unit_test(test_behind_what_was_adopted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
