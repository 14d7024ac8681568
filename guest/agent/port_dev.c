// SPDX-License-Identifier: BSD-3-Clause
/* The port operations on the real device, /dev/vhost-pciN. */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "port.h"

#define DEV_GLOB "/dev/vhost-pci[0-9]*"

static int dev_ioctl(struct port *p, unsigned long req, void *arg)
{
	int rc;

	do
		rc = ioctl(p->fd, req, arg);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : 0;
}

static int dev_window(struct port *p, uint32_t slot, uint32_t serial, struct port_window *out)
{
	struct vhp_ioc_window w = { .window = slot, .serial = serial, .fd = -1 };
	int rc = dev_ioctl(p, VHP_IOC_WINDOW, &w);

	if (rc)
		return rc;
	*out = (struct port_window){ .fd = w.fd, .size = w.size, .align = w.align };
	return 0;
}

static int dev_set_kick(struct port *p, uint32_t signal, int fd)
{
	struct vhp_ioc_eventfd a = { .signal = signal, .fd = fd };

	return dev_ioctl(p, VHP_IOC_SET_KICK, &a);
}

static int dev_set_call(struct port *p, uint32_t signal, int fd)
{
	struct vhp_ioc_eventfd a = { .signal = signal, .fd = fd };

	return dev_ioctl(p, VHP_IOC_SET_CALL, &a);
}

static int dev_command(struct port *p, struct vhp_ioc_command *c)
{
	return dev_ioctl(p, VHP_IOC_COMMAND, c);
}

static int dev_event(struct port *p, uint32_t *flags)
{
	struct vhp_event ev;
	ssize_t n = read(p->fd, &ev, sizeof(ev));

	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	if (n != (ssize_t)sizeof(ev))
		return -EIO;
	*flags = ev.flags;
	return 0;
}

static void dev_close(struct port *p)
{
	if (p->ctrl)
		munmap((void *)(uintptr_t)p->ctrl, VHP_CTRL_SIZE);
	vp_close(&p->fd);
	free(p);
}

static const struct port_ops dev_ops = {
	.window = dev_window,
	.set_kick = dev_set_kick,
	.set_call = dev_set_call,
	.command = dev_command,
	.event = dev_event,
	.close = dev_close,
};

static int open_error(const char *path, int err, struct vp_err *e)
{
	switch (err) {
	case ENOENT:
	case ENXIO:
		return vp_err_set(e, -ENOENT, "no port at %s: load the module (modprobe vhost_pci), and check that "
				  "the host gave this VM a port", path);
	case EBUSY:
	case EAGAIN:
		return vp_err_set(e, -EBUSY, "%s belongs to another process (fuser %s shows which): stop it, or "
				  "give another --port", path, path);
	case EACCES:
	case EPERM:
		return vp_err_set(e, -err, "%s may not be opened: run as root or change the rights by a udev rule",
				  path);
	case ENODEV:
		return vp_err_set(e, -ENODEV, "%s was unplugged", path);
	default:
		return vp_err_set(e, -err, "cannot open %s: %s", path, strerror(err));
	}
}

static int dev_open(const char *path, bool owner, struct port **out, struct vp_err *e)
{
	struct port *p = calloc(1, sizeof(*p));
	void *m;
	int rc;

	if (!p)
		return vp_err_set(e, -ENOMEM, "out of memory");
	p->ops = &dev_ops;
	p->owner = owner;
	snprintf(p->what, sizeof(p->what), "%s", path);
	/* Opened blocking: the module then waits a little for the last owner to be detached. */
	p->fd = open(path, (owner ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (p->fd < 0) {
		rc = open_error(path, errno, e);
		goto out;
	}
	fcntl(p->fd, F_SETFL, O_NONBLOCK);
	rc = dev_ioctl(p, VHP_IOC_INFO, &p->info);
	if (rc) {
		rc = vp_err_set(e, rc, rc == -ENOTTY ? "%s is not a vhost-pci port" :
				"%s: cannot be asked what it is", path);
		goto out;
	}
	p->info.name[sizeof(p->info.name) - 1] = 0;
	p->info.bus[sizeof(p->info.bus) - 1] = 0;
	if (p->info.version != VHP_IOC_VERSION || p->info.abi_version != VHP_ABI_VERSION ||
	    p->info.ctrl_size < VHP_CTRL_SIZE || p->info.max_queues < 1 || p->info.max_queues > VHP_MAX_QUEUES) {
		rc = vp_err_set(e, -EPROTO, "%s: module interface %u, guest ABI %u.%u, %u queues; this agent needs "
				"interface %u and ABI %u.%u: install module, agent and daemon of one release", path,
				p->info.version, VHP_ABI_VER_MAJOR(p->info.abi_version),
				VHP_ABI_VER_MINOR(p->info.abi_version), p->info.max_queues, VHP_IOC_VERSION,
				VHP_ABI_MAJOR, VHP_ABI_MINOR);
		goto out;
	}
	m = mmap(NULL, VHP_CTRL_SIZE, PROT_READ, MAP_SHARED, p->fd, 0);
	if (m == MAP_FAILED) {
		rc = vp_err_set(e, -errno, "%s: cannot map the state page: %s", path, strerror(errno));
		goto out;
	}
	p->ctrl = m;
	*out = p;
	return 0;
out:
	dev_close(p);
	return rc;
}

/* Through all ports, in the order of their names: the first that fits. */
static int dev_search(const char *name, bool owner, struct port **out, struct vp_err *e)
{
	bool any = !strcmp(name, "auto");
	int rc = -ENOENT;
	glob_t g;

	vp_err_set(e, -ENOENT, "no port %s%s: load the module (modprobe vhost_pci), and check that the host gave "
		   "this VM a port", any ? "found" : "named ", any ? "" : name);
	if (glob(DEV_GLOB, 0, NULL, &g))
		return -ENOENT;
	for (size_t i = 0; i < g.gl_pathc; i++) {
		struct port *p;
		bool match;

		/* Look first: opening as owner only to give it back would detach. */
		rc = dev_open(g.gl_pathv[i], false, &p, e);
		if (rc)
			continue;
		match = any || !strcmp(p->info.name, name);
		port_close(p);
		if (!match) {
			rc = vp_err_set(e, -ENOENT, "no port is named %s", name);
			continue;
		}
		rc = dev_open(g.gl_pathv[i], owner, out, e);
		if (!rc || !any)
			break;
	}
	globfree(&g);
	return rc;
}

int port_open(const char *which, bool owner, struct port **out, struct vp_err *e)
{
	return strchr(which, '/') ? dev_open(which, owner, out, e) : dev_search(which, owner, out, e);
}
