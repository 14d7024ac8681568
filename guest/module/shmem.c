// SPDX-License-Identifier: GPL-2.0-only
/*
 * The shmem binding (docs/spec.md, section 8): a generic virtio device with two shared memory
 * regions, and one virtqueue for each signal.
 *
 * The host may map and unmap memory only while the device runs, so DRIVER_OK is set before there
 * is a control block to look at; the port appears when the magic does. At the end DETACH comes first
 * and the reset last.
 */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "vp.h"

#define VP_SM_BUFFERS	4	/* on each queue */
#define VP_SM_BUF_SIZE	8

struct vp_sm_queue {
	spinlock_t lock;	/* taken in hard interrupts */
	struct virtqueue *vq;	/* NULL while the device does not run */
	u8 *buf;		/* shared by all: nothing is written there */
};

struct vp_sm {
	struct virtio_device *vdev;
	struct vp_port *port;
	u32 nq;
	struct vp_sm_queue *q;
	u8 *buf;
	void *ctrl;
	phys_addr_t ctrl_phys;
	void *aperture_head;	/* up to the first 2 MiB boundary, */
	void *aperture;		/* and the rest */
	phys_addr_t aperture_phys;
	u64 aperture_size;
	struct delayed_work wait_work;
	unsigned int waits;
};

/* Signal i from the guest is a bare notification of queue i. */
static void vp_sm_raise(struct vp_port *port, u32 signal, u32 doorbell)
{
	struct vp_sm *sm = port->priv;
	struct vp_sm_queue *q;
	unsigned long flags;

	if (doorbell && doorbell < sm->nq)
		signal = doorbell;
	q = &sm->q[signal];
	spin_lock_irqsave(&q->lock, flags);
	if (q->vq)
		virtqueue_notify(q->vq);
	spin_unlock_irqrestore(&q->lock, flags);
}

static int vp_sm_listen(struct vp_port *port, u32 nr)
{
	return 0;
}

static int vp_sm_find(struct vp_port *port, u32 kind, u64 locator, u64 size, struct vp_backing *b)
{
	struct vp_sm *sm = port->priv;

	if (kind != VHP_WINDOW_SHMEM || !PAGE_ALIGNED(locator) || !size || !PAGE_ALIGNED(size) ||
	    locator > sm->aperture_size || size > sm->aperture_size - locator)
		return -ENODEV;
	b->phys = sm->aperture_phys + locator;
	b->size = size;
	b->dev = sm;
	return 0;
}

static const struct vp_port_ops vp_sm_ops = {
	.name = "shmem",
	.attachment = VHP_ATTACHMENT_SHMEM,
	.raise = vp_sm_raise,
	.listen = vp_sm_listen,
	.find = vp_sm_find,
};

static int vp_sm_post(struct vp_sm_queue *q)
{
	struct scatterlist sg;

	sg_init_one(&sg, q->buf, VP_SM_BUF_SIZE);
	return virtqueue_add_inbuf(q->vq, &sg, 1, q, GFP_ATOMIC);
}

/* Buffers came back: make them available again first, act on the signal afterwards. */
static void vp_sm_irq(struct virtqueue *vq)
{
	struct vp_sm *sm = vq->vdev->priv;
	struct vp_sm_queue *q = &sm->q[vq->index];
	struct vp_port *port;
	unsigned long flags;
	unsigned int len, n = 0;

	spin_lock_irqsave(&q->lock, flags);
	if (q->vq) {
		do {
			virtqueue_disable_cb(vq);
			while (virtqueue_get_buf(vq, &len)) {
				n++;
				if (vp_sm_post(q))
					break;
			}
			/* For the ring's bookkeeping only: the device is not to be notified. */
			virtqueue_kick_prepare(vq);
		} while (!virtqueue_enable_cb(vq));
	}
	spin_unlock_irqrestore(&q->lock, flags);
	if (!n)
		return;
	virt_mb();	/* pairs with the daemon's fence before it looks for an available buffer */

	port = smp_load_acquire(&sm->port);	/* pairs with the release in vp_sm_wait() */
	if (port)
		vp_port_signalled(port, vq->index);
	else if (!vq->index)
		mod_delayed_work(vp_wq, &sm->wait_work, 0);
}

static void vp_sm_stop(struct vp_sm *sm)
{
	u32 i;

	for (i = 0; i < sm->nq; i++) {
		spin_lock_irq(&sm->q[i].lock);
		sm->q[i].vq = NULL;
		spin_unlock_irq(&sm->q[i].lock);
	}
	virtio_reset_device(sm->vdev);
	sm->vdev->config->del_vqs(sm->vdev);
}

static int vp_sm_start(struct vp_sm *sm)
{
	struct virtqueue **vqs;
	u32 i, k;
	int ret;

	vqs = kcalloc(sm->nq, sizeof(*vqs), GFP_KERNEL);
	if (!vqs)
		return -ENOMEM;
	ret = vp_find_vqs(sm->vdev, sm->nq, vqs, vp_sm_irq, "signal");
	if (ret)
		goto out;
	for (i = 0; i < sm->nq; i++) {
		spin_lock_irq(&sm->q[i].lock);
		sm->q[i].vq = vqs[i];
		for (k = 0; k < VP_SM_BUFFERS && !ret; k++)
			ret = vp_sm_post(&sm->q[i]);
		virtqueue_kick_prepare(vqs[i]);
		spin_unlock_irq(&sm->q[i].lock);
		if (ret == -ENOSPC && k > 1)
			ret = 0;	/* a small ring; one buffer is enough */
		if (ret)
			goto out;
	}
	virtio_device_ready(sm->vdev);
out:
	kfree(vqs);
	return ret;
}

static void vp_sm_wait(struct work_struct *work)
{
	struct vp_sm *sm = container_of(to_delayed_work(work), struct vp_sm, wait_work);
	const struct vhp_abi_control *ctrl = sm->ctrl;
	struct vp_port_setup setup = {
		.parent = &sm->vdev->dev,
		.ops = &vp_sm_ops,
		.priv = sm,
		.ctrl = sm->ctrl,
		.ctrl_phys = sm->ctrl_phys,
		.nnumbers = sm->nq,
	};
	struct vp_port *port;
	int ret;

	if (sm->port)
		return;
	ret = vp_header_check(&sm->vdev->dev, &ctrl->header, VHP_ATTACHMENT_SHMEM);
	if (ret == -ENODEV) {
		/* Signal 0 ends the wait at once; this is for one that got lost. */
		if (sm->waits++ == 250)
			dev_warn(&sm->vdev->dev, "the host has not mapped the control block yet\n");
		queue_delayed_work(vp_wq, &sm->wait_work,
				   sm->waits < 250 ? msecs_to_jiffies(20) + 1 : HZ);
		return;
	}
	if (ret)
		return;
	port = vp_port_register(&setup);
	if (IS_ERR(port)) {
		dev_err(&sm->vdev->dev, "port cannot be set up (%ld)\n", PTR_ERR(port));
		return;
	}
	smp_store_release(&sm->port, port);	/* pairs with the acquire in vp_sm_irq() */
	vp_port_start(port);
}

static void vp_sm_free(struct vp_sm *sm)
{
	if (sm->ctrl)
		memunmap(sm->ctrl);
	if (sm->aperture_head)
		memunmap(sm->aperture_head);
	if (sm->aperture)
		memunmap(sm->aperture);
	kfree(sm->buf);
	kfree(sm->q);
	kfree(sm);
}

static int vp_sm_probe(struct virtio_device *vdev)
{
	struct vhp_abi_shmem_config cfg;
	struct virtio_shm_region ctrl, aperture;
	struct vp_sm *sm;
	int ret;
	u32 i;

	virtio_cread_bytes(vdev, 0, &cfg, sizeof(cfg));
	if (memcmp(cfg.magic, VHP_MAGIC, sizeof(cfg.magic)))
		return -ENODEV;
	if (le32_to_cpu(cfg.nsignals) < 2) {
		dev_err(&vdev->dev, "device offers %u signals, a port needs 2 at least\n",
			le32_to_cpu(cfg.nsignals));
		return -EPROTO;
	}
	if (!virtio_get_shm_region(vdev, &ctrl, VHP_SHMEM_REGION_CTRL) ||
	    ctrl.len < VHP_CTRL_SIZE) {
		dev_err(&vdev->dev, "no control block (shared memory region 0)\n");
		return -EPROTO;
	}

	sm = kzalloc(sizeof(*sm), GFP_KERNEL);
	if (!sm)
		return -ENOMEM;
	sm->vdev = vdev;
	vdev->priv = sm;
	INIT_DELAYED_WORK(&sm->wait_work, vp_sm_wait);
	sm->nq = min_t(u32, le32_to_cpu(cfg.nsignals), VHP_MAX_SIGNALS);

	ret = -ENOMEM;
	sm->q = kcalloc(sm->nq, sizeof(*sm->q), GFP_KERNEL);
	sm->buf = kzalloc(VP_SM_BUF_SIZE, GFP_KERNEL);
	sm->ctrl_phys = ctrl.addr;
	sm->ctrl = memremap(ctrl.addr, VHP_CTRL_SIZE, MEMREMAP_WB);
	if (!sm->q || !sm->buf || !sm->ctrl)
		goto err;
	for (i = 0; i < sm->nq; i++) {
		spin_lock_init(&sm->q[i].lock);
		sm->q[i].buf = sm->buf;
	}
	if (virtio_get_shm_region(vdev, &aperture, VHP_SHMEM_REGION_APERTURE)) {
		u64 head = min_t(u64, ALIGN(aperture.addr, SZ_2M) - aperture.addr, aperture.len);

		/*
		 * Kept mapped to reserve the memory type; user space gets page tables of its own.
		 * In two parts: in one piece from an address that is not a multiple of 2 MiB,
		 * 64 GiB would take 128 MiB of page tables.
		 */
		if (head)
			sm->aperture_head = memremap(aperture.addr, head, MEMREMAP_WB);
		if (head < aperture.len)
			sm->aperture = memremap(aperture.addr + head, aperture.len - head,
						MEMREMAP_WB);
		if ((head && !sm->aperture_head) || (head < aperture.len && !sm->aperture))
			goto err;
		sm->aperture_phys = aperture.addr;
		sm->aperture_size = aperture.len;
	}
	ret = vp_sm_start(sm);
	if (ret) {
		dev_err(&vdev->dev, "cannot set up %u queues (%d)\n", sm->nq, ret);
		vp_sm_stop(sm);
		goto err;
	}
	queue_delayed_work(vp_wq, &sm->wait_work, 0);
	return 0;
err:
	vp_sm_free(sm);
	return ret;
}

static void vp_sm_remove(struct virtio_device *vdev)
{
	struct vp_sm *sm = vdev->priv;

	cancel_delayed_work_sync(&sm->wait_work);
	if (sm->port)
		vp_port_unregister(sm->port);
	vp_sm_stop(sm);
	/* An interrupt that found no port yet may have queued it again. */
	cancel_delayed_work_sync(&sm->wait_work);
	if (sm->port)
		vp_port_free(sm->port);
	vp_sm_free(sm);
}

#ifdef CONFIG_PM_SLEEP
static int vp_sm_freeze(struct virtio_device *vdev)
{
	struct vp_sm *sm = vdev->priv;

	cancel_delayed_work_sync(&sm->wait_work);
	if (sm->port)
		vp_port_quiesce(sm->port, 2000);
	vp_sm_stop(sm);
	return 0;
}

static int vp_sm_restore(struct virtio_device *vdev)
{
	struct vp_sm *sm = vdev->priv;
	int ret = vp_sm_start(sm);

	if (ret)
		return ret;
	if (sm->port)
		vp_port_resume(sm->port);
	else
		queue_delayed_work(vp_wq, &sm->wait_work, 0);
	return 0;
}
#endif

static const struct virtio_device_id vp_sm_ids[] = {
	{ VHP_SHMEM_VIRTIO_ID, VIRTIO_DEV_ANY_ID },
	{ }
};
MODULE_DEVICE_TABLE(virtio, vp_sm_ids);

static struct virtio_driver vp_sm_driver = {
	.driver.name = "vhost_pci_shmem",
	.id_table = vp_sm_ids,
	.probe = vp_sm_probe,
	.remove = vp_sm_remove,
#ifdef CONFIG_PM_SLEEP
	.freeze = vp_sm_freeze,
	.restore = vp_sm_restore,
#endif
};

int vp_shmem_init(void)
{
	return register_virtio_driver(&vp_sm_driver);
}

void vp_shmem_exit(void)
{
	unregister_virtio_driver(&vp_sm_driver);
}
