// SPDX-License-Identifier: BSD-3-Clause
/*
 * Devices other than net: the daemon is told what the data path has before ATTACH, and the data path what the driver VM
 * wrote into the config space (docs/spec.md, "Device types").
 */
#include <errno.h>
#include <linux/virtio_ids.h>
#include <string.h>

#include "agent_priv.h"
#include "base/log.h"
#include "base/util.h"
#include "vfeatures.h"

#define DESCRIBE_AGAIN_MS 5000u

int agent_describe(struct agent *a)
{
	uint64_t args[VHP_CMD_NARGS] = { 0 }, value[6] = { 0 };
	struct dp_desc d = { 0 };
	struct vp_err e = { 0 };
	char names[400];
	int rc;

	if (agent_now_ms() < a->describe_ms) {
		agent_retry_at(a, a->describe_ms);
		return -EAGAIN;
	}
	a->describe_ms = agent_now_ms() + DESCRIBE_AGAIN_MS;
	rc = a->dp->ops->describe(a->dp, a->s.device_type, a->s.config_size, &d, &e);
	if (rc) {
		agent_complain(a, QUIET_PROFILE, VP_LOG_ERR, "%s", e.msg);
		agent_retry_at(a, rc == -ECONNRESET ? agent_now_ms() + RETRY_MS : a->describe_ms);
		return -EAGAIN;
	}
	if (a->s.device_type == VIRTIO_ID_NET) {
		a->described = true;
		return 0;
	}
	for (uint32_t off = 0; off < d.config_size; off += VHP_CONFIG_PART) {
		args[VHP_CONFIG_OFFSET] = off;
		args[VHP_CONFIG_SIZE] = VP_MIN(d.config_size - off, VHP_CONFIG_PART);
		memset(&args[VHP_CONFIG_DATA], 0, VHP_CONFIG_PART);
		memcpy(&args[VHP_CONFIG_DATA], d.config + off, args[VHP_CONFIG_SIZE]);
		rc = port_command_all(a->port, VHP_CMD_CONFIG, args, COMMAND_TIMEOUT_MS, NULL);
		if (rc)
			goto out;
	}
	memset(args, 0, sizeof(args));
	args[VHP_BACKEND_FEATURES0] = d.features[0];
	args[VHP_BACKEND_FEATURES1] = d.features[1];
	args[VHP_BACKEND_TYPE] = a->dp->ops->device_type;
	args[VHP_BACKEND_QUEUES] = d.queues;
	args[VHP_BACKEND_CONFIG] = d.config_size;
	rc = port_command_all(a->port, VHP_CMD_BACKEND, args, COMMAND_TIMEOUT_MS, value);
out:
	if (rc == -ENODEV)
		return rc;
	if (!rc) {
		a->described = true;
		return 0;
	}
	if (rc < 0)
		agent_complain(a, QUIET_PROFILE, VP_LOG_WARNING, "telling the daemon of the back-end: %s; trying again",
			       strerror(-rc));
	else if (rc == VHP_ST_FEATURES)
		agent_complain(a, QUIET_PROFILE, VP_LOG_ERR,
			       "the back-end is refused: it lacks %s, which the link's profile has (vhost-pcictl "
			       "profile on the host shows it)",
			       features_names(value, a->s.device_type, names, sizeof(names)));
	else
		agent_complain(a, QUIET_PROFILE, VP_LOG_ERR,
			       "the back-end is refused: %s (vhost-pcictl show on the host says why)",
			       vp_state_status_str((uint32_t)rc));
	agent_retry_at(a, a->describe_ms);
	return -EAGAIN;
}

void agent_apply_set_config(struct agent *a)
{
	struct vp_err e = { 0 };

	if (!a->dp->ops->set_config || a->s.set_generation == a->set_seen || !a->dp->ops->ready(a->dp))
		return;
	a->set_seen = a->s.set_generation;
	if (a->s.set_size &&
	    a->dp->ops->set_config(a->dp, a->s.set_offset, a->s.set_size, a->s.set_config + a->s.set_offset, &e))
		vp_log(VP_LOG_WARNING,
		       "%s: the back-end did not take what the driver VM wrote into its config space: %s",
		       a->port->what, e.msg);
}
