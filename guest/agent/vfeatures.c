// SPDX-License-Identifier: BSD-3-Clause
#include <stdio.h>
#include <string.h>

#include <linux/virtio_ids.h>

#include "vfeatures.h"

struct name {
	uint8_t bit;
	const char *name;
};

static const struct name net_names[] = {
	{ 0, "CSUM" }, { 1, "GUEST_CSUM" }, { 2, "CTRL_GUEST_OFFLOADS" }, { 3, "MTU" }, { 5, "MAC" }, { 6, "GSO" },
	{ 7, "GUEST_TSO4" }, { 8, "GUEST_TSO6" }, { 9, "GUEST_ECN" }, { 10, "GUEST_UFO" },
	{ 11, "HOST_TSO4" }, { 12, "HOST_TSO6" }, { 13, "HOST_ECN" }, { 14, "HOST_UFO" },
	{ 15, "MRG_RXBUF" }, { 16, "STATUS" }, { 17, "CTRL_VQ" }, { 18, "CTRL_RX" },
	{ 19, "CTRL_VLAN" }, { 20, "CTRL_RX_EXTRA" }, { 21, "GUEST_ANNOUNCE" }, { 22, "MQ" },
	{ 23, "CTRL_MAC_ADDR" }, { 54, "GUEST_USO4" }, { 55, "GUEST_USO6" }, { 56, "HOST_USO" },
	{ 57, "HASH_REPORT" }, { 59, "GUEST_HDRLEN" }, { 60, "RSS" }, { 61, "RSC_EXT" },
	{ 62, "STANDBY" }, { 63, "SPEED_DUPLEX" },
};

static const struct name blk_names[] = {
	{ 1, "SIZE_MAX" }, { 2, "SEG_MAX" }, { 4, "GEOMETRY" }, { 5, "RO" }, { 6, "BLK_SIZE" }, { 9, "FLUSH" },
	{ 10, "TOPOLOGY" }, { 11, "CONFIG_WCE" }, { 12, "MQ" }, { 13, "DISCARD" }, { 14, "WRITE_ZEROES" },
	{ 16, "SECURE_ERASE" }, { 17, "ZONED" },
};

static const struct name common_names[] = {
	{ 24, "NOTIFY_ON_EMPTY" }, { 27, "ANY_LAYOUT" }, { 28, "INDIRECT_DESC" }, { 29, "EVENT_IDX" },
	{ 32, "VERSION_1" }, { 33, "ACCESS_PLATFORM" }, { 34, "RING_PACKED" }, { 35, "IN_ORDER" },
	{ 36, "ORDER_PLATFORM" }, { 37, "SR_IOV" }, { 38, "NOTIFICATION_DATA" }, { 40, "RING_RESET" },
};

static const char *find(const struct name *n, size_t count, unsigned int bit)
{
	for (size_t i = 0; i < count; i++)
		if (n[i].bit == bit)
			return n[i].name;
	return NULL;
}

const char *features_names(const uint64_t f[2], uint32_t device_type, char *buf, size_t len)
{
	size_t at = 0;

	if (len)
		buf[0] = 0;
	for (unsigned int bit = 0; bit < 128 && at < len; bit++) {
		const char *name = NULL;
		int n;

		if (!vp_has(f, bit))
			continue;
		name = find(common_names, VP_ARRAY_SIZE(common_names), bit);
		if (!name && device_type == VIRTIO_ID_NET)
			name = find(net_names, VP_ARRAY_SIZE(net_names), bit);
		if (!name && device_type == VIRTIO_ID_BLOCK)
			name = find(blk_names, VP_ARRAY_SIZE(blk_names), bit);
		n = name ? snprintf(buf + at, len - at, "%s%s", at ? " " : "", name) :
			   snprintf(buf + at, len - at, "%sbit%u", at ? " " : "", bit);
		if (n < 0)
			break;
		at += (size_t)n;
	}
	if (!at && len)
		snprintf(buf, len, "none");
	return buf;
}
