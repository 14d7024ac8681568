// SPDX-License-Identifier: GPL-2.0-only
/*
 * Eventfds on signals, in both directions, without a hop through user space.
 *
 * To the guest: the interrupt handler signals the eventfd. From the guest: a wait queue entry on
 * the eventfd, whose wake function runs inside the write to it, rings the doorbell at once and
 * takes the count, as KVM does for irqfds. Both are called with interrupts off.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/slab.h>

#include "vp.h"

void vp_kick_deliver(struct vp_kick *k)
{
	unsigned long flags;

	spin_lock_irqsave(&k->lock, flags);
	k->count++;
	if (k->ctx)
		vp_eventfd_signal(k->ctx);
	else
		k->pending = true;
	spin_unlock_irqrestore(&k->lock, flags);
}

static void vp_kick_replace(struct vp_kick *k, struct eventfd_ctx *ctx)
{
	struct eventfd_ctx *old;

	spin_lock_irq(&k->lock);
	old = k->ctx;
	k->ctx = ctx;
	if (ctx && k->pending)
		vp_eventfd_signal(ctx);
	k->pending = false;
	spin_unlock_irq(&k->lock);
	if (old)
		eventfd_ctx_put(old);
}

/* VHP_IOC_SET_KICK, with port->life held for reading. */
int vp_kick_set(struct vp_port *port, u32 signal, int fd)
{
	struct eventfd_ctx *ctx = NULL;
	int ret;

	if (signal >= port->nsignals)
		return -EINVAL;
	if (fd >= 0) {
		ctx = eventfd_ctx_fdget(fd);
		if (IS_ERR(ctx))
			return PTR_ERR(ctx);
		ret = port->ops->listen(port, signal);
		if (ret) {
			eventfd_ctx_put(ctx);
			return ret;
		}
	}
	vp_kick_replace(&port->kick[signal], ctx);
	return 0;
}

/* Any context. */
void vp_raise(struct vp_port *port, u32 signal)
{
	atomic64_inc(&port->calls);
	port->ops->raise(port, signal, READ_ONCE(port->doorbell[signal]));
}

static int vp_call_wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct vp_call *c = container_of(wait, struct vp_call, wait);
	u64 count;

	/* POLLHUP (last fd closed) needs nothing: the hook holds the context until it is unset. */
	if (key_to_poll(key) & EPOLLIN) {
		eventfd_ctx_do_read(c->ctx, &count);
		vp_raise(c->port, c->signal);
	}
	return 0;
}

static void vp_call_queue(struct file *file, wait_queue_head_t *wqh, poll_table *pt)
{
	struct vp_call *c = container_of(pt, struct vp_call, pt);

	add_wait_queue(wqh, &c->wait);
}

/* After this returns the wake function neither runs nor will. */
static void vp_call_free(struct vp_call *c)
{
	u64 count;

	if (!c)
		return;
	eventfd_ctx_remove_wait_queue(c->ctx, &c->wait, &count);
	eventfd_ctx_put(c->ctx);
	kfree(c);
}

/* VHP_IOC_SET_CALL, with port->life held for reading. */
int vp_call_set(struct vp_port *port, u32 signal, int fd)
{
	struct vp_call *c = NULL;
	struct file *file = NULL;
	int ret;
	u32 i;

	if (signal >= port->nsignals)
		return -EINVAL;
	mutex_lock(&port->lock);
	if (fd >= 0) {
		ret = -EBADF;
		file = fget(fd);
		if (!file)
			goto out;
		ret = -ENOMEM;
		c = kzalloc(sizeof(*c), GFP_KERNEL);
		if (!c)
			goto out;
		c->ctx = eventfd_ctx_fileget(file);
		if (IS_ERR(c->ctx)) {
			ret = PTR_ERR(c->ctx);
			goto out_free;
		}
		ret = -EBUSY;
		for (i = 0; i < port->nsignals; i++)
			if (i != signal && port->call[i] && port->call[i]->ctx == c->ctx)
				goto out_put;
		c->port = port;
		c->signal = signal;
		init_waitqueue_func_entry(&c->wait, vp_call_wakeup);
		init_poll_funcptr(&c->pt, vp_call_queue);
	}
	vp_call_free(port->call[signal]);
	port->call[signal] = c;
	/*
	 * What was written before the hook was there is one signal, too. Its count stays and is
	 * taken with the next write.
	 */
	if (c && vfs_poll(file, &c->pt) & EPOLLIN)
		vp_raise(port, signal);
	ret = 0;
	goto out;
out_put:
	eventfd_ctx_put(c->ctx);
out_free:
	kfree(c);
out:
	if (file)
		fput(file);
	mutex_unlock(&port->lock);
	return ret;
}

/* The owner left, or the device did. */
void vp_signals_drop(struct vp_port *port)
{
	u32 i;

	mutex_lock(&port->lock);
	for (i = 0; i < port->nsignals; i++) {
		vp_call_free(port->call[i]);
		port->call[i] = NULL;
		vp_kick_replace(&port->kick[i], NULL);
	}
	mutex_unlock(&port->lock);
}
