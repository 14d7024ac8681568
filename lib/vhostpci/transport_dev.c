/* SPDX-License-Identifier: BSD-3-Clause */
/* A port of this VM: /dev/vhost-pciN of the guest module (include/vhost-pci/uapi.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <vhost-pci/uapi.h>

#include "vhostpci/internal.h"

struct dev {
	struct vhp_transport t;
	bool     kicks;
	int      pkey;
	unsigned nsignals;
	int      kick[VHP_MAX_SIGNALS], call[VHP_MAX_SIGNALS];
};

static int dev_pump(struct vhp_transport *t, struct vp_err *e)
{
	struct vhp_event ev;
	ssize_t n = read(t->fd, &ev, sizeof(ev));

	if (n == sizeof(ev)) {
		if (ev.flags & (VHP_EV_WINDOW | VHP_EV_DETACHED))
			t->serial++;
		return 0;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	return vp_err_set(e, -ENODEV, "the port was unplugged");
}

static int dev_command(struct vhp_transport *t, uint32_t opcode, const uint64_t *args, unsigned nargs,
		       uint32_t *status, uint64_t *value, struct vp_err *e)
{
	struct vhp_ioc_command c = { .opcode = opcode };
	unsigned i;

	for (i = 0; i < nargs && i < VP_ARRAY_SIZE(c.args); i++)
		c.args[i] = args[i];
	if (ioctl(t->fd, VHP_IOC_COMMAND, &c) < 0)
		return vp_err_set(e, -errno, "command %u: %m", opcode);
	*status = c.status;
	for (i = 0; value && i < 6; i++)
		value[i] = c.value[i];
	return 0;
}

static int dev_map(struct vhp_transport *t, const struct vp_state_window *w, unsigned slot,
		   uint64_t offset, uint64_t size, bool writable, struct vp_map **out, struct vp_err *e)
{
	const struct dev *d = vp_container_of(t, struct dev, t);
	struct vhp_ioc_window iw = { .window = slot, .serial = w->serial, .pkey = (uint32_t)d->pkey };
	int ret;

	ret = ioctl(t->fd, VHP_IOC_WINDOW, &iw);
	if (ret < 0 && errno == EINVAL && d->pkey)
		return vp_err_set(e, -EOPNOTSUPP,
				  "the vhost_pci module is older than this library and gives no window with a "
				  "protection key: install a newer one, or open the port without params.protect");
	if (ret < 0)
		return vp_err_set(e, errno == ESTALE ? -EAGAIN : -errno, "window %u: %m", slot);
	/* A window of the module: memory of the host behind a BAR. */
	ret = vp_map_new(out, iw.fd, offset, size, VP_MAP_VOUCHED | (writable ? 0 : VP_MAP_READONLY), e);
	close(iw.fd);
	return ret;
}

/* Eventfds are made and attached when they are first asked for. */
static int attach(struct dev *d, int *slot, unsigned long request, uint32_t signal)
{
	struct vhp_ioc_eventfd ie = { .signal = signal };

	if (signal >= d->nsignals)
		return -1;
	if (*slot >= 0)
		return *slot;
	ie.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ie.fd < 0)
		return -1;
	if (ioctl(d->t.fd, request, &ie) < 0) {
		close(ie.fd);
		return -1;
	}
	*slot = ie.fd;
	return *slot;
}

static int dev_kick_fd(struct vhp_transport *t, unsigned q, uint32_t signal)
{
	struct dev *d = vp_container_of(t, struct dev, t);

	/* Which signal carries the kicks is the module's business. */
	return d->kicks && 1 + q < VHP_MAX_SIGNALS ? attach(d, &d->kick[1 + q], VHP_IOC_SET_KICK, 1 + q) : -1;
}

static int dev_call_fd(struct vhp_transport *t, unsigned q, uint32_t doorbell)
{
	struct dev *d = vp_container_of(t, struct dev, t);

	/* Which doorbell carries the call is the module's business. */
	return 1 + q < VHP_MAX_SIGNALS ? attach(d, &d->call[1 + q], VHP_IOC_SET_CALL, 1 + q) : -1;
}

static void dev_close(struct vhp_transport *t)
{
	struct dev *d = vp_container_of(t, struct dev, t);
	unsigned i;

	for (i = 0; i < VHP_MAX_SIGNALS; i++) {
		vp_close(&d->kick[i]);
		vp_close(&d->call[i]);
	}
	if (t->ctrl)
		munmap((void *)t->ctrl, VHP_CTRL_SIZE);
	vp_close(&t->fd);
	free(d);
}

static const struct vhp_transport_ops dev_ops = {
	.pump = dev_pump, .command = dev_command, .map = dev_map,
	.kick_fd = dev_kick_fd, .call_fd = dev_call_fd, .close = dev_close,
};

int vhp_transport_dev(struct vhp_transport **out, const char *path, bool kicks, int pkey, struct vp_err *e)
{
	struct vhp_ioc_info info;
	struct dev *d = calloc(1, sizeof(*d));
	unsigned i;
	void *ctrl;
	int ret;

	if (!d)
		return vp_err_set(e, -ENOMEM, "out of memory");
	d->t.ops = &dev_ops;
	d->kicks = kicks;
	d->pkey = pkey;
	for (i = 0; i < VHP_MAX_SIGNALS; i++)
		d->kick[i] = d->call[i] = -1;
	d->t.fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (d->t.fd < 0) {
		ret = vp_err_set(e, -errno, "%s: %m%s", path,
				 errno == ENOENT ? " (is the vhost_pci module loaded and a port plugged?)" :
				 errno == EBUSY ? " (another program owns this port)" : "");
		goto fail;
	}
	if (ioctl(d->t.fd, VHP_IOC_INFO, &info) < 0) {
		ret = vp_err_set(e, -errno, "%s is not a vhost-pci port: %m", path);
		goto fail;
	}
	if (info.version != VHP_IOC_VERSION) {
		ret = vp_err_set(e, -EPROTO, "%s: the module's interface has version %u, this program speaks %u", path,
				 info.version, VHP_IOC_VERSION);
		goto fail;
	}
	d->nsignals = info.nsignals;
	ctrl = mmap(NULL, VHP_CTRL_SIZE, PROT_READ, MAP_SHARED, d->t.fd, 0);
	if (ctrl == MAP_FAILED) {
		ret = vp_err_set(e, -errno, "%s: cannot map the control block: %m", path);
		goto fail;
	}
	d->t.ctrl = ctrl;
	*out = &d->t;
	return 0;
fail:
	dev_close(&d->t);
	return ret;
}
