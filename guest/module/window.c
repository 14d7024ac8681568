// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings of the control block and of windows, and how they are taken back.
 *
 * The memory belongs to the host or to another VM. It has no struct page here, so mappings are
 * PFN maps: get_user_pages refuses them (no O_DIRECT, no registration with an RDMA card), while
 * copy_from_user and friends, which is what vhost-net uses, work.
 *
 * Caching: page table entries get the memory type that was reserved for the range when the
 * binding mapped it with memremap(MEMREMAP_WB); without that x86 would make them uncached.
 *
 * Each map has an address_space of its own, so that revocation finds its mappings in every process
 * and nothing else. A fault checks `revoked` and inserts under map->sem (read); revocation sets it
 * under map->sem (write) and zaps afterwards, so no entry can be inserted after the zap.
 *
 * A window with a protection key is for one mapping of one process, which has the key for as long as it lives: a second
 * mapping without the key would be a way around it.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/slab.h>

#include "vp.h"

#define VP_FS_MAGIC 0x76687063		/* "vhpc" */

/* Pages that one fault maps where huge entries are not to be had. */
#define VP_FAULT_AROUND (SZ_2M >> PAGE_SHIFT)

static struct vfsmount *vp_mnt;

static int vp_fs_init_context(struct fs_context *fc)
{
	return init_pseudo(fc, VP_FS_MAGIC) ? 0 : -ENOMEM;
}

/* No .owner: our own mount would pin the module for ever. Inodes are put before files' fops are. */
static struct file_system_type vp_fs_type = {
	.name = "vhost_pci",
	.init_fs_context = vp_fs_init_context,
	.kill_sb = kill_anon_super,
};

int vp_fs_init(void)
{
	vp_mnt = kern_mount(&vp_fs_type);
	return PTR_ERR_OR_ZERO(vp_mnt);
}

void vp_fs_exit(void)
{
	kern_unmount(vp_mnt);
}

struct vp_map *vp_map_new(const struct vp_backing *back, bool readonly)
{
	struct vp_map *map = kzalloc(sizeof(*map), GFP_KERNEL);
	struct inode *inode;

	if (!map)
		return ERR_PTR(-ENOMEM);
	inode = alloc_anon_inode(vp_mnt->mnt_sb);
	if (IS_ERR(inode)) {
		kfree(map);
		return ERR_CAST(inode);
	}
	kref_init(&map->kref);
	init_rwsem(&map->sem);
	map->back = *back;
	map->readonly = readonly;
	map->inode = inode;
	i_size_write(inode, back->size);
	return map;
}

static void vp_map_free(struct kref *kref)
{
	struct vp_map *map = container_of(kref, struct vp_map, kref);

	iput(map->inode);
	if (map->mm)
		mmdrop(map->mm);
	kfree(map);
}

void vp_map_put(struct vp_map *map)
{
	kref_put(&map->kref, vp_map_free);
}

void vp_map_revoke(struct vp_map *map)
{
	down_write(&map->sem);
	map->revoked = true;
	up_write(&map->sem);
	unmap_mapping_range(map->inode->i_mapping, 0, 0, 1);
}

bool vp_map_in_use(struct vp_map *map)
{
	return mapping_mapped(map->inode->i_mapping);
}

/* The largest page that can map the start of this backing. */
u64 vp_map_align(const struct vp_map *map)
{
#ifdef VP_HAVE_HUGE_PUD
	if (IS_ALIGNED(map->back.phys, PUD_SIZE) && map->back.size >= PUD_SIZE)
		return PUD_SIZE;
#endif
#ifdef VP_HAVE_HUGE_PMD
	if (IS_ALIGNED(map->back.phys, PMD_SIZE) && map->back.size >= PMD_SIZE)
		return PMD_SIZE;
#endif
	return PAGE_SIZE;
}

/* Small pages: the faulting one must succeed, its neighbours are a courtesy. */
static vm_fault_t vp_insert_small(struct vm_fault *vmf, struct vp_map *map, u64 off)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long block = VP_FAULT_AROUND << PAGE_SHIFT;
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned long start = max(addr & ~(block - 1), vma->vm_start);
	unsigned long end = min((addr & ~(block - 1)) + block, vma->vm_end);
	unsigned long pfn = PHYS_PFN(map->back.phys + off);
	unsigned long a;
	vm_fault_t ret;

	ret = vmf_insert_pfn(vma, addr, pfn);
	if (ret != VM_FAULT_NOPAGE)
		return ret;
	if (addr - start > off)
		start = addr - off;
	if (end - addr > map->back.size - off)
		end = addr + (map->back.size - off);
	for (a = start; a < end; a += PAGE_SIZE) {
		if (a == addr)
			continue;
		if (vmf_insert_pfn(vma, a, pfn + ((long)(a - addr) >> PAGE_SHIFT)) !=
		    VM_FAULT_NOPAGE)
			break;
	}
	return VM_FAULT_NOPAGE;
}

static vm_fault_t vp_map_fault_order(struct vm_fault *vmf, unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	struct vp_map *map = vma->vm_private_data;
	unsigned long len = PAGE_SIZE << order;
	unsigned long addr = vmf->address & ~(len - 1);
	vm_fault_t ret = VM_FAULT_FALLBACK;
	u64 off;

	if (order && (addr < vma->vm_start || vma->vm_end - addr < len))
		return VM_FAULT_FALLBACK;
	off = ((u64)vma->vm_pgoff << PAGE_SHIFT) + (addr - vma->vm_start);
	if (off >= map->back.size)
		return VM_FAULT_SIGBUS;
	if (order && (!IS_ALIGNED(map->back.phys + off, len) || map->back.size - off < len))
		return VM_FAULT_FALLBACK;

	down_read(&map->sem);
	if (map->revoked)
		ret = VM_FAULT_SIGBUS;
	else if (!order)
		ret = vp_insert_small(vmf, map, off);
#ifdef VP_HAVE_HUGE_PMD
	else if (order == PMD_SHIFT - PAGE_SHIFT)
		ret = vmf_insert_pfn_pmd(vmf, vp_pfn_arg(PHYS_PFN(map->back.phys + off)),
					 vmf->flags & FAULT_FLAG_WRITE);
#endif
#ifdef VP_HAVE_HUGE_PUD
	else if (order == PUD_SHIFT - PAGE_SHIFT)
		ret = vmf_insert_pfn_pud(vmf, vp_pfn_arg(PHYS_PFN(map->back.phys + off)),
					 vmf->flags & FAULT_FLAG_WRITE);
#endif
	up_read(&map->sem);
	return ret;
}

static vm_fault_t vp_map_fault(struct vm_fault *vmf)
{
	return vp_map_fault_order(vmf, 0);
}

/* A mapping was split, or moved. */
static void vp_map_vma_open(struct vm_area_struct *vma)
{
	struct vp_map *map = vma->vm_private_data;

	atomic_inc(&map->nvma);
}

static void vp_map_vma_close(struct vm_area_struct *vma)
{
	struct vp_map *map = vma->vm_private_data;

	atomic_dec(&map->nvma);
}

static int vp_map_mprotect(struct vm_area_struct *vma, unsigned long start, unsigned long end,
			   unsigned long flags)
{
	struct vp_map *map = vma->vm_private_data;

	return map->pkey && (flags & VP_PKEY_FLAGS) != VP_PKEY_TO_FLAGS(map->pkey) ? -EACCES : 0;
}

static const struct vm_operations_struct vp_map_vm_ops = {
	.open = vp_map_vma_open,
	.close = vp_map_vma_close,
	.mprotect = vp_map_mprotect,
	.fault = vp_map_fault,
#ifdef VP_HAVE_HUGE_PMD
	.huge_fault = vp_map_fault_order,
#endif
};

/* The vma holds its file, the file holds the map: vm_private_data needs no count of its own. */
int vp_map_mmap(struct vp_map *map, struct vm_area_struct *vma)
{
	u64 len = vma->vm_end - vma->vm_start;
	u64 off = (u64)vma->vm_pgoff << PAGE_SHIFT;
	bool revoked;

	/* VM_SHARED is not set for a file that was opened O_RDONLY */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_pgoff > (ULONG_MAX >> PAGE_SHIFT) || off >= map->back.size ||
	    len > map->back.size - off)
		return -EINVAL;
	if (map->readonly) {
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vp_vm_flags_clear(vma, VM_MAYWRITE);
	}
	down_read(&map->sem);
	revoked = map->revoked;
	up_read(&map->sem);
	if (revoked)
		return -ENODEV;
	if (map->pkey) {
		if (vma->vm_mm != map->mm || !mm_pkey_is_allocated(vma->vm_mm, map->pkey))
			return -EACCES;
		if (atomic_cmpxchg(&map->nvma, 0, 1))
			return -EBUSY;
		vp_vm_flags_clear(vma, VP_PKEY_FLAGS);
		vp_vm_flags_set(vma, VP_PKEY_TO_FLAGS(map->pkey) | VM_DONTCOPY);
	} else {
		atomic_inc(&map->nvma);
	}
	vp_vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = map;
	vma->vm_ops = &vp_map_vm_ops;
	return 0;
}

/* ---- window fds ------------------------------------------------------------------------------ */

static int vp_window_mmap(struct file *file, struct vm_area_struct *vma)
{
	return vp_map_mmap(file->private_data, vma);
}

static int vp_window_release(struct inode *inode, struct file *file)
{
	vp_map_put(file->private_data);
	return 0;
}

/* An address such that huge pages of the backing stay huge. */
static unsigned long vp_window_area(struct file *file, unsigned long addr, unsigned long len,
				    unsigned long pgoff, unsigned long flags)
{
	static const unsigned long sizes[] = {
#ifdef VP_HAVE_HUGE_PUD
		PUD_SIZE,
#endif
		PMD_SIZE,
	};
	struct vp_map *map = file->private_data;
	u64 phys = map->back.phys + ((u64)pgoff << PAGE_SHIFT);
	unsigned long a, want;
	int i;

	for (i = 0; !(flags & MAP_FIXED) && !addr && i < ARRAY_SIZE(sizes); i++) {
		if (len < sizes[i] || len + sizes[i] < len)
			continue;
		a = vp_get_unmapped_area(file, 0, len + sizes[i], pgoff, flags);
		if (IS_ERR_VALUE(a))
			continue;
		want = phys & (sizes[i] - 1);
		return a + ((want - a) & (sizes[i] - 1));
	}
	return vp_get_unmapped_area(file, addr, len, pgoff, flags);
}

/* Back-ends look for the end of a region's file before they map it: it is the window's. */
static loff_t vp_window_llseek(struct file *file, loff_t off, int whence)
{
	struct vp_map *map = file->private_data;

	return fixed_size_llseek(file, off, whence, map->back.size);
}

static const struct file_operations vp_window_fops = {
	.owner = THIS_MODULE,
	.llseek = vp_window_llseek,
	.mmap = vp_window_mmap,
	.get_unmapped_area = vp_window_area,
	.release = vp_window_release,
};

static int vp_window_fd(struct vp_map *map)
{
	struct file *file;
	int fd = get_unused_fd_flags(O_CLOEXEC);

	if (fd < 0)
		return fd;
	/*
	 * On the map's own inode: fstat() tells the window's size, and faults and unmap_mapping_range meet in its
	 * address_space. Our operations are the file's, whose end gives one hold of the module back: nobody took it for
	 * us.
	 */
	ihold(map->inode);
	file = alloc_file_pseudo(map->inode, vp_mnt, "[vhost-pci-window]", O_RDWR, &vp_window_fops);
	if (IS_ERR(file)) {
		iput(map->inode);
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	__module_get(THIS_MODULE);
	kref_get(&map->kref);
	file->private_data = map;
	fd_install(fd, file);
	return fd;
}

/* ---- the windows of a port ------------------------------------------------------------------- */

static void vp_window_drop(struct vp_port *port, struct vp_window *w)
{
	vp_map_revoke(w->map);
	atomic64_inc(&port->revocations);
	list_del(&w->node);
	vp_map_put(w->map);
	kfree(w);
}

static bool vp_window_same(const struct vp_window *w, const struct vhp_abi_window *e)
{
	return le32_to_cpu(e->serial) == w->serial && le32_to_cpu(e->kind) == w->kind &&
	       le64_to_cpu(e->locator) == w->locator &&
	       le64_to_cpu(e->size) == w->map->back.size &&
	       le32_to_cpu(e->flags) & VHP_WINDOW_READY;
}

/* The owner has gone: the next one chooses anew. Under port->lock, or nobody else has the port. */
void vp_window_forget_key(struct vp_port *port)
{
	if (port->pkey)
		mmdrop(port->pkey_mm);
	port->pkey = 0;
}

/* May the owner have this window with this key? Under port->lock. */
static int vp_window_key(struct vp_port *port, struct vp_map *map, u32 pkey)
{
	if (!pkey && !port->pkey)
		return 0;
	if (port->pkey && (port->pkey != pkey || port->pkey_mm != current->mm))
		return -EBUSY;
	/* Only port->windows has it: no fd, no mapping. */
	if (kref_read(&map->kref) > 1)
		return -EBUSY;
	if (map->mm)
		mmdrop(map->mm);
	mmgrab(current->mm);
	map->mm = current->mm;
	map->pkey = pkey;
	if (!port->pkey) {
		mmgrab(current->mm);
		port->pkey_mm = current->mm;
		port->pkey = pkey;
	}
	return 0;
}

/* VHP_IOC_WINDOW. Called with port->life held for reading, by the owner. */
int vp_window_open(struct vp_port *port, struct vhp_ioc_window *arg)
{
	struct vhp_abi_window e;
	struct vp_backing back;
	struct vp_window *w;
	struct vp_map *map;
	int ret;

	if (arg->window >= VHP_MAX_WINDOWS)
		return -ENOENT;
	if (arg->pkey && !arch_pkeys_enabled())
		return -EOPNOTSUPP;
	/* No processor has more; whether the process has this one is looked up when it maps the window. */
	if (arg->pkey > 15)
		return -EINVAL;

	mutex_lock(&port->lock);
	ret = vp_state_read(port, offsetof(struct vhp_abi_state, windows[arg->window]), &e,
			    sizeof(e));
	if (ret)
		goto out;
	ret = -ENOENT;
	if (le32_to_cpu(e.kind) == VHP_WINDOW_NONE)
		goto out;
	ret = -ESTALE;
	if (le32_to_cpu(e.serial) != arg->serial)
		goto out;
	ret = -EAGAIN;
	if (!(le32_to_cpu(e.flags) & VHP_WINDOW_READY))
		goto out;

	list_for_each_entry(w, &port->windows, node) {
		if (w->slot != arg->window)
			continue;
		if (vp_window_same(w, &e))
			goto have;
		vp_window_drop(port, w);	/* the state worker has not come to it yet */
		break;
	}
	ret = port->ops->find(port, le32_to_cpu(e.kind), le64_to_cpu(e.locator),
			      le64_to_cpu(e.size), &back);
	if (ret)
		goto out;
	ret = -ENOMEM;
	w = kzalloc(sizeof(*w), GFP_KERNEL);
	if (!w)
		goto out;
	map = vp_map_new(&back, false);
	if (IS_ERR(map)) {
		ret = PTR_ERR(map);
		kfree(w);
		goto out;
	}
	w->slot = arg->window;
	w->serial = arg->serial;
	w->kind = le32_to_cpu(e.kind);
	w->locator = le64_to_cpu(e.locator);
	w->map = map;
	list_add(&w->node, &port->windows);
have:
	ret = vp_window_key(port, w->map, arg->pkey);
	if (ret)
		goto out;
	ret = vp_window_fd(w->map);
	if (ret >= 0) {
		arg->fd = ret;
		arg->size = w->map->back.size;
		arg->align = vp_map_align(w->map);
		ret = 0;
	}
out:
	mutex_unlock(&port->lock);
	return ret;
}

/* The state worker: whatever the table no longer says is revoked. */
void vp_windows_check(struct vp_port *port, const struct vhp_abi_window *win, u32 n)
{
	struct vp_window *w, *next;

	mutex_lock(&port->lock);
	list_for_each_entry_safe(w, next, &port->windows, node)
		if (w->slot >= n || !vp_window_same(w, &win[w->slot]))
			vp_window_drop(port, w);
	mutex_unlock(&port->lock);
}

/* All windows (dev NULL), or those that lie in one device. */
void vp_windows_revoke(struct vp_port *port, const void *dev)
{
	struct vp_window *w, *next;

	mutex_lock(&port->lock);
	list_for_each_entry_safe(w, next, &port->windows, node)
		if (!dev || w->map->back.dev == dev)
			vp_window_drop(port, w);
	mutex_unlock(&port->lock);
}

bool vp_windows_in_use(struct vp_port *port)
{
	struct vp_window *w;
	bool used = false;

	mutex_lock(&port->lock);
	list_for_each_entry(w, &port->windows, node)
		used |= vp_map_in_use(w->map);
	mutex_unlock(&port->lock);
	return used;
}
