/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a VMM's arguments depend on (vhost-pcictl generate): the link's configuration as it is in force, defaults
 * filled in, in the sections and keys of a .link file.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "link/link.h"

static json_t *yes_no(bool b)
{
	return json_string(b ? "yes" : "no");
}

static void set_text(json_t *section, const char *key, const char *value)
{
	if (*value)
		json_object_set_new(section, key, json_string(value));
}

/* A power of two of whole MiB, as all sizes of a link are. */
static void set_size(json_t *section, const char *key, uint64_t bytes)
{
	bool giga = bytes >> 30;
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64 "%c", bytes >> (giga ? 30 : 20), giga ? 'G' : 'M');
	json_object_set_new(section, key, json_string(text));
}

static json_t *side_json(const struct vp_conf_side *s)
{
	return json_pack("{s:s,s:s,s:s}", "VM", s->vm, "Socket", s->socket, "SocketMode",
			 s->socket_mode == VP_SOCKET_CLIENT ? "client" : "server");
}

static void set_mac(json_t *net, const char *key, const struct vp_conf_side *s)
{
	char mac[18];

	if (!s->has_mac)
		return;
	vp_mac_str(s->mac, mac);
	json_object_set_new(net, key, json_string(mac));
}

static const char *attachment_name(unsigned a)
{
	return a == VP_ATTACH_IVSHMEM ? "ivshmem" : a == VP_ATTACH_SHMEM ? "shmem" : "local";
}

static void set_qmp(json_t *side, const char *path, unsigned mode)
{
	set_text(side, "QMP", path);
	if (*path)
		set_text(side, "QMPMode", mode == VP_SOCKET_CLIENT ? "client" : "server");
}

static void set_port(json_t *driver, json_t *device, const struct vp_conf_link *c, unsigned mode)
{
	if (mode == VP_MODE_GRANT) {
		json_object_set_new(driver, "Grant", json_string(vp_grant_name(c->grant)));
		set_text(driver, "GrantSocket", c->grant_socket);
		if (c->grant_size)
			set_size(driver, "GrantSize", c->grant_size);
	}
	set_qmp(driver, c->driver_qmp, c->driver_qmp_mode);
	set_text(driver, "NIC", c->nic);
	json_object_set_new(device, "Attachment", json_string(attachment_name(c->attachment)));
	set_qmp(device, c->qmp, c->qmp_mode);
	set_text(device, "HotplugBus", c->hotplug_bus);
	if (mode == VP_MODE_COPY)
		set_size(device, "PoolSize", vp_conf_link_pool(c));
	if (c->attachment == VP_ATTACH_SHMEM)
		set_size(device, "ApertureSize", c->aperture);
	json_object_set_new(device, "PackedRings", yes_no(c->packed));
	json_object_set_new(device, "PlainRings", yes_no(c->plain));
}

json_t *vp_link_config(const struct vp_link *l)
{
	const struct vp_conf_link *c = &l->conf;
	json_t *driver = side_json(&c->side[VP_SIDE_DRIVER]), *device = side_json(&c->side[VP_SIDE_DEVICE]),
	       *net = json_object(), *profile = json_object();

	json_object_set_new(device, "Endpoint", json_string(vp_endpoint_name(c->endpoint)));
	if (c->endpoint == VP_ENDPOINT_PORT)
		set_port(driver, device, c, l->decision.mode);
	set_mac(net, "DriverMAC", &c->side[VP_SIDE_DRIVER]);
	set_mac(net, "DeviceMAC", &c->side[VP_SIDE_DEVICE]);
	if (c->mtu)
		json_object_set_new(net, "MTU", json_integer(c->mtu));
	set_text(profile, "Tag", c->tag);
	if (c->config_size)
		json_object_set_new(profile, "ConfigSize", json_integer(c->config_size));
	return json_pack("{s:{s:s,s:i},s:o,s:o,s:o,s:o}", "Link", "Mode", vp_mode_name(l->decision.mode), "Queues",
			 (int)c->pairs, "Driver", driver, "Device", device, "Net", net, "Profile", profile);
}

/* {"Link":{"Mode":"relay"},"Driver":{"VM":"a"},...}, the words of a .link file. */
int vp_link_config_read(struct vp_conf_link *l, json_t *config, struct vp_err *e)
{
	const char *section, *key;
	json_t *keys, *v;

	json_object_foreach(config, section, keys) {
		if (!json_is_object(keys))
			return vp_err_set(e, -EINVAL, "config: [%.50s] must be an object of keys", section);
		json_object_foreach(keys, key, v) {
			char number[24];
			const char *text = json_string_value(v);
			int r;

			if (json_is_integer(v)) {
				snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(v));
				text = number;
			}
			if (!text)
				return vp_err_set(e, -EINVAL, "config: %.50s must be a string or an integer", key);
			r = vp_conf_link_set(l, section, key, text, e);
			if (r)
				return r == -ENOENT ? vp_err_set(e, -EINVAL, "%s", strdupa(e->msg)) : r;
		}
	}
	return 0;
}
