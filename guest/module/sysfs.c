// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/class/vhost-pci/vhost-pciN/: the link as the state page tells it, and counters.
 *
 * The driver core waits for running show functions before a device is gone, so port->ctrl is valid.
 */
#include <linux/sysfs.h>

#include "vp.h"

static struct vp_port *to_port(struct device *dev)
{
	return container_of(dev, struct vp_port, dev);
}

static int vp_get32(struct device *dev, size_t off, u32 *v)
{
	__le32 le;
	int ret = vp_state_read(to_port(dev), off, &le, sizeof(le));

	*v = ret ? 0 : le32_to_cpu(le);
	return ret;
}

#define VP_GET32(dev, field, v) vp_get32(dev, offsetof(struct vhp_abi_state, field), v)

static ssize_t vp_show_word(char *buf, const char *const *words, size_t n, u32 v)
{
	if (v < n && words[v])
		return sysfs_emit(buf, "%s\n", words[v]);
	return sysfs_emit(buf, "unknown (%u)\n", v);
}

static ssize_t link_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u32 v;
	int ret = VP_GET32(dev, link_status, &v);

	return ret ? ret : sysfs_emit(buf, "%s\n", v == VHP_LINK_UP ? "up" : "down");
}
static DEVICE_ATTR_RO(link);

static ssize_t reason_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	static const char *const words[] = {
		[VHP_REASON_NONE] = "none",
		[VHP_REASON_NO_LINK] = "no link configured",
		[VHP_REASON_NOT_ATTACHED] = "not attached",
		[VHP_REASON_NO_DRIVER] = "driver VM absent",
		[VHP_REASON_NOT_READY] = "driver not running",
		[VHP_REASON_WINDOW] = "window missing",
		[VHP_REASON_FEATURES] = "features",
		[VHP_REASON_POLICY] = "policy",
		[VHP_REASON_ADMIN] = "taken down by administrator",
		[VHP_REASON_TIMEOUT] = "cut off after timeout",
		[VHP_REASON_PROTOCOL] = "protocol error of the front-end",
		[VHP_REASON_DAEMON] = "daemon restarting",
		[VHP_REASON_LIMIT] = "too many regions, windows or queues",
		[VHP_REASON_PROFILE] = "what the back-end has is not known, or does not fit",
		[VHP_REASON_GRANT] = "the driver VM has granted nothing",
	};
	u32 v;
	int ret = VP_GET32(dev, link_reason, &v);

	return ret ? ret : vp_show_word(buf, words, ARRAY_SIZE(words), v);
}
static DEVICE_ATTR_RO(reason);

static ssize_t mode_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	static const char *const words[] = { "none", "fast", "grant", "copy" };
	u32 v;
	int ret = VP_GET32(dev, mode, &v);

	return ret ? ret : vp_show_word(buf, words, ARRAY_SIZE(words), v);
}
static DEVICE_ATTR_RO(mode);

static ssize_t attached_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u32 v;
	int ret = VP_GET32(dev, flags, &v);

	return ret ? ret : sysfs_emit(buf, "%u\n", !!(v & VHP_STATE_ATTACHED));
}
static DEVICE_ATTR_RO(attached);

static ssize_t device_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u32 v;
	int ret = VP_GET32(dev, device_type, &v);

	return ret ? ret : sysfs_emit(buf, "%u\n", v);
}
static DEVICE_ATTR_RO(device_type);

static ssize_t queues_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u32 v;
	int ret = VP_GET32(dev, nqueues, &v);

	return ret ? ret : sysfs_emit(buf, "%u\n", v);
}
static DEVICE_ATTR_RO(queues);

static ssize_t regions_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u32 v;
	int ret = VP_GET32(dev, nregions, &v);

	return ret ? ret : sysfs_emit(buf, "%u\n", v);
}
static DEVICE_ATTR_RO(regions);

static ssize_t generation_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u32 v;
	int ret = VP_GET32(dev, generation, &v);

	return ret ? ret : sysfs_emit(buf, "%u\n", v);
}
static DEVICE_ATTR_RO(generation);

static ssize_t epoch_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	__le64 v;
	int ret = vp_state_read(to_port(dev), offsetof(struct vhp_abi_state, link_epoch), &v,
				sizeof(v));

	return ret ? ret : sysfs_emit(buf, "%llu\n", le64_to_cpu(v));
}
static DEVICE_ATTR_RO(epoch);

static ssize_t features_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	__le64 v[2];
	int ret = vp_state_read(to_port(dev), offsetof(struct vhp_abi_state, features), v,
				sizeof(v));

	return ret ? ret : sysfs_emit(buf, "0x%016llx%016llx\n", le64_to_cpu(v[1]),
				      le64_to_cpu(v[0]));
}
static DEVICE_ATTR_RO(features);

static ssize_t name_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", to_port(dev)->name);
}
static DEVICE_ATTR_RO(name);

static ssize_t attachment_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", to_port(dev)->ops->name);
}
static DEVICE_ATTR_RO(attachment);

static struct attribute *vp_attrs[] = {
	&dev_attr_name.attr,	   &dev_attr_attachment.attr,  &dev_attr_link.attr,
	&dev_attr_reason.attr,	   &dev_attr_mode.attr,	       &dev_attr_attached.attr,
	&dev_attr_epoch.attr,	   &dev_attr_device_type.attr, &dev_attr_features.attr,
	&dev_attr_queues.attr,	   &dev_attr_regions.attr,     &dev_attr_generation.attr,
	NULL,
};

static const struct attribute_group vp_group = { .attrs = vp_attrs };

/* kicks: signals 1.. to the guest. calls: all signals from the guest. */
static ssize_t kicks_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct vp_port *port = to_port(dev);
	u64 sum = 0;
	u32 i;

	for (i = 1; i < port->nsignals; i++)
		sum += READ_ONCE(port->kick[i].count);
	return sysfs_emit(buf, "%llu\n", sum);
}
static DEVICE_ATTR_RO(kicks);

static ssize_t calls_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&to_port(dev)->calls));
}
static DEVICE_ATTR_RO(calls);

static ssize_t changes_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", READ_ONCE(to_port(dev)->kick[0].count));
}
static DEVICE_ATTR_RO(changes);

static ssize_t commands_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&to_port(dev)->commands));
}
static DEVICE_ATTR_RO(commands);

static ssize_t revocations_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&to_port(dev)->revocations));
}
static DEVICE_ATTR_RO(revocations);

static struct attribute *vp_stat_attrs[] = {
	&dev_attr_kicks.attr,	 &dev_attr_calls.attr,	     &dev_attr_changes.attr,
	&dev_attr_commands.attr, &dev_attr_revocations.attr, NULL,
};

static const struct attribute_group vp_stat_group = {
	.name = "statistics",
	.attrs = vp_stat_attrs,
};

const struct attribute_group *vp_port_groups[] = { &vp_group, &vp_stat_group, NULL };
