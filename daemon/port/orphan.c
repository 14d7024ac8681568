/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: as in ctrl.h: the guest writes what it likes into the control block. What the daemon knew is read from
 * its record, which no guest has.
 */
#include "port/orphan.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "port/ctrl.h"
#include "port/record.h"

#define AT(field) offsetof(struct vhp_abi_state, field)

struct vp_orphan {
	struct port_ctrl    ctrl;
	struct port_record *record;
	uint32_t            want;  /* SYNC of this generation says that the guest has let go */
};

/* As the daemon does it: kept before it is shown. The daemon may have ended in the middle of an update. */
static void begin(struct vp_orphan *o)
{
	o->record->generation = ((o->record->generation + 1) & ~1u) + 2;
	port_ctrl_begin(&o->ctrl, o->record->generation);
}

static void tell(struct vp_orphan *o)
{
	begin(o);
	port_ctrl_put32(&o->ctrl, AT(link_status), VHP_LINK_DOWN);
	port_ctrl_put32(&o->ctrl, AT(link_reason), VHP_REASON_DAEMON);
	port_ctrl_put32(&o->ctrl, AT(nregions), 0);
	port_ctrl_put32(&o->ctrl, AT(regions_generation), ++o->record->regions_generation);
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		port_ctrl_put32(&o->ctrl,
				AT(queues) + q * sizeof(struct vhp_abi_queue) + offsetof(struct vhp_abi_queue, flags),
				0);
	port_ctrl_commit(&o->ctrl);
}

int vp_orphan_new(struct vp_orphan **out, int memfd, int recordfd)
{
	struct vp_orphan *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->record = port_record_map(recordfd);
	if (port_ctrl_map(&o->ctrl, memfd) || !o->record || o->record->version != PORT_RECORD_VERSION) {
		vp_orphan_free(o);
		return -EINVAL;
	}
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
	port_ctrl_put32(&o->ctrl, AT(answer) + offsetof(struct vhp_abi_answer, seq), le32toh(cmd->seq));
	port_ctrl_put32(&o->ctrl, AT(answer) + offsetof(struct vhp_abi_answer, opcode), le32toh(cmd->opcode));
	port_ctrl_put32(&o->ctrl, AT(answer) + offsetof(struct vhp_abi_answer, status), status);
	for (unsigned i = 0; i < VP_ARRAY_SIZE(((struct vhp_abi_answer *)0)->value); i++)
		port_ctrl_put64(&o->ctrl, AT(answer) + offsetof(struct vhp_abi_answer, value) + 8 * i, 0);
	port_ctrl_commit(&o->ctrl);
}

enum vp_orphan_state vp_orphan_look(struct vp_orphan *o)
{
	struct vhp_abi_command cmd;

	if (!port_ctrl_command(&o->ctrl, o->record->answered, &cmd))
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
		return (int32_t)((uint32_t)le64toh(cmd.args[VHP_SYNC_REGIONS]) - o->want) < 0 ? VP_ORPHAN_ANSWERED
											      : VP_ORPHAN_LET_GO;
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
	port_ctrl_put32(&o->ctrl, AT(flags), 0);
	port_ctrl_commit(&o->ctrl);
}

void vp_orphan_free(struct vp_orphan *o)
{
	if (!o)
		return;
	port_ctrl_unmap(&o->ctrl);
	port_record_unmap(o->record);
	free(o);
}
