/* SPDX-License-Identifier: GPL-2.0-only */
/* Everything that differs between the kernels that this module builds for (6.1 and later). */
#ifndef VP_COMPAT_H
#define VP_COMPAT_H

#include <linux/eventfd.h>
#include <linux/mm.h>
#include <linux/pkeys.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/version.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "vhost_pci needs Linux 6.1 or later"
#endif

static inline void vp_eventfd_signal(struct eventfd_ctx *ctx)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	eventfd_signal(ctx);
#else
	eventfd_signal(ctx, 1);
#endif
}

static inline void vp_vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
}

static inline void vp_vm_flags_clear(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_clear(vma, flags);
#else
	vma->vm_flags &= ~flags;
#endif
}

/* A mapping's protection key lies in its flags, where there are protection keys. */
#ifdef CONFIG_ARCH_HAS_PKEYS
#define VP_PKEY_FLAGS		((unsigned long)ARCH_VM_PKEY_FLAGS)
#define VP_PKEY_TO_FLAGS(key)	((unsigned long)(key) << VM_PKEY_SHIFT)
#else
#define VP_PKEY_FLAGS		0UL
#define VP_PKEY_TO_FLAGS(key)	0UL
#endif

/* The default choice of an address for mmap. */
static inline unsigned long vp_get_unmapped_area(struct file *file, unsigned long addr,
						 unsigned long len, unsigned long pgoff,
						 unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	return mm_get_unmapped_area(file, addr, len, pgoff, flags);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
	return mm_get_unmapped_area(current->mm, file, addr, len, pgoff, flags);
#else
	return current->mm->get_unmapped_area(file, addr, len, pgoff, flags);
#endif
}

/*
 * Huge mappings of memory without struct page need page table entries that say so (pmd_special),
 * or get_user_pages_fast() and /proc/PID/smaps would look for a struct page and crash. Linux has
 * them since 6.12, together with these two symbols; older kernels get small pages, in batches.
 */
#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
#define VP_HAVE_HUGE_PMD 1
#endif
#ifdef CONFIG_ARCH_SUPPORTS_PUD_PFNMAP
#define VP_HAVE_HUGE_PUD 1
#endif

#if defined(VP_HAVE_HUGE_PMD) || defined(VP_HAVE_HUGE_PUD)
#include <linux/huge_mm.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
#define vp_pfn_arg(pfn) (pfn)
#else
#include <linux/pfn_t.h>
#define vp_pfn_arg(pfn) __pfn_to_pfn_t(pfn, PFN_DEV)
#endif
#endif

/* One callback and one name for all queues. */
static inline int vp_find_vqs(struct virtio_device *vdev, unsigned int n, struct virtqueue **vqs,
			      vq_callback_t *cb, const char *name)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	struct virtqueue_info *info = kcalloc(n, sizeof(*info), GFP_KERNEL);
	unsigned int i;
	int ret;

	if (!info)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		info[i].callback = cb;
		info[i].name = name;
	}
	ret = virtio_find_vqs(vdev, n, vqs, info, NULL);
	kfree(info);
	return ret;
#else
	vq_callback_t **cbs = kcalloc(n, sizeof(*cbs), GFP_KERNEL);
	const char **names = kcalloc(n, sizeof(*names), GFP_KERNEL);
	unsigned int i;
	int ret = -ENOMEM;

	if (cbs && names) {
		for (i = 0; i < n; i++) {
			cbs[i] = cb;
			names[i] = name;
		}
		ret = virtio_find_vqs(vdev, n, vqs, cbs, names, NULL);
	}
	kfree(cbs);
	kfree(names);
	return ret;
#endif
}

#endif /* VP_COMPAT_H */
