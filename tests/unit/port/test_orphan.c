/* SPDX-License-Identifier: BSD-3-Clause */
/* A port whose daemon has gone; the guest is this test, through the control block. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "port/orphan.h"
#include "port/record.h"

#define GEN 7u   /* regions_generation when the daemon ended */

struct fake {
	int memfd, recordfd;
	volatile struct vhp_abi_control *c;
	struct port_record *keep;
	struct vp_orphan *o;
	uint32_t seq;
};

static void *file(const char *name, size_t size, int *fd)
{
	void *p;

	*fd = memfd_create(name, MFD_CLOEXEC);
	assert_int_equal(ftruncate(*fd, (off_t)size), 0);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static int setup(void **state)
{
	struct fake *f = calloc(1, sizeof(*f));
	volatile struct vhp_abi_state *s;

	f->c = file("control", VHP_CTRL_SIZE, &f->memfd);
	f->keep = file("keep", sizeof(*f->keep), &f->recordfd);
	*f->keep = (struct port_record){ .version = PORT_RECORD_VERSION,
					 .running = 1,
					 .generation = 100,
					 .regions_generation = GEN,
					 .answered = 41 };
	s = &f->c->state;
	s->generation = htole32(100);
	s->flags = htole32(VHP_STATE_ATTACHED);
	s->link_status = htole32(VHP_LINK_UP);
	s->nregions = htole32(2);
	s->regions_generation = htole32(GEN);
	s->queues[1].flags = s->queues[VHP_MAX_QUEUES - 1].flags = htole32(VHP_QUEUE_STARTED | VHP_QUEUE_ENABLED);
	s->queues[1].run = htole32(3);
	f->seq = 41;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fake *f = *state;

	vp_orphan_free(f->o);
	munmap((void *)f->c, VHP_CTRL_SIZE);
	munmap(f->keep, sizeof(*f->keep));
	close(f->memfd);
	close(f->recordfd);
	free(f);
	return 0;
}

static void begin(struct fake *f)
{
	assert_int_equal(vp_orphan_new(&f->o, f->memfd, f->recordfd), 0);
}

static enum vp_orphan_state command(struct fake *f, uint32_t opcode, uint64_t arg)
{
	f->c->command.args[0] = htole64(arg);
	f->c->command.opcode = htole32(opcode);
	f->c->command.seq = htole32(++f->seq);
	return vp_orphan_look(f->o);
}

static uint32_t status(struct fake *f)
{
	assert_int_equal(le32toh(f->c->state.answer.seq), f->seq);
	return le32toh(f->c->state.answer.status);
}

static void test_tells(void **state)
{
	struct fake *f = *state;
	volatile struct vhp_abi_state *s = &f->c->state;

	begin(f);
	assert_int_equal(le32toh(s->link_status), VHP_LINK_DOWN);
	assert_int_equal(le32toh(s->link_reason), VHP_REASON_DAEMON);
	assert_int_equal(le32toh(s->nregions), 0);
	assert_int_equal(le32toh(s->regions_generation), GEN + 1);
	assert_int_equal(s->queues[1].flags | s->queues[VHP_MAX_QUEUES - 1].flags, 0);
	assert_int_equal(le32toh(s->queues[1].run), 3);
	/*
	 * Attached still: it is to answer. The page is newer than any that was seen, and what is kept is not older than
	 * it.
	 */
	assert_int_equal(le32toh(s->flags), VHP_STATE_ATTACHED);
	assert_true(le32toh(s->generation) > 100 && !(le32toh(s->generation) & 1));
	assert_true(f->keep->generation >= le32toh(s->generation));
	assert_int_equal(f->keep->regions_generation, GEN + 1);
	assert_int_equal(vp_orphan_look(f->o), VP_ORPHAN_QUIET);
}

static void test_torn_page(void **state)
{
	struct fake *f = *state;

	/* Killed between the first store and the last one; what was to be seen had been kept. */
	f->c->state.generation = htole32(101);
	f->keep->generation = 102;
	begin(f);
	assert_true(le32toh(f->c->state.generation) > 102 && !(le32toh(f->c->state.generation) & 1));
}

/* The daemon told the guest itself: that update is the one to wait for. */
static void test_told_already(void **state)
{
	struct fake *f = *state;

	f->keep->left = 1;
	begin(f);
	assert_int_equal(le32toh(f->c->state.generation), 100);
	assert_int_equal(command(f, VHP_CMD_SYNC, GEN - 1), VP_ORPHAN_ANSWERED);
	assert_int_equal(command(f, VHP_CMD_SYNC, GEN), VP_ORPHAN_LET_GO);
}

static void test_commands(void **state)
{
	struct fake *f = *state;

	/* Answered by the daemon, and still in the page. */
	f->c->command.opcode = htole32(VHP_CMD_DETACH);
	f->c->command.seq = htole32(f->seq);
	begin(f);
	assert_int_equal(vp_orphan_look(f->o), VP_ORPHAN_QUIET);
	/* On its way when the daemon ended: of an earlier generation. */
	assert_int_equal(command(f, VHP_CMD_SYNC, GEN), VP_ORPHAN_ANSWERED);
	assert_int_equal(status(f), VHP_ST_OK);
	assert_int_equal(vp_orphan_look(f->o), VP_ORPHAN_QUIET);
	assert_int_equal(command(f, VHP_CMD_QUEUE_STOPPED, 0), VP_ORPHAN_ANSWERED);
	assert_int_equal(status(f), VHP_ST_STALE);
	assert_int_equal(command(f, 77, 0), VP_ORPHAN_ANSWERED);
	assert_int_equal(status(f), VHP_ST_UNKNOWN);
	assert_int_equal(command(f, VHP_CMD_SYNC, GEN + 1), VP_ORPHAN_LET_GO);
	assert_int_equal(status(f), VHP_ST_OK);
	assert_int_equal(f->keep->answered, f->seq);
	assert_int_equal(command(f, VHP_CMD_DETACH, 0), VP_ORPHAN_LET_GO);
	assert_int_equal(status(f), VHP_ST_OK);
	/* The next daemon's to answer. */
	assert_int_equal(command(f, VHP_CMD_ATTACH, 0), VP_ORPHAN_LET_GO);
	assert_int_equal(f->keep->answered, f->seq - 1);
	/* No command. */
	f->c->command.seq = 0;
	assert_int_equal(vp_orphan_look(f->o), VP_ORPHAN_QUIET);
}

static void test_generation_wraps(void **state)
{
	struct fake *f = *state;

	f->keep->regions_generation = UINT32_MAX;
	f->keep->generation = UINT32_MAX - 1;
	begin(f);
	assert_int_equal(le32toh(f->c->state.regions_generation), 0);
	assert_int_equal(le32toh(f->c->state.generation) & 1, 0);
	assert_int_equal(command(f, VHP_CMD_SYNC, UINT32_MAX), VP_ORPHAN_ANSWERED);
	assert_int_equal(command(f, VHP_CMD_SYNC, 0), VP_ORPHAN_LET_GO);
}

static void test_finish(void **state)
{
	struct fake *f = *state;

	begin(f);
	vp_orphan_finish(f->o, false);
	assert_int_equal(f->c->state.flags, 0);
	assert_int_equal(f->keep->running, 1);
	vp_orphan_finish(f->o, true);
	assert_int_equal(f->keep->running, 0);
	assert_int_equal(le32toh(f->c->state.generation) & 1, 0);
}

static void test_other_files(void **state)
{
	struct fake *f = *state;
	int small;
	void *p = file("small", 4096, &small);

	assert_int_equal(vp_orphan_new(&f->o, small, f->recordfd), -EINVAL);
	assert_int_equal(ftruncate(small, 16), 0);
	assert_int_equal(vp_orphan_new(&f->o, f->memfd, small), -EINVAL);
	f->keep->version = PORT_RECORD_VERSION + 1;
	assert_int_equal(vp_orphan_new(&f->o, f->memfd, f->recordfd), -EINVAL);
	assert_null(f->o);
	assert_int_equal(le32toh(f->c->state.link_status), VHP_LINK_UP);
	munmap(p, 4096);
	close(small);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_tells),	T(test_torn_page),   T(test_told_already), T(test_commands), T(test_generation_wraps),
		T(test_finish), T(test_other_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
