// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ivshmem binding (docs/spec.md, section 8): ports, and window devices that ports name.
 *
 * A window's BAR2 is another VM's memory and carries no mark. It is taken only if a port's state
 * page names its IVPosition and size; every other ivshmem device is left for others. As the device
 * may be plugged before or after it is named, unbound ones are looked at again when windows[]
 * changes.
 */
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "vp.h"

#define VP_BAR_REGS	0
#define VP_BAR_MEM	2
#define VP_REVISION	1	/* 0 was an older register layout */

struct vp_iv_vec {
	struct vp_iv *iv;
	u32 nr;
	bool requested;
};

/* What pci_get_drvdata() gives: a port, or a window (port NULL, vec NULL). */
struct vp_iv {
	struct pci_dev *pdev;
	void __iomem *regs;
	void *mem;		/* BAR2; for windows only to reserve the memory type */
	phys_addr_t phys;
	u64 size;
	u32 ivpos;

	struct vp_port *port;
	struct mutex irq_lock;
	u32 nvec;
	struct vp_iv_vec *vec;

	struct list_head node;	/* window_devs */
};

static LIST_HEAD(window_devs);
static DEFINE_MUTEX(window_devs_lock);

/* ---- a port's operations --------------------------------------------------------------------- */

static void vp_iv_raise(struct vp_port *port, u32 signal, u32 doorbell)
{
	struct vp_iv *iv = port->priv;

	if (!doorbell)
		doorbell = port->doorbell0 + signal;
	/* writel orders it after the stores to shared memory that it announces */
	writel(doorbell, iv->regs + VHP_IVSHMEM_REG_DOORBELL);
}

static irqreturn_t vp_iv_irq(int irq, void *data)
{
	struct vp_iv_vec *v = data;
	struct vp_port *port = READ_ONCE(v->iv->port);

	if (port)
		vp_port_signalled(port, v->nr);
	return IRQ_HANDLED;
}

static int vp_iv_request(struct vp_iv *iv, u32 nr)
{
	struct vp_iv_vec *v;
	int ret = 0;

	if (nr >= iv->nvec)
		return -EINVAL;
	v = &iv->vec[nr];
	mutex_lock(&iv->irq_lock);
	if (!v->requested) {
		ret = pci_request_irq(iv->pdev, nr, vp_iv_irq, NULL, v, VP_NAME "-%s-%u",
				      pci_name(iv->pdev), nr);
		v->requested = !ret;
	}
	mutex_unlock(&iv->irq_lock);
	return ret;
}

static int vp_iv_listen(struct vp_port *port, u32 nr)
{
	return vp_iv_request(port->priv, nr);
}

static int vp_iv_find(struct vp_port *port, u32 kind, u64 locator, u64 size, struct vp_backing *b)
{
	struct vp_iv *iv = port->priv, *w;
	int ret = -EAGAIN;

	switch (kind) {
	case VHP_WINDOW_POOL:
		if (locator < VHP_CTRL_SIZE || !PAGE_ALIGNED(locator) || !size ||
		    !PAGE_ALIGNED(size) || locator > iv->size || size > iv->size - locator)
			return -ENODEV;
		b->phys = iv->phys + locator;
		b->size = size;
		b->dev = iv;
		return 0;
	case VHP_WINDOW_IVSHMEM:
		mutex_lock(&window_devs_lock);
		list_for_each_entry(w, &window_devs, node) {
			if (w->ivpos != locator || w->size != size)
				continue;
			b->phys = w->phys;
			b->size = w->size;
			b->dev = w;
			ret = 0;
			break;
		}
		mutex_unlock(&window_devs_lock);
		return ret;
	default:
		return -ENODEV;
	}
}

static void vp_iv_windows_changed(struct vp_port *port)
{
	struct pci_dev *pdev = NULL;

	while ((pdev = pci_get_device(VHP_IVSHMEM_VENDOR, VHP_IVSHMEM_DEVICE, pdev)))
		if (!pdev->dev.driver && pdev->revision == VP_REVISION &&
		    device_attach(&pdev->dev) < 0)
			dev_dbg(&pdev->dev, "not bound\n");
}

static const struct vp_port_ops vp_iv_ops = {
	.name = "ivshmem",
	.attachment = VHP_ATTACHMENT_IVSHMEM,
	.raise = vp_iv_raise,
	.listen = vp_iv_listen,
	.find = vp_iv_find,
	.windows_changed = vp_iv_windows_changed,
};

/* ---- probe, remove --------------------------------------------------------------------------- */

static void vp_iv_free_irqs(struct vp_iv *iv)
{
	u32 i;

	for (i = 0; i < iv->nvec; i++)
		if (iv->vec[i].requested)
			pci_free_irq(iv->pdev, i, &iv->vec[i]);
	if (iv->nvec)
		pci_free_irq_vectors(iv->pdev);
	kfree(iv->vec);
	iv->nvec = 0;
	iv->vec = NULL;
}

static int vp_iv_probe_port(struct vp_iv *iv)
{
	struct vhp_abi_control *ctrl = iv->mem;
	struct pci_dev *pdev = iv->pdev;
	struct vp_port_setup setup = {
		.parent = &pdev->dev,
		.ops = &vp_iv_ops,
		.priv = iv,
		.ctrl = iv->mem,
		.ctrl_phys = iv->phys,
	};
	struct vp_port *port;
	int n, ret;
	u32 i;

	ret = vp_header_check(&pdev->dev, &ctrl->header, VHP_ATTACHMENT_IVSHMEM);
	if (ret)
		return ret;

	n = pci_msix_vec_count(pdev);
	if (n < 2) {
		dev_err(&pdev->dev, "port has no MSI-X vectors: ivshmem-doorbell needs vectors=%u\n",
			1 + le32_to_cpu(ctrl->header.max_queues));
		return -EPROTO;
	}
	n = min_t(u32, n, le32_to_cpu(READ_ONCE(ctrl->header.nsignals)));
	n = pci_alloc_irq_vectors(pdev, 2, n, PCI_IRQ_MSIX);
	if (n < 0)
		return n;
	iv->nvec = n;
	iv->vec = kcalloc(n, sizeof(*iv->vec), GFP_KERNEL);
	if (!iv->vec) {
		pci_free_irq_vectors(pdev);
		iv->nvec = 0;
		return -ENOMEM;
	}
	for (i = 0; i < n; i++) {
		iv->vec[i].iv = iv;
		iv->vec[i].nr = i;
	}
	setup.nnumbers = n;

	pci_set_master(pdev);
	port = vp_port_register(&setup);
	if (IS_ERR(port)) {
		ret = PTR_ERR(port);
		goto err_irqs;
	}
	WRITE_ONCE(iv->port, port);
	ret = vp_iv_request(iv, 0);
	if (ret)
		goto err_port;
	vp_port_start(port);
	return 0;
err_port:
	vp_port_unregister(port);
	WRITE_ONCE(iv->port, NULL);
	vp_iv_free_irqs(iv);
	vp_port_free(port);
	pci_clear_master(pdev);
	return ret;
err_irqs:
	vp_iv_free_irqs(iv);
	pci_clear_master(pdev);
	return ret;
}

/* Tell all ports: one of them may wait for this window. */
static void vp_iv_announce(void)
{
	struct vp_port *port;

	mutex_lock(&vp_ports_lock);
	list_for_each_entry(port, &vp_ports, node)
		vp_port_window_event(port);
	mutex_unlock(&vp_ports_lock);
}

static int vp_iv_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vp_iv *iv;
	bool window;
	int ret;

	if (pdev->revision != VP_REVISION)
		return -ENODEV;
	iv = kzalloc(sizeof(*iv), GFP_KERNEL);
	if (!iv)
		return -ENOMEM;
	iv->pdev = pdev;
	mutex_init(&iv->irq_lock);
	INIT_LIST_HEAD(&iv->node);

	if (!pci_resource_start(pdev, VP_BAR_MEM) ||
	    pci_resource_flags(pdev, VP_BAR_MEM) & IORESOURCE_UNSET) {
		dev_err(&pdev->dev,
			"BAR2 got no address; behind a pcie-root-port it needs pref64-reserve\n");
		ret = -ENODEV;
		goto err_free;
	}
	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto err_free;
	ret = pci_request_mem_regions(pdev, VP_NAME);
	if (ret)
		goto err_disable;
	ret = -ENODEV;
	iv->regs = pci_iomap(pdev, VP_BAR_REGS, 0);
	if (!iv->regs)
		goto err_regions;
	iv->phys = pci_resource_start(pdev, VP_BAR_MEM);
	iv->size = pci_resource_len(pdev, VP_BAR_MEM);
	iv->ivpos = readl(iv->regs + VHP_IVSHMEM_REG_IVPOS);
	if (iv->ivpos > VHP_IVSHMEM_ID_MAX)
		goto err_unmap;
	window = iv->ivpos >= VHP_IVSHMEM_WINDOW_ID;
	if (window ? !vp_ports_name_window(VHP_WINDOW_IVSHMEM, iv->ivpos, iv->size) :
		     iv->size < VHP_CTRL_SIZE)
		goto err_unmap;

	iv->mem = memremap(iv->phys, iv->size, MEMREMAP_WB);
	if (!iv->mem) {
		ret = -ENOMEM;
		goto err_unmap;
	}
	pci_set_drvdata(pdev, iv);
	if (window) {
		mutex_lock(&window_devs_lock);
		list_add(&iv->node, &window_devs);
		mutex_unlock(&window_devs_lock);
		dev_info(&pdev->dev, "window 0x%x, %llu MiB\n", iv->ivpos, iv->size >> 20);
		vp_iv_announce();
		return 0;
	}
	ret = vp_iv_probe_port(iv);
	if (!ret)
		return 0;

	pci_set_drvdata(pdev, NULL);
	memunmap(iv->mem);
err_unmap:
	pci_iounmap(pdev, iv->regs);
err_regions:
	pci_release_mem_regions(pdev);
err_disable:
	pci_disable_device(pdev);
err_free:
	kfree(iv);
	return ret;
}

static void vp_iv_remove(struct pci_dev *pdev)
{
	struct vp_iv *iv = pci_get_drvdata(pdev);
	struct vp_port *port = iv->port;

	if (port) {
		vp_port_unregister(port);
		vp_iv_free_irqs(iv);
		vp_port_free(port);
		pci_clear_master(pdev);
	} else {
		mutex_lock(&window_devs_lock);
		list_del(&iv->node);
		mutex_unlock(&window_devs_lock);
		/* Whoever found it before holds port->lock until it is on the list of windows. */
		vp_ports_device_gone(iv);
	}
	memunmap(iv->mem);
	pci_iounmap(pdev, iv->regs);
	pci_release_mem_regions(pdev);
	pci_disable_device(pdev);
	kfree(iv);
}

static int __maybe_unused vp_iv_suspend(struct device *dev)
{
	struct vp_iv *iv = dev_get_drvdata(dev);

	if (iv->port)
		vp_port_quiesce(iv->port, 2000);
	return 0;
}

static int __maybe_unused vp_iv_resume(struct device *dev)
{
	struct vp_iv *iv = dev_get_drvdata(dev);

	if (iv->port)
		vp_port_resume(iv->port);
	return 0;
}

static SIMPLE_DEV_PM_OPS(vp_iv_pm, vp_iv_suspend, vp_iv_resume);

static const struct pci_device_id vp_iv_ids[] = {
	{ PCI_DEVICE(VHP_IVSHMEM_VENDOR, VHP_IVSHMEM_DEVICE) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vp_iv_ids);

static struct pci_driver vp_iv_driver = {
	.name = "vhost_pci_ivshmem",
	.id_table = vp_iv_ids,
	.probe = vp_iv_probe,
	.remove = vp_iv_remove,
	.driver.pm = &vp_iv_pm,
};

int vp_ivshmem_init(void)
{
	return pci_register_driver(&vp_iv_driver);
}

void vp_ivshmem_exit(void)
{
	pci_unregister_driver(&vp_iv_driver);
}
