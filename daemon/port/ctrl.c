/* SPDX-License-Identifier: BSD-3-Clause */
#include "port/ctrl.h"

int port_ctrl_map(struct port_ctrl *c, int memfd)
{
	return vp_shared_map(&c->mem, memfd, 0, VHP_CTRL_SIZE);
}

void port_ctrl_unmap(struct port_ctrl *c)
{
	vp_shared_unmap(&c->mem);
}

void port_ctrl_begin(struct port_ctrl *c, uint32_t next)
{
	c->next = next;
	/* Odd: under way. */
	port_ctrl_put32(c, offsetof(struct vhp_abi_state, generation), next - 1);
	/* Pairs with the reader's acquire fence: who sees a new field sees that generation is odd, or later. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

void port_ctrl_commit(struct port_ctrl *c)
{
	/* Pairs with the reader's acquire load of generation. */
	vp_st32_release(c->mem.p, VHP_CTRL_STATE_OFF + offsetof(struct vhp_abi_state, generation), c->next);
}

bool port_ctrl_command(const struct port_ctrl *c, uint32_t answered, struct vhp_abi_command *cmd)
{
	/* Acquire pairs with the guest's release of seq: opcode and args are there. */
	uint32_t seq = vp_ld32_acquire(c->mem.p, VHP_CTRL_COMMAND_OFF);

	if (!seq || seq == answered)
		return false;
	vp_copy_in(cmd, vp_gptr_add(c->mem.p, VHP_CTRL_COMMAND_OFF), sizeof(*cmd));
	/* What was copied counts: the guest may have written on. */
	return cmd->seq;
}
