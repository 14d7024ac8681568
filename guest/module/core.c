// SPDX-License-Identifier: GPL-2.0-only
/*
 * A port's life, from a binding that found one to the last file that is closed.
 */
#include <linux/idr.h>
#include <linux/kobject.h>
#include <linux/slab.h>

#include "vp.h"

/* Parts of the state page before queues[], as far as the module looks at them. */
#define VP_SNAP_HEAD (offsetof(struct vhp_abi_state, answer) + sizeof(struct vhp_abi_answer))

LIST_HEAD(vp_ports);
DEFINE_MUTEX(vp_ports_lock);
static DEFINE_IDA(vp_ida);

int vp_header_check(struct device *dev, const struct vhp_abi_header *h, u32 attachment)
{
	u32 version = le32_to_cpu(READ_ONCE(h->abi_version));
	u32 nq = le32_to_cpu(READ_ONCE(h->max_queues));
	u32 ns = le32_to_cpu(READ_ONCE(h->nsignals));

	if (memcmp(h->magic, VHP_MAGIC, sizeof(h->magic)))
		return -ENODEV;
	if (VHP_ABI_VER_MAJOR(version) != VHP_ABI_MAJOR ||
	    (!VHP_ABI_MAJOR && VHP_ABI_VER_MINOR(version) != VHP_ABI_MINOR)) {
		dev_err(dev, "port speaks ABI %u.%u, this driver %u.%u: install the matching one\n",
			VHP_ABI_VER_MAJOR(version), VHP_ABI_VER_MINOR(version), VHP_ABI_MAJOR,
			VHP_ABI_MINOR);
		return -EPROTO;
	}
	/* Constants in major version 0. */
	if (le32_to_cpu(h->header_size) != sizeof(*h) ||
	    le32_to_cpu(h->state_offset) != VHP_CTRL_STATE_OFF ||
	    le32_to_cpu(h->state_size) != VHP_CTRL_STATE_SIZE ||
	    le32_to_cpu(h->command_offset) != VHP_CTRL_COMMAND_OFF ||
	    le32_to_cpu(h->command_size) != VHP_CTRL_COMMAND_SIZE ||
	    (h->pool_size && le64_to_cpu(h->pool_offset) != VHP_CTRL_POOL_OFF) ||
	    le32_to_cpu(h->attachment) != attachment) {
		dev_err(dev, "port's header is not that of ABI %u.%u\n", VHP_ABI_MAJOR,
			VHP_ABI_MINOR);
		return -EPROTO;
	}
	if (!nq || nq > VHP_MAX_QUEUES || ns < 1 + nq || ns > 0xffff) {
		dev_err(dev, "port's header claims %u queues and %u signals\n", nq, ns);
		return -EPROTO;
	}
	return 0;
}

/* ---- state ----------------------------------------------------------------------------------- */

/* Any context. */
void vp_port_signalled(struct vp_port *port, u32 nr)
{
	unsigned long q;

	if (nr >= port->nnumbers)
		return;
	if (nr < port->nsignals)
		vp_kick_deliver(&port->kick[nr]);
	for_each_set_bit(q, port->number[nr].kicks, port->max_queues)
		vp_kick_deliver(&port->kick[1 + q]);
	if (!nr) {
		wake_up_all(&port->wq);		/* somebody may wait for an answer */
		if (!READ_ONCE(port->gone))
			queue_work(vp_wq, &port->state_work);
	}
}

/* A consistent copy of head, queues[] and windows[]. Under snap_lock. */
static int vp_snap(struct vp_port *port, u32 *nq, u32 *nw)
{
	struct vhp_abi_state *st = &port->ctrl->state, *s = port->snap;
	int tries, ret;

	for (tries = 0; tries < 100; tries++) {
		ret = vp_state_read(port, 0, s, VP_SNAP_HEAD);
		if (ret)
			return ret;
		*nq = min_t(u32, le32_to_cpu(s->nqueues), port->max_queues);
		*nw = min_t(u32, le32_to_cpu(s->nwindows), VHP_MAX_WINDOWS);
		memcpy(s->queues, st->queues, *nq * sizeof(s->queues[0]));
		memcpy(s->windows, st->windows, *nw * sizeof(s->windows[0]));
		virt_rmb();				/* pairs with the daemon's store fence */
		if (READ_ONCE(st->generation) == s->generation)
			return 0;
	}
	return -EIO;
}

/*
 * Number nr carries the kicks of queue q. It may be any number, that of another queue too; number
 * 1 + q carries them in any case. Under snap_lock.
 */
static void vp_wire_kick(struct vp_port *port, u32 q, u32 nr)
{
	u32 old = port->kick_number[q];

	if (nr == old)
		return;
	port->kick_number[q] = nr;
	if (nr != 1 + q && nr < port->nnumbers)
		set_bit(q, port->number[nr].kicks);
	if (nr != 1 + q && (nr >= port->nnumbers || port->ops->listen(port, nr)))
		dev_warn_ratelimited(&port->dev, "signal %u cannot be received\n", nr);
	if (old != 1 + q && old < port->nnumbers)
		clear_bit(q, port->number[old].kicks);
	/* For one that came on the new number before it was known; too many harm nobody. */
	vp_kick_deliver(&port->kick[1 + q]);
}

/* Which doorbell calls a queue, which number carries its kicks. Under snap_lock. */
static void vp_wiring(struct vp_port *port, u32 nq)
{
	const struct vhp_abi_queue *e = port->snap->queues;
	u32 q;

	for (q = 0; q < nq; q++)
		WRITE_ONCE(port->doorbell[1 + q], le32_to_cpu(e[q].doorbell));
	for (q = 0; q < port->max_queues; q++)
		vp_wire_kick(port, q, q < nq && le32_to_cpu(e[q].flags) & VHP_QUEUE_STARTED ?
				      le32_to_cpu(e[q].kick_signal) : 1 + q);
}

static void vp_uevent(struct vp_port *port, bool up, u32 reason)
{
	char link[16], why[24];
	char *env[] = { link, why, NULL };

	snprintf(link, sizeof(link), "LINK=%s", up ? "up" : "down");
	snprintf(why, sizeof(why), "REASON=%u", reason);
	kobject_uevent_env(&port->dev.kobj, KOBJ_CHANGE, env);
	sysfs_notify(&port->dev.kobj, NULL, "link");
}

/* Process context. Idempotent: whatever it missed, it ends in what the page says now. */
void vp_port_sync(struct vp_port *port)
{
	bool link_changed, win_changed;
	u32 nq, nw, link, att, reason;

	mutex_lock(&port->snap_lock);
	if (READ_ONCE(port->gone) || vp_snap(port, &nq, &nw)) {
		mutex_unlock(&port->snap_lock);
		return;
	}
	vp_wiring(port, nq);
	vp_windows_check(port, port->snap->windows, nw);

	att = le32_to_cpu(port->snap->flags) & VHP_STATE_ATTACHED;
	link = le32_to_cpu(port->snap->link_status) == VHP_LINK_UP;
	reason = le32_to_cpu(port->snap->link_reason);
	link_changed = !port->have_last || link != port->last_link || att != port->last_attached ||
		       le64_to_cpu(port->snap->link_epoch) != port->last_epoch;
	win_changed = !port->have_last ||
		      le32_to_cpu(port->snap->regions_generation) != port->last_regions_gen;
	port->last_link = link;
	port->last_attached = att;
	port->last_epoch = le64_to_cpu(port->snap->link_epoch);
	port->last_regions_gen = le32_to_cpu(port->snap->regions_generation);
	port->have_last = true;
	mutex_unlock(&port->snap_lock);

	if (win_changed && port->ops->windows_changed)
		port->ops->windows_changed(port);
	if (link_changed)
		vp_uevent(port, link, reason);
	if (win_changed)
		atomic_inc(&port->ev_window);
	atomic_inc(&port->ev_state);
	wake_up_all(&port->wq);
}

static void vp_state_work(struct work_struct *work)
{
	vp_port_sync(container_of(work, struct vp_port, state_work));
}

void vp_port_window_event(struct vp_port *port)
{
	atomic_inc(&port->ev_window);
	wake_up_all(&port->wq);
}

bool vp_ports_name_window(u32 kind, u64 locator, u64 size)
{
	struct vp_port *port;
	struct vhp_abi_window e;
	bool found = false;
	__le32 nw;
	u32 i, n;

	mutex_lock(&vp_ports_lock);
	list_for_each_entry(port, &vp_ports, node) {
		if (vp_state_read(port, offsetof(struct vhp_abi_state, nwindows), &nw, sizeof(nw)))
			continue;
		n = min_t(u32, le32_to_cpu(nw), VHP_MAX_WINDOWS);
		for (i = 0; i < n && !found; i++)
			found = !vp_state_read(port, offsetof(struct vhp_abi_state, windows[i]), &e,
					       sizeof(e)) &&
				le32_to_cpu(e.kind) == kind && le64_to_cpu(e.locator) == locator &&
				le64_to_cpu(e.size) == size;
	}
	mutex_unlock(&vp_ports_lock);
	return found;
}

void vp_ports_device_gone(const void *dev)
{
	struct vp_port *port;

	mutex_lock(&vp_ports_lock);
	list_for_each_entry(port, &vp_ports, node) {
		vp_windows_revoke(port, dev);
		vp_port_window_event(port);
	}
	mutex_unlock(&vp_ports_lock);
}

/* For callers that wait for the host: vp_ports_lock may not be held meanwhile. */
struct vp_port *vp_port_get(int id)
{
	struct vp_port *port, *found = NULL;

	mutex_lock(&vp_ports_lock);
	list_for_each_entry(port, &vp_ports, node)
		if (port->id == id) {
			found = port;
			get_device(&found->dev);
		}
	mutex_unlock(&vp_ports_lock);
	if (!found)
		return NULL;
	down_read(&found->life);
	if (!READ_ONCE(found->gone))
		return found;
	vp_port_put(found);
	return NULL;
}

void vp_port_put(struct vp_port *port)
{
	up_read(&port->life);
	put_device(&port->dev);
}

/* ---- detach ---------------------------------------------------------------------------------- */

static bool vp_is_attached(struct vp_port *port)
{
	__le32 flags;

	if (READ_ONCE(port->maybe_attached))
		return true;
	return !vp_state_read(port, offsetof(struct vhp_abi_state, flags), &flags, sizeof(flags)) &&
	       le32_to_cpu(flags) & VHP_STATE_ATTACHED;
}

static void vp_detach(struct vp_port *port, unsigned int timeout_ms)
{
	struct vhp_ioc_command *c;
	int ret = -ENOMEM;

	vp_windows_revoke(port, NULL);
	if (!vp_is_attached(port))
		return;
	c = kzalloc(sizeof(*c), GFP_KERNEL);
	if (c) {
		c->opcode = VHP_CMD_DETACH;
		c->timeout_ms = timeout_ms;
		ret = vp_command(port, c, false);
	}
	if (ret)
		dev_warn(&port->dev, "no answer to DETACH (%d)\n", ret);
	kfree(c);
}

static void vp_detach_work(struct work_struct *work)
{
	struct vp_port *port = container_of(to_delayed_work(work), struct vp_port, detach_work);

	if (READ_ONCE(port->gone))
		return;
	if (time_before(jiffies, port->detach_deadline) && vp_windows_in_use(port)) {
		queue_delayed_work(vp_wq, &port->detach_work, msecs_to_jiffies(20) + 1);
		return;
	}
	vp_detach(port, VP_COMMAND_MS);
	mutex_lock(&port->lock);
	vp_window_forget_key(port);
	port->detaching = false;
	mutex_unlock(&port->lock);
	wake_up_all(&port->wq);
}

/* With port->lock held, port->detaching set. */
static void vp_detach_start(struct vp_port *port)
{
	port->detach_deadline = jiffies + msecs_to_jiffies(VP_GRACE_MS);
	queue_delayed_work(vp_wq, &port->detach_work, 0);
}

void vp_port_owner_left(struct vp_port *port)
{
	mutex_lock(&port->lock);
	port->detaching = true;
	port->owner = NULL;
	mutex_unlock(&port->lock);
	vp_signals_drop(port);
	mutex_lock(&port->lock);
	vp_detach_start(port);
	mutex_unlock(&port->lock);
}

void vp_port_quiesce(struct vp_port *port, unsigned int timeout_ms)
{
	vp_detach(port, timeout_ms);
	atomic_inc(&port->ev_detached);
	wake_up_all(&port->wq);
}

void vp_port_resume(struct vp_port *port)
{
	queue_work(vp_wq, &port->state_work);
}

/* ---- register, unregister -------------------------------------------------------------------- */

static void vp_port_release(struct device *dev)
{
	struct vp_port *port = container_of(dev, struct vp_port, dev);

	if (!IS_ERR_OR_NULL(port->ctrl_map))
		vp_map_put(port->ctrl_map);
	if (port->id >= 0)
		ida_free(&vp_ida, port->id);
	kvfree(port->snap);
	kfree(port->kick);
	kfree(port->call);
	kfree(port->doorbell);
	kfree(port->number);
	kfree(port->kick_number);
	vp_window_forget_key(port);
	kfree(port);
}

struct vp_port *vp_port_register(const struct vp_port_setup *s)
{
	struct vhp_abi_control *ctrl = s->ctrl;
	struct vp_backing back = { .phys = s->ctrl_phys, .size = VHP_CTRL_SIZE };
	struct vp_port *port;
	u32 i, nq, ns;
	int ret;

	port = kzalloc(sizeof(*port), GFP_KERNEL);
	if (!port)
		return ERR_PTR(-ENOMEM);
	device_initialize(&port->dev);
	port->dev.parent = s->parent;
	port->dev.class = &vp_class;
	port->dev.groups = vp_port_groups;
	port->dev.release = vp_port_release;
	INIT_LIST_HEAD(&port->node);
	INIT_LIST_HEAD(&port->windows);
	init_rwsem(&port->life);
	mutex_init(&port->lock);
	mutex_init(&port->cmd_lock);
	mutex_init(&port->snap_lock);
	init_waitqueue_head(&port->wq);
	INIT_WORK(&port->state_work, vp_state_work);
	INIT_DELAYED_WORK(&port->detach_work, vp_detach_work);
	port->ops = s->ops;
	port->priv = s->priv;
	port->ctrl = ctrl;
	port->abi_version = le32_to_cpu(ctrl->header.abi_version);
	port->doorbell0 = le32_to_cpu(ctrl->header.doorbell);
	memcpy(port->name, ctrl->header.name, sizeof(ctrl->header.name));

	port->id = ida_alloc_max(&vp_ida, VP_MAX_PORTS - 1, GFP_KERNEL);
	if (port->id < 0) {
		ret = port->id;
		goto err;
	}

	ret = -EPROTO;
	nq = le32_to_cpu(READ_ONCE(ctrl->header.max_queues));
	ns = le32_to_cpu(READ_ONCE(ctrl->header.nsignals));
	port->nnumbers = min3(ns, s->nnumbers, 0xffffu);
	if (port->nnumbers < 2 || nq > VHP_MAX_QUEUES) {
		dev_err(s->parent, "device has %u signals, a port needs 2 at least\n", s->nnumbers);
		goto err;
	}
	if (port->nnumbers < 1 + nq) {
		dev_warn(s->parent, "%u queues but only %u signals: the first %u queues work\n", nq,
			 port->nnumbers, port->nnumbers - 1);
		nq = port->nnumbers - 1;
	}
	port->max_queues = nq;
	port->nsignals = 1 + nq;

	ret = -ENOMEM;
	port->snap = kvzalloc(sizeof(*port->snap), GFP_KERNEL);
	port->kick = kcalloc(port->nsignals, sizeof(*port->kick), GFP_KERNEL);
	port->call = kcalloc(port->nsignals, sizeof(*port->call), GFP_KERNEL);
	port->doorbell = kcalloc(port->nsignals, sizeof(*port->doorbell), GFP_KERNEL);
	port->number = kcalloc(port->nnumbers, sizeof(*port->number), GFP_KERNEL);
	port->kick_number = kcalloc(port->max_queues, sizeof(*port->kick_number), GFP_KERNEL);
	if (!port->snap || !port->kick || !port->call || !port->doorbell || !port->number ||
	    !port->kick_number)
		goto err;
	for (i = 0; i < port->nsignals; i++)
		spin_lock_init(&port->kick[i].lock);
	port->doorbell[0] = port->doorbell0;
	for (i = 0; i < port->max_queues; i++)
		port->kick_number[i] = 1 + i;
	port->ctrl_map = vp_map_new(&back, true);
	if (IS_ERR(port->ctrl_map)) {
		ret = PTR_ERR(port->ctrl_map);
		goto err;
	}

	/* A former life of this guest may have left the port attached. */
	port->detaching = vp_is_attached(port);

	ret = dev_set_name(&port->dev, VP_NAME "%d", port->id);
	if (ret)
		goto err;
	port->dev.devt = MKDEV(MAJOR(vp_devt), port->id);
	cdev_init(&port->cdev, &vp_port_fops);
	port->cdev.owner = THIS_MODULE;
	ret = cdev_device_add(&port->cdev, &port->dev);
	if (ret)
		goto err;
	mutex_lock(&vp_ports_lock);
	list_add_tail(&port->node, &vp_ports);
	mutex_unlock(&vp_ports_lock);
	dev_info(&port->dev, "port \"%s\" on %s (%s), %u queues\n", port->name,
		 dev_name(s->parent), s->ops->name, port->max_queues);
	return port;
err:
	put_device(&port->dev);
	return ERR_PTR(ret);
}

/* The binding is ready to carry signals. */
void vp_port_start(struct vp_port *port)
{
	mutex_lock(&port->lock);
	if (port->detaching)
		vp_detach_start(port);
	mutex_unlock(&port->lock);
	queue_work(vp_wq, &port->state_work);
}

void vp_port_unregister(struct vp_port *port)
{
	mutex_lock(&vp_ports_lock);
	list_del_init(&port->node);
	mutex_unlock(&vp_ports_lock);

	WRITE_ONCE(port->gone, true);
	wake_up_all(&port->wq);
	down_write(&port->life);	/* file operations in progress saw gone and left */
	up_write(&port->life);
	cancel_delayed_work_sync(&port->detach_work);
	cancel_work_sync(&port->state_work);

	vp_signals_drop(port);
	vp_map_revoke(port->ctrl_map);
	vp_windows_revoke(port, NULL);
	WRITE_ONCE(port->dead, true);	/* only now, so that POLLHUP means that nothing is left */
	wake_up_all(&port->wq);
	vp_detach(port, 4000);
	cdev_device_del(&port->cdev, &port->dev);
}

void vp_port_free(struct vp_port *port)
{
	/* A last interrupt may have queued it before it saw gone. It does nothing then. */
	cancel_work_sync(&port->state_work);
	put_device(&port->dev);
}
