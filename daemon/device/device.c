/* SPDX-License-Identifier: BSD-3-Clause */
#include "device/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "conf/types.h"
#include "vhostuser/codec.h"

static const struct vp_device *const devices[] = {
	&vp_device_net, &vp_device_blk, &vp_device_scsi, &vp_device_vsock, &vp_device_fs,
};

const struct vp_device *vp_device_of(const struct vp_conf_link *l)
{
	for (size_t i = 0; i < VP_ARRAY_SIZE(devices); i++)
		if (devices[i]->id == l->device_type)
			return devices[i];
	return &vp_device_any;
}

/* ---- profiles ------------------------------------------------------------------ */

void vp_profile_written(const struct vp_conf_link *l, struct vp_profile *p)
{
	const struct vp_device *d = vp_device_of(l);

	memset(p, 0, sizeof(*p));
	if (d->written)
		d->written(l, p);
	else
		p->known = true;
	if (p->known && l->has_features)
		p->features = l->features & VP_DEVICE_BITS;
	p->written = p->known;
}

int vp_profile_fits(const struct vp_conf_link *l, const struct vp_profile *p, const struct vp_profile *come,
		    uint64_t *missing, struct vp_err *e)
{
	const struct vp_device *d = vp_device_of(l);
	char names[160];

	*missing = d->offered(l, VP_SIDE_DRIVER, p) & VP_DEVICE_BITS & ~d->not_the_paths & ~come->features;
	if (*missing)
		return vp_err_set(
			e, -EPERM,
			"it lacks %s, which the profile has; use one that serves Type=%s and has them, or forget "
			"the profile",
			vu_features_str(l->device_type, *missing, names, sizeof(names)),
			vp_type_name(l->device_type));
	if (come->queues && come->queues < vp_type_queues(l))
		return vp_err_set(e, -EINVAL, "it has %u queues, the link %u; %s", come->queues, vp_type_queues(l),
				  come->queues <= vp_type_queues(l) - l->pairs
					  ? "no Queues= fits that: it may serve another device than Type= says"
					  : "lower Queues=, or give the back-end more");
	if (come->config_size < d->wanted(l))
		return vp_err_set(
			e, -EINVAL,
			"it has %u bytes of config space, the link needs %u: it may serve another device than "
			"Type= says",
			come->config_size, d->wanted(l));
	return d->fits ? d->fits(l, p, come, e) : 0;
}

bool vp_profile_refresh(struct vp_profile *p, const struct vp_profile *come)
{
	if (p->written || (p->config_size == come->config_size && !memcmp(p->config, come->config, come->config_size)))
		return false;
	p->config_size = come->config_size;
	memcpy(p->config, come->config, sizeof(p->config));
	return true;
}

unsigned vp_profile_write(const struct vp_conf_link *l, const struct vp_profile *p, char *buf, unsigned size)
{
	int n = snprintf(buf, size, "type=%u\nfeatures=0x%llx\nqueues=%u\nconfig=", l->device_type,
			 (unsigned long long)p->features, p->queues);

	for (unsigned i = 0; i < p->config_size && (unsigned)n + 3 < size; i++)
		n += snprintf(buf + n, size - (unsigned)n, "%02x", p->config[i]);
	n += snprintf(buf + n, size - (unsigned)n, "\n");
	return (unsigned)n;
}

int vp_profile_read(const struct vp_conf_link *l, const char *text, struct vp_profile *p)
{
	unsigned type, queues, byte;
	unsigned long long features;
	int at = 0, n;

	memset(p, 0, sizeof(*p));
	if (sscanf(text, "type=%u features=%llx queues=%u config=%n", &type, &features, &queues, &at) != 3 || !at ||
	    type != l->device_type || queues > 256)
		return -EINVAL;
	for (text += at; p->config_size < VP_DEVICE_CONFIG_MAX && sscanf(text, "%2x%n", &byte, &n) == 1 && n == 2;
	     text += n)
		p->config[p->config_size++] = (uint8_t)byte;
	if (*text != '\n' || p->config_size < vp_device_of(l)->wanted(l))
		return -EINVAL;
	p->features = features & VP_DEVICE_BITS;
	p->queues = queues;
	p->known = true;
	return 0;
}
