/* SPDX-License-Identifier: BSD-3-Clause */
/* Configuration files: any text, as each kind of file; then the checks that a whole link gets. */
#include <stdlib.h>
#include <string.h>

#include "conf/conf.h"
#include "conf/policy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ignore(void *arg, const char *msg)
{
	if (strlen(msg) > 767)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vp_conf_vm vms[] = { { .name = "a", .trust_group = "g" }, { .name = "b", .trust_group = "g" } };
	struct vp_conf c = { .vms = vms, .n_vms = 2, .daemon = { .runtime_dir = "/run/x" } };
	struct vp_conf_report rep = { .fn = ignore };
	struct vp_policy_decision d;
	struct vp_conf_daemon dc;
	struct vp_conf_link l;
	struct vp_conf_vm vm;
	struct vp_err e;
	const char *text;

	if (!size)
		return 0;
	text = (const char *)data + 1;
	size--;
	switch (data[0] % 3) {
	case 0:
		memset(&dc, 0, sizeof(dc));
		vp_conf_parse_text(VP_CONF_DAEMON, &dc, "f.conf", text, size, &rep);
		break;
	case 1:
		memset(&vm, 0, sizeof(vm));
		vp_conf_parse_text(VP_CONF_VM, &vm, "f.vm", text, size, &rep);
		break;
	default:
		vp_conf_link_init(&l, "f", &e);
		vp_conf_parse_text(VP_CONF_LINK, &l, "f.link", text, size, &rep);
		if (vp_conf_finish_link(&l, &c, &e))
			break;
		c.links = &l;
		c.n_links = 1;
		vp_policy_decide(&c, &l, &d);
		vp_policy_check(&c, &rep);
		if (l.side[0].socket[0] != '/' || !memchr(l.side[0].socket, 0, sizeof(l.side[0].socket)))
			abort();
	}
	return 0;
}
