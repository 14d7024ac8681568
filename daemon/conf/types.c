/* SPDX-License-Identifier: BSD-3-Clause */
#include "conf/types.h"

#include <ctype.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define ID_MAX 63u /* virtio IDs of modern devices (1.3, 5), as PCI device IDs have them */

static const struct {
	const char *word;
	uint32_t id;
} types[] = {
	{ "net", VIRTIO_ID_NET },   { "blk", VIRTIO_ID_BLOCK },	  { "fs", VIRTIO_ID_FS },
	{ "scsi", VIRTIO_ID_SCSI }, { "vsock", VIRTIO_ID_VSOCK },
};

uint32_t vp_type_parse(const char *word)
{
	unsigned long n;
	char *end;

	for (size_t i = 0; i < VP_ARRAY_SIZE(types); i++)
		if (!strcmp(types[i].word, word))
			return types[i].id;
	n = strtoul(word, &end, 10);
	return *word >= '1' && *word <= '9' && !*end && n <= ID_MAX ? (uint32_t)n : 0;
}

const char *vp_type_name(uint32_t id)
{
	static char number[16];

	for (size_t i = 0; i < VP_ARRAY_SIZE(types); i++)
		if (types[i].id == id)
			return types[i].word;
	snprintf(number, sizeof(number), "%u", id);
	return number;
}

unsigned vp_type_queues(const struct vp_conf_link *l)
{
	switch (l->device_type) {
	case VIRTIO_ID_NET:
		return 2 * l->pairs;
	case VIRTIO_ID_FS:
		return 1 + l->pairs;
	case VIRTIO_ID_SCSI:
		return 2 + l->pairs;
	case VIRTIO_ID_VSOCK:
		return 2;
	default:
		return l->pairs;
	}
}

const char *vp_type_words(void)
{
	return "net, blk, fs, scsi, vsock or a virtio ID from 1 to 63";
}

static int only_for(const struct vp_conf_link *l, bool set, const char *key, const char *type, struct vp_err *e)
{
	return set ? vp_err_set(e, -EINVAL, "%s= is for Type=%s, not for Type=%s", key, type,
				vp_type_name(l->device_type))
		   : 0;
}

/* [Profile] */
static int check_profile(const struct vp_conf_link *l, struct vp_err *e)
{
	const bool blk = l->device_type == VIRTIO_ID_BLOCK, known = strlen(vp_type_name(l->device_type)) > 2;
	int r = only_for(l, !blk && l->capacity, "Capacity", "blk", e);

	if (!r)
		r = only_for(l, !blk && l->block_size, "BlockSize", "blk", e);
	if (!r)
		r = only_for(l, !blk && l->read_only, "ReadOnly", "blk", e);
	if (!r)
		r = only_for(l, l->device_type != VIRTIO_ID_FS && l->tag[0], "Tag", "fs", e);
	if (!r)
		r = only_for(l, l->device_type != VIRTIO_ID_VSOCK && l->cid, "CID", "vsock", e);
	if (!r)
		r = only_for(l, (blk || l->device_type == VIRTIO_ID_FS || known) && l->config_size, "ConfigSize", "ID",
			     e);
	if (!r && l->capacity % 512)
		r = vp_err_set(e, -EINVAL, "Capacity= is not a multiple of 512 bytes");
	if (!r && l->block_size & (l->block_size - 1))
		r = vp_err_set(e, -EINVAL, "BlockSize=%u is not a power of two", l->block_size);
	return r;
}

int vp_type_check(const struct vp_conf_link *l, struct vp_err *e)
{
	if (l->device_type == VIRTIO_ID_NET) {
		if (l->capacity || l->block_size || l->read_only || l->tag[0] || l->cid || l->config_size ||
		    l->has_features)
			return vp_err_set(e, -EINVAL, "[Profile] is for other types than net");
		return 0;
	}
	if (l->endpoint == VP_ENDPOINT_VIRTIO_NET)
		return vp_err_set(e, -EINVAL,
				  "Type=%s needs Endpoint=port or vhost-user; virtio-net joins network devices",
				  vp_type_name(l->device_type));
	if (l->mtu || l->pps || l->bps || l->offloads != VP_OFFLOAD_ALL || l->side[0].has_mac || l->side[1].has_mac)
		return vp_err_set(e, -EINVAL, "[Net] is for Type=net");
	if (l->driver_qmp[0])
		return vp_err_set(e, -EINVAL, "[Driver] QMP= and NIC= are for Type=net");
	if (l->device_type == VIRTIO_ID_VSOCK && l->pairs != 1)
		return vp_err_set(e, -EINVAL, "Queues= is not for Type=vsock, which has one pair");
	return check_profile(l, e);
}

void vp_mac_str(const uint8_t m[6], char out[18])
{
	snprintf(out, 18, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
}

bool vp_conf_name_ok(const char *name)
{
	size_t n = strlen(name);

	if (!n || n >= VP_CONF_NAME_MAX || name[0] == '.' || name[0] == '-')
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isascii((unsigned char)name[i]) || (!isalnum((unsigned char)name[i]) && !strchr("_.-", name[i])))
			return false;
	return true;
}
