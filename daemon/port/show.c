/* SPDX-License-Identifier: BSD-3-Clause */
/* What a port tells the administrator. */
#include <endian.h>
#include <string.h>

#include "port/priv.h"

bool vp_port_attached(const struct vp_port *p)
{
	return p->attached;
}

bool vp_port_is_up(const struct vp_port *p)
{
	return p->up && !p->falling;
}

bool vp_port_is_online(const struct vp_port *p)
{
	return p->online;
}

uint32_t vp_port_reason(const struct vp_port *p)
{
	return le32toh(p->st.link_reason);
}

uint32_t vp_port_queue_runs(const struct vp_port *p, unsigned q)
{
	return q < p->nqueues ? p->q[q].run : 0;
}

int vp_port_memfd(const struct vp_port *p, uint64_t *size)
{
	if (size)
		*size = p->mem_size;
	return p->memfd;
}

uint64_t vp_port_path(const struct vp_port *p)
{
	return p->attached ? p->path[0] : 0;
}

uint64_t vp_port_pool(const struct vp_port *p, uint64_t *size)
{
	*size = p->conf.pool_size;
	return VHP_CTRL_POOL_OFF;
}

const char *vp_port_reason_str(uint32_t reason)
{
	static const char *const s[] = {
		[VHP_REASON_NONE] = "up",
		[VHP_REASON_NO_LINK] = "no link",
		[VHP_REASON_NOT_ATTACHED] = "not attached",
		[VHP_REASON_NO_DRIVER] = "driver VM absent",
		[VHP_REASON_NOT_READY] = "driver not running",
		[VHP_REASON_WINDOW] = "window",
		[VHP_REASON_FEATURES] = "features",
		[VHP_REASON_POLICY] = "policy",
		[VHP_REASON_ADMIN] = "set down",
		[VHP_REASON_TIMEOUT] = "guest did not answer",
		[VHP_REASON_PROTOCOL] = "front-end broke the protocol",
		[VHP_REASON_DAEMON] = "daemon",
		[VHP_REASON_LIMIT] = "limit",
		[VHP_REASON_PROFILE] = "profile",
		[VHP_REASON_GRANT] = "nothing granted",
	};

	return reason < VP_ARRAY_SIZE(s) ? s[reason] : "?";
}

static const char *attachment_str(uint32_t a)
{
	/* 0: nobody but the daemon sees this port. */
	return a == VHP_ATTACHMENT_IVSHMEM ? "ivshmem"
	       : a == VHP_ATTACHMENT_SHMEM ? "shmem"
	       : a			   ? "local"
					   : "vhost-user";
}

static json_t *windows_json(const struct vp_port *p)
{
	static const char *const s[] = { "free", "giving", "ready", "revoking", "taking", "failed" };
	json_t *a = json_array();

	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++) {
		const struct port_win *w = &p->win[i];

		if (w->state != WIN_FREE)
			json_array_append_new(a, json_pack("{s:i,s:I,s:I,s:i,s:s,s:s?}", "slot", (int)i, "size",
							   (json_int_t)w->size, "locator", (json_int_t)w->locator,
							   "serial", (int)w->serial, "state", s[w->state], "error",
							   w->error[0] ? w->error : NULL));
	}
	return a;
}

static json_t *queues_json(const struct vp_port *p)
{
	json_t *a = json_array();

	for (unsigned q = 0; q < p->nqueues; q++) {
		const struct vhp_abi_queue *e = &p->st.queues[q];
		uint32_t f = le32toh(e->flags);

		json_array_append_new(a, json_pack("{s:i,s:I,s:I,s:s,s:b,s:I,s:I,s:I}", "index", (int)q, "size",
						   (json_int_t)le32toh(e->size), "base", (json_int_t)le32toh(e->base),
						   "state",
						   f & VHP_QUEUE_BROKEN ? "broken"
						   : p->q[q].stopping	? "stopping"
						   : p->q[q].running	? "running"
									: "idle",
						   "enabled", (f & VHP_QUEUE_ENABLED) != 0, "runs",
						   (json_int_t)p->q[q].run, "kick_signal",
						   (json_int_t)le32toh(e->kick_signal), "doorbell",
						   (json_int_t)le32toh(e->doorbell)));
	}
	return a;
}

bool vp_port_counted(const struct vp_port *p, uint64_t counted[VHP_COUNTS])
{
	memcpy(counted, p->counted, sizeof(p->counted));
	return p->has_counted;
}

json_t *vp_port_json(const struct vp_port *p)
{
	return json_pack("{s:s,s:b,s:b,s:b,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o,s:I,s:I,s:I,s:I,s:I}", "attachment",
			 attachment_str(p->conf.attachment), "online", p->online, "attached", p->attached, "up",
			 vp_port_is_up(p), "reason", vp_port_reason_str(vp_port_reason(p)), "driver_us",
			 (json_int_t)p->driver_us, "up_us", (json_int_t)p->up_us, "epoch",
			 (json_int_t)le64toh(p->st.link_epoch), "required_features", (json_int_t)p->required,
			 "data_path_features", (json_int_t)p->path[0], "regions", (json_int_t)le32toh(p->st.nregions),
			 "windows", windows_json(p), "queues", queues_json(p), "commands", (json_int_t)p->n_commands,
			 "refused", (json_int_t)p->n_refused, "attaches", (json_int_t)p->n_attaches, "cuts",
			 (json_int_t)p->n_cuts, "updates", (json_int_t)p->n_updates);
}
