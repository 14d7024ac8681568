// SPDX-License-Identifier: BSD-3-Clause
/*
 * The checked copy of the state page (lib/statepage), and commands.
 *
 * The port may be unplugged at any moment, which turns an access to the page into
 * SIGBUS: the copy is guarded and reports -ENODEV.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "port.h"

static sigjmp_buf copy_env;
static volatile sig_atomic_t copy_armed;
static struct sigaction copy_next;

static void on_sigbus(int sig, siginfo_t *si, void *ctx)
{
	static volatile sig_atomic_t asking;	/* the next one may have us as its own next one */

	if (copy_armed)
		siglongjmp(copy_env, 1);
	/* Not ours, maybe that of a data path which touches windows (lib/guestmem/map.h). */
	if (!asking && copy_next.sa_flags & SA_SIGINFO) {
		asking = 1;
		copy_next.sa_sigaction(sig, si, ctx);
		asking = 0;
		return;
	}
	/* Nobody's: die of it. */
	signal(sig, SIG_DFL);
	raise(sig);
}

static void guard_install(void)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO }, old;

	sigemptyset(&sa.sa_mask);
	if (sigaction(SIGBUS, &sa, &old) == 0 && !(old.sa_flags & SA_SIGINFO && old.sa_sigaction == on_sigbus))
		copy_next = old;
}

/* The page may go while it is being read: nothing in there holds a lock or memory. */
static int read_guarded(const void *ctrl, struct vp_state *s, struct vp_err *e)
{
	int rc;

	guard_install();
	if (sigsetjmp(copy_env, 1)) {
		copy_armed = 0;
		return -ENODEV;
	}
	copy_armed = 1;
	rc = vp_state_read(ctrl, s, e);
	copy_armed = 0;
	return rc;
}

int port_read_state(struct port *p, struct vp_state *s, struct vp_err *e)
{
	int rc = read_guarded(p->ctrl, s, e);

	if (rc == -ENODEV)
		return vp_err_set(e, rc, "%s was unplugged", p->what);
	if (!rc && s->max_queues > p->info.max_queues)
		return vp_err_set(e, -EPROTO, "state page: a link of %u queues on a port of %u", s->max_queues,
				  p->info.max_queues);
	return rc;
}

int port_command(struct port *p, uint32_t opcode, const uint64_t args[4], unsigned int timeout_ms,
		 uint64_t value[6])
{
	uint64_t all[VHP_CMD_NARGS] = { args[0], args[1], args[2], args[3] };

	return port_command_all(p, opcode, all, timeout_ms, value);
}

int port_command_all(struct port *p, uint32_t opcode, const uint64_t args[VHP_CMD_NARGS], unsigned int timeout_ms,
		     uint64_t value[6])
{
	struct vhp_ioc_command c = { .opcode = opcode, .timeout_ms = timeout_ms };
	int rc;

	memcpy(c.args, args, sizeof(c.args));
	rc = p->ops->command(p, &c);
	if (rc)
		return rc;
	if (value)
		for (int i = 0; i < 6; i++)
			value[i] = c.value[i];
	return (int)(c.status & 0x7fffffff);
}

void port_close(struct port *p)
{
	if (p)
		p->ops->close(p);
}
