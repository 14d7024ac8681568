// SPDX-License-Identifier: GPL-2.0-only
/*
 * vhost_pci: the device VM's driver for vhost-pci ports (docs/spec.md).
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/reboot.h>

#include "vp.h"

dev_t vp_devt;
struct workqueue_struct *vp_wq;

struct class vp_class = {
	.name = VP_NAME,
};

/* Before devices are shut down, while commands still get answers. */
static int vp_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	struct vp_port *port;
	int id;

	for (id = 0; id < VP_MAX_PORTS; id++) {
		port = vp_port_get(id);
		if (!port)
			continue;
		vp_port_quiesce(port, 1000);
		vp_port_put(port);
	}
	return NOTIFY_DONE;
}

static struct notifier_block vp_reboot_nb = { .notifier_call = vp_reboot };

static int __init vp_init(void)
{
	int ret;

	ret = alloc_chrdev_region(&vp_devt, 0, VP_MAX_PORTS, VP_NAME);
	if (ret)
		return ret;
	ret = class_register(&vp_class);
	if (ret)
		goto err_chrdev;
	ret = vp_fs_init();
	if (ret)
		goto err_class;
	ret = -ENOMEM;
	vp_wq = alloc_workqueue("vhost_pci", WQ_UNBOUND, 0);
	if (!vp_wq)
		goto err_fs;
	ret = register_reboot_notifier(&vp_reboot_nb);
	if (ret)
		goto err_wq;
	ret = vp_ivshmem_init();
	if (ret)
		goto err_reboot;
	ret = vp_shmem_init();
	if (ret)
		goto err_ivshmem;
	return 0;

err_ivshmem:
	vp_ivshmem_exit();
err_reboot:
	unregister_reboot_notifier(&vp_reboot_nb);
err_wq:
	destroy_workqueue(vp_wq);
err_fs:
	vp_fs_exit();
err_class:
	class_unregister(&vp_class);
err_chrdev:
	unregister_chrdev_region(vp_devt, VP_MAX_PORTS);
	return ret;
}

static void __exit vp_exit(void)
{
	vp_shmem_exit();
	vp_ivshmem_exit();
	unregister_reboot_notifier(&vp_reboot_nb);
	destroy_workqueue(vp_wq);
	vp_fs_exit();
	class_unregister(&vp_class);
	unregister_chrdev_region(vp_devt, VP_MAX_PORTS);
}

module_init(vp_init);
module_exit(vp_exit);

MODULE_DESCRIPTION("vhost-pci port: implement another VM's virtio device");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
