/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>

#include "attach.h"

void vp_shmem_port_conf(const struct vp_conf_link *l, struct vp_port_conf *pc)
{
	pc->attachment = VHP_ATTACHMENT_SHMEM;
}

int vp_shmem_new(struct vp_attach **out, struct vp_port *p, const struct vp_attach_conf *c, struct vp_err *e)
{
	return vp_err_set(e, -ENOSYS, "Attachment=shmem is not in this build; use Attachment=local");
}
