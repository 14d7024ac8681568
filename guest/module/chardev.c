// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/vhost-pciN. What user space is promised stands in include/vhost-pci/uapi.h.
 *
 * Every operation runs with port->life held for reading and after a look at port->gone, so the
 * device is there for as long as it runs.
 */
#include <linux/fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vp.h"

static int vp_enter(struct vp_port *port)
{
	down_read(&port->life);
	if (!READ_ONCE(port->gone))
		return 0;
	up_read(&port->life);
	return -ENODEV;
}

static void vp_leave(struct vp_port *port)
{
	up_read(&port->life);
}

static int vp_own(struct vp_port *port, struct vp_file *vf, bool nonblock)
{
	int ret;

	mutex_lock(&port->lock);
	while (!port->owner && port->detaching) {
		mutex_unlock(&port->lock);
		if (nonblock)
			return -EAGAIN;
		ret = wait_event_interruptible(port->wq, !READ_ONCE(port->detaching) ||
					       READ_ONCE(port->gone));
		if (ret)
			return ret;
		if (READ_ONCE(port->gone))
			return -ENODEV;
		mutex_lock(&port->lock);
	}
	ret = port->owner ? -EBUSY : 0;
	if (!ret) {
		port->owner = vf;
		vf->owner = true;
	}
	mutex_unlock(&port->lock);
	return ret;
}

static int vp_open(struct inode *inode, struct file *file)
{
	struct vp_port *port = container_of(inode->i_cdev, struct vp_port, cdev);
	struct vp_file *vf;
	int ret;

	vf = kzalloc(sizeof(*vf), GFP_KERNEL);
	if (!vf)
		return -ENOMEM;
	ret = vp_enter(port);
	if (ret)
		goto out_free;
	vf->port = port;
	mutex_init(&vf->lock);
	if (file->f_mode & FMODE_WRITE)
		ret = vp_own(port, vf, file->f_flags & O_NONBLOCK);
	vp_leave(port);
	if (ret)
		goto out_free;
	file->private_data = vf;
	file->f_mapping = port->ctrl_map->inode->i_mapping;
	return 0;
out_free:
	kfree(vf);
	return ret;
}

static int vp_release(struct inode *inode, struct file *file)
{
	struct vp_file *vf = file->private_data;
	struct vp_port *port = vf->port;

	if (vf->owner) {
		down_read(&port->life);
		if (READ_ONCE(port->gone)) {
			mutex_lock(&port->lock);
			port->owner = NULL;
			mutex_unlock(&port->lock);
		} else {
			vp_port_owner_left(port);
		}
		up_read(&port->life);
	}
	kfree(vf);
	return 0;
}

static bool vp_has_event(struct vp_port *port, struct vp_file *vf)
{
	return !vf->read_once || vf->seen_state != atomic_read(&port->ev_state) ||
	       vf->seen_window != atomic_read(&port->ev_window) ||
	       vf->seen_detached != atomic_read(&port->ev_detached);
}

static void vp_take_event(struct vp_port *port, struct vp_file *vf, struct vhp_event *ev)
{
	int s, w, d;

	mutex_lock(&vf->lock);
	s = atomic_read(&port->ev_state);
	w = atomic_read(&port->ev_window);
	d = atomic_read(&port->ev_detached);
	ev->flags = 0;
	if (!vf->read_once || vf->seen_state != s)
		ev->flags |= VHP_EV_STATE;
	if (!vf->read_once || vf->seen_window != w)
		ev->flags |= VHP_EV_WINDOW;
	if (vf->read_once && vf->seen_detached != d)
		ev->flags |= VHP_EV_DETACHED;
	vf->seen_state = s;
	vf->seen_window = w;
	vf->seen_detached = d;
	vf->read_once = true;
	mutex_unlock(&vf->lock);
	ev->generation = le32_to_cpu(READ_ONCE(port->ctrl->state.generation));
}

static ssize_t vp_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct vp_file *vf = file->private_data;
	struct vp_port *port = vf->port;
	struct vhp_event ev;
	ssize_t ret;

	if (len < sizeof(ev))
		return -EINVAL;
	ret = vp_enter(port);
	if (ret)
		return ret;
	while (!vp_has_event(port, vf)) {
		ret = -EAGAIN;
		if (file->f_flags & O_NONBLOCK)
			goto out;
		ret = wait_event_interruptible(port->wq, vp_has_event(port, vf) ||
					       READ_ONCE(port->gone));
		if (!ret && READ_ONCE(port->gone))
			ret = -ENODEV;
		if (ret)
			goto out;
	}
	vp_take_event(port, vf, &ev);
	ret = copy_to_user(buf, &ev, sizeof(ev)) ? -EFAULT : sizeof(ev);
out:
	vp_leave(port);
	return ret;
}

static __poll_t vp_poll(struct file *file, poll_table *pt)
{
	struct vp_file *vf = file->private_data;
	struct vp_port *port = vf->port;

	poll_wait(file, &port->wq, pt);
	if (READ_ONCE(port->dead))
		return EPOLLHUP | EPOLLERR;
	return vp_has_event(port, vf) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int vp_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct vp_file *vf = file->private_data;

	/* No port->life here: inside mmap_lock, under which others wait. The map checks itself. */
	if (READ_ONCE(vf->port->gone))
		return -ENODEV;
	return vp_map_mmap(vf->port->ctrl_map, vma);
}

static void vp_info(struct vp_port *port, struct vp_file *vf, struct vhp_ioc_info *info)
{
	__le32 flags = 0;

	memset(info, 0, sizeof(*info));
	info->version = VHP_IOC_VERSION;
	info->abi_version = port->abi_version;
	info->attachment = port->ops->attachment;
	info->max_queues = port->max_queues;
	info->nsignals = port->nsignals;
	info->ctrl_size = VHP_CTRL_SIZE;
	if (vf->owner)
		info->flags |= VHP_INFO_OWNER;
	if (!vp_state_read(port, offsetof(struct vhp_abi_state, flags), &flags, sizeof(flags)) &&
	    le32_to_cpu(flags) & VHP_STATE_ATTACHED)
		info->flags |= VHP_INFO_ATTACHED;
	strscpy(info->name, port->name, sizeof(info->name));
	strscpy(info->bus, dev_name(port->dev.parent), sizeof(info->bus));
}

static long vp_ioctl_command(struct vp_port *port, void __user *arg)
{
	struct vhp_ioc_command *c = memdup_user(arg, sizeof(*c));
	long ret;

	if (IS_ERR(c))
		return PTR_ERR(c);
	ret = -EINVAL;
	if (c->reserved || c->timeout_ms > 60000 || c->opcode == VHP_CMD_NONE)
		goto out;
	c->status = 0;
	memset(c->value, 0, sizeof(c->value));
	ret = vp_command(port, c, true);
	if (!ret && copy_to_user(arg, c, sizeof(*c)))
		ret = -EFAULT;
out:
	kfree(c);
	return ret;
}

static long vp_ioctl_owner(struct vp_port *port, unsigned int cmd, void __user *arg)
{
	union {
		struct vhp_ioc_window w;
		struct vhp_ioc_eventfd e;
		struct vhp_ioc_signal s;
	} u;
	long ret;

	switch (cmd) {
	case VHP_IOC_WINDOW:
		if (copy_from_user(&u.w, arg, sizeof(u.w)))
			return -EFAULT;
		ret = vp_window_open(port, &u.w);
		/* The fd is installed: user space that gave a bad pointer has it all the same. */
		if (!ret && copy_to_user(arg, &u.w, sizeof(u.w)))
			ret = -EFAULT;
		return ret;
	case VHP_IOC_SET_KICK:
	case VHP_IOC_SET_CALL:
		if (copy_from_user(&u.e, arg, sizeof(u.e)))
			return -EFAULT;
		if (u.e.reserved[0] || u.e.reserved[1])
			return -EINVAL;
		/* The caller may have read a state page that the worker has not come to yet. */
		vp_port_sync(port);
		return cmd == VHP_IOC_SET_KICK ? vp_kick_set(port, u.e.signal, u.e.fd) :
						 vp_call_set(port, u.e.signal, u.e.fd);
	case VHP_IOC_SIGNAL:
		if (copy_from_user(&u.s, arg, sizeof(u.s)))
			return -EFAULT;
		if (u.s.reserved || u.s.signal >= port->nsignals)
			return -EINVAL;
		vp_raise(port, u.s.signal);
		return 0;
	case VHP_IOC_COMMAND:
		return vp_ioctl_command(port, arg);
	default:
		return -ENOTTY;
	}
}

static long vp_ioctl(struct file *file, unsigned int cmd, unsigned long argp)
{
	void __user *arg = (void __user *)argp;
	struct vp_file *vf = file->private_data;
	struct vp_port *port = vf->port;
	long ret;

	ret = vp_enter(port);
	if (ret)
		return ret;
	if (cmd == VHP_IOC_INFO) {
		struct vhp_ioc_info info;

		vp_info(port, vf, &info);
		ret = copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
	} else {
		ret = vf->owner ? vp_ioctl_owner(port, cmd, arg) : -EPERM;
	}
	vp_leave(port);
	return ret;
}

const struct file_operations vp_port_fops = {
	.owner = THIS_MODULE,
	.open = vp_open,
	.release = vp_release,
	.read = vp_read,
	.poll = vp_poll,
	.mmap = vp_mmap,
	.unlocked_ioctl = vp_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};
