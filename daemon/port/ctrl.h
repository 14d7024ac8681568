/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port's control block as those see it who write its state page and read its command page: the port (page.c,
 * command.c), and, when the daemon has gone, an orphan (orphan.c). One at a time.
 *
 * Threat model: the guest can write every byte of it at any time. Nothing is read but a command, one copy.
 */
#ifndef VP_DAEMON_PORT_CTRL_H
#define VP_DAEMON_PORT_CTRL_H

#include "guestmem/shared.h"
#include "vhost-pci/abi.h"

struct port_ctrl {
	struct vp_shared mem;
	uint32_t         next;  /* generation that the present update ends with */
};

/* memfd stays the caller's. As vp_shared_map(). */
int  port_ctrl_map(struct port_ctrl *c, int memfd);
void port_ctrl_unmap(struct port_ctrl *c);

/*
 * An update of the state page: a reader finds all of it, or that it is under way. next: an even number, higher than any
 * that a reader has seen. Who ends in the middle leaves a page that is under way; begin() of whoever comes next mends
 * that.
 */
void port_ctrl_begin(struct port_ctrl *c, uint32_t next);
void port_ctrl_commit(struct port_ctrl *c);

/* Within an update; off is in the state page. */
VP_INLINE void port_ctrl_put32(struct port_ctrl *c, size_t off, uint32_t v)
{
	vp_st32(c->mem.p, VHP_CTRL_STATE_OFF + off, v);
}

VP_INLINE void port_ctrl_put64(struct port_ctrl *c, size_t off, uint64_t v)
{
	vp_st64(c->mem.p, VHP_CTRL_STATE_OFF + off, v);
}

/*
 * Is there a command other than the one that was answered last? Then *cmd is a copy of it, in the byte order of the
 * page.
 */
bool port_ctrl_command(const struct port_ctrl *c, uint32_t answered, struct vhp_abi_command *cmd);

#endif
