// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reading the state page, and the command mailbox (docs/spec.md, sections 3 and 4).
 *
 * The other side of this memory is the host, not another CPU of this guest: the virt_ barriers are
 * real ones in a kernel without SMP as well.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>

#include "vp.h"

/* One attempt at a consistent copy. Any context. */
bool vp_state_try(struct vp_port *port, size_t off, void *dst, size_t len)
{
	struct vhp_abi_state *st = &port->ctrl->state;
	__le32 gen;

	gen = virt_load_acquire(&st->generation);	/* pairs with the daemon's release */
	if (le32_to_cpu(gen) & 1)
		return false;
	memcpy(dst, (u8 *)st + off, len);
	virt_rmb();					/* pairs with the daemon's store fence */
	return READ_ONCE(st->generation) == gen;
}

/* 0, or -EIO when the page stays torn (the daemon died while it wrote). Sleeps. */
int vp_state_read(struct vp_port *port, size_t off, void *dst, size_t len)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(100) + 1;
	int i;

	for (;;) {
		for (i = 0; i < 100; i++) {
			if (vp_state_try(port, off, dst, len))
				return 0;
			cpu_relax();
		}
		if (time_after(jiffies, deadline))
			return -EIO;
		usleep_range(50, 200);
	}
}

static bool vp_answered(struct vp_port *port, u32 seq, struct vhp_abi_answer *a)
{
	return vp_state_try(port, offsetof(struct vhp_abi_state, answer), a, sizeof(*a)) &&
	       le32_to_cpu(a->seq) == seq;
}

/*
 * Send one command and wait. 0 with c->status and c->value, -ETIMEDOUT, -EINTR, -ENODEV. User
 * space's commands are interruptible, may come with port->life held for reading, and end when the
 * port goes, whichever they are. The module's own DETACH is not: it is what the port goes with.
 */
int vp_command(struct vp_port *port, struct vhp_ioc_command *c, bool interruptible)
{
	struct vhp_abi_command *cmd = &port->ctrl->command;
	unsigned int ms = c->timeout_ms ? c->timeout_ms : VP_COMMAND_MS;
	unsigned long deadline;
	struct vhp_abi_answer a;
	unsigned int slices = 0;
	int i, ret;
	u32 seq;

	if (interruptible) {
		if (mutex_lock_interruptible(&port->cmd_lock))
			return -EINTR;
	} else {
		mutex_lock(&port->cmd_lock);
	}
	if (interruptible && READ_ONCE(port->gone)) {
		mutex_unlock(&port->cmd_lock);
		return -ENODEV;
	}

	/* A value that neither the last command nor the last answer has. */
	seq = port->cmd_seq;
	do {
		seq++;
	} while (!seq || seq == le32_to_cpu(READ_ONCE(cmd->seq)) ||
		 seq == le32_to_cpu(READ_ONCE(port->ctrl->state.answer.seq)));
	port->cmd_seq = seq;

	if (c->opcode == VHP_CMD_ATTACH)
		port->maybe_attached = true;
	for (i = 0; i < VHP_CMD_NARGS; i++)
		WRITE_ONCE(cmd->args[i], cpu_to_le64(c->args[i]));
	WRITE_ONCE(cmd->opcode, cpu_to_le32(c->opcode));
	/* Release pairs with the daemon's acquire. */
	virt_store_release(&cmd->seq, cpu_to_le32(seq));
	port->ops->raise(port, 0, port->doorbell0);
	atomic64_inc(&port->commands);

	/*
	 * The answer raises signal 0. Slices, because a signal may be lost while interrupts are being
	 * set up, and the doorbell again now and then, because the daemon may be restarting.
	 */
	deadline = jiffies + msecs_to_jiffies(ms) + 1;
	for (;;) {
		if (vp_answered(port, seq, &a)) {
			ret = 0;
			break;
		}
		ret = -ENODEV;
		if (interruptible && READ_ONCE(port->gone))
			break;
		ret = -ETIMEDOUT;
		if (time_after(jiffies, deadline))
			break;
		if (interruptible) {
			ret = wait_event_interruptible_timeout(port->wq,
				vp_answered(port, seq, &a) || READ_ONCE(port->gone),
				msecs_to_jiffies(20) + 1);
			if (ret < 0) {
				ret = -EINTR;
				break;
			}
		} else {
			wait_event_timeout(port->wq, vp_answered(port, seq, &a),
					   msecs_to_jiffies(20) + 1);
		}
		if (++slices % 25 == 0)
			port->ops->raise(port, 0, port->doorbell0);
	}
	if (!ret) {
		c->status = le32_to_cpu(a.status);
		for (i = 0; i < ARRAY_SIZE(c->value); i++)
			c->value[i] = le64_to_cpu(a.value[i]);
		if ((c->opcode == VHP_CMD_DETACH && c->status == VHP_ST_OK) ||
		    (c->opcode == VHP_CMD_ATTACH && c->status != VHP_ST_OK))
			port->maybe_attached = false;
	}
	mutex_unlock(&port->cmd_lock);
	/* What the answer changed (doorbells, windows) is in force before the caller goes on. */
	if (!ret && !READ_ONCE(port->gone))
		vp_port_sync(port);
	return ret;
}
