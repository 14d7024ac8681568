/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the guest's, as in port.c: it writes what it likes into the control block. A command is copied once; nothing else is
 * read there. What the daemon knew is read from its record, which no guest has.
 */
#include "port/orphan.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "guestmem/access.h"
#include "port/record.h"

#define STATE VHP_CTRL_STATE_OFF
#define AT(field) (STATE + offsetof(struct vhp_abi_state, field))

struct vp_orphan {
	void             *map;
	vp_gptr           page;
	struct port_record *record;
	uint32_t          want;  /* SYNC of this generation says that the guest has let go */
};

static void *map_file(int fd, size_t size)
{
	struct stat st;
	/* seccomp guard: newfstatat fstat mmap(arg2 & PROT_EXEC == 0) munmap */
	void *p = fstat(fd, &st) || (size_t)st.st_size < size ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* As in page.c: kept before it is shown; odd while it is being written, also if the daemon ended in the middle of that. */
static void begin(struct vp_orphan *o)
{
	o->record->generation = ((o->record->generation + 1) & ~1u) + 2;
	vp_st32(o->page, STATE, o->record->generation - 1);
	/* Pairs with the reader's acquire fence. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static void commit(struct vp_orphan *o)
{
	/* Pairs with the reader's acquire load of generation. */
	vp_st32_release(o->page, STATE, o->record->generation);
}

static void tell(struct vp_orphan *o)
{
	begin(o);
	vp_st32(o->page, AT(link_status), VHP_LINK_DOWN);
	vp_st32(o->page, AT(link_reason), VHP_REASON_DAEMON);
	vp_st32(o->page, AT(nregions), 0);
	vp_st32(o->page, AT(regions_generation), ++o->record->regions_generation);
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		vp_st32(o->page, AT(queues) + q * sizeof(struct vhp_abi_queue) + offsetof(struct vhp_abi_queue, flags), 0);
	commit(o);
}

int vp_orphan_new(struct vp_orphan **out, int memfd, int recordfd)
{
	struct vp_orphan *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->map = map_file(memfd, VHP_CTRL_SIZE);
	o->record = map_file(recordfd, sizeof(*o->record));
	if (!o->map || !o->record || o->record->version != PORT_RECORD_VERSION) {
		vp_orphan_free(o);
		return -EINVAL;
	}
	o->page = vp_gptr_from_map(o->map);
	if (!o->record->left) {
		tell(o);
		o->record->left = 1;
	}
	o->want = o->record->regions_generation;
	*out = o;
	return 0;
}

static void answer(struct vp_orphan *o, const struct vhp_abi_command *cmd, uint32_t status)
{
	o->record->answered = le32toh(cmd->seq);
	begin(o);
	vp_st32(o->page, AT(answer) + offsetof(struct vhp_abi_answer, seq), le32toh(cmd->seq));
	vp_st32(o->page, AT(answer) + offsetof(struct vhp_abi_answer, opcode), le32toh(cmd->opcode));
	vp_st32(o->page, AT(answer) + offsetof(struct vhp_abi_answer, status), status);
	for (unsigned i = 0; i < VP_ARRAY_SIZE(((struct vhp_abi_answer *)0)->value); i++)
		vp_st64(o->page, AT(answer) + offsetof(struct vhp_abi_answer, value) + 8 * i, 0);
	commit(o);
}

enum vp_orphan_state vp_orphan_look(struct vp_orphan *o)
{
	struct vhp_abi_command cmd;
	/* Acquire pairs with the guest's release of seq: opcode and args are there. */
	uint32_t seq = vp_ld32_acquire(o->page, VHP_CTRL_COMMAND_OFF);

	if (!seq || seq == o->record->answered)
		return VP_ORPHAN_QUIET;
	vp_copy_in(&cmd, vp_gptr_add(o->page, VHP_CTRL_COMMAND_OFF), sizeof(cmd));
	/* What was copied counts: the guest may have written on. */
	if (!cmd.seq)
		return VP_ORPHAN_QUIET;
	switch (le32toh(cmd.opcode)) {
	case VHP_CMD_ATTACH:
		return VP_ORPHAN_LET_GO;
	case VHP_CMD_DETACH:
		answer(o, &cmd, VHP_ST_OK);
		return VP_ORPHAN_LET_GO;
	case VHP_CMD_SYNC:
		answer(o, &cmd, VHP_ST_OK);
		/* One of an earlier generation was on its way when the daemon ended. */
		return (int32_t)((uint32_t)le64toh(cmd.args[VHP_SYNC_REGIONS]) - o->want) < 0 ? VP_ORPHAN_ANSWERED : VP_ORPHAN_LET_GO;
	case VHP_CMD_QUEUE_STOPPED:
		answer(o, &cmd, VHP_ST_STALE);
		return VP_ORPHAN_ANSWERED;
	default:
		answer(o, &cmd, VHP_ST_UNKNOWN);
		return VP_ORPHAN_ANSWERED;
	}
}

void vp_orphan_finish(struct vp_orphan *o, bool let_go)
{
	if (let_go)
		o->record->running = 0;
	begin(o);
	vp_st32(o->page, AT(flags), 0);
	commit(o);
}

void vp_orphan_free(struct vp_orphan *o)
{
	if (!o)
		return;
	if (o->map)
		munmap(o->map, VHP_CTRL_SIZE);
	if (o->record)
		munmap(o->record, sizeof(*o->record));
	free(o);
}
