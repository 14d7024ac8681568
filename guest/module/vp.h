/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * vhost_pci.ko, internal interfaces.
 *
 *   main.c     module init/exit, chardev region, class, reboot notifier
 *   core.c     a port's life: register, unregister, state watch, detach
 *   chardev.c  /dev/vhost-pciN
 *   command.c  reading the state page, the command mailbox
 *   window.c   mappings of the control block and of windows, revocation
 *   signal.c   eventfds in both directions
 *   ivshmem.c, shmem.c   the two bindings
 *
 * Threat model: the state page is written by the host's daemon, which the guest must trust, but a
 * torn or scribbled page must not crash the kernel: every field is read once, through a consistent
 * copy, and checked before use. User space that owns the port may do anything to its own link and
 * nothing to the kernel. Ring contents are never looked at here.
 *
 * Locks, in the order in which they nest:
 *   port->life (rw)     read: any file operation; write: to see the last one off. Whoever waits
 *                       with it held for reading stops when port->gone is set.
 *   port->cmd_lock      the mailbox
 *   port->snap_lock     the scratch copy of the state page and what is derived from it
 *   vp_ports_lock       the list of ports
 *   port->lock          owner, windows list, call hooks
 *   window_devs_lock    (ivshmem.c) the list of window devices
 *   map->sem            revoked flag against faults (also taken inside mmap_lock)
 */
#ifndef VP_H
#define VP_H

#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <vhost-pci/abi.h>
#include <vhost-pci/uapi.h>

#include "compat.h"

#define VP_NAME			"vhost-pci"
#define VP_MAX_PORTS		256
#define VP_COMMAND_MS		5000	/* default time for an answer */
#define VP_GRACE_MS		1000	/* for others to unmap windows after the owner left */

struct vp_port;

/* ---- window.c ---------------------------------------------------------------------------- */

/* Physical memory behind a mapping. `dev` says whose it is, for revocation by device. */
struct vp_backing {
	phys_addr_t phys;
	u64 size;
	const void *dev;
};

/* Something mappable: the control block or one window. Counted; each fd holds one. */
struct vp_map {
	struct kref kref;
	struct rw_semaphore sem;	/* protects revoked against faults that insert */
	bool revoked;
	bool readonly;
	u32 pkey;			/* 0: none, and then nothing of the next two is used */
	struct mm_struct *mm;		/* who may map it; held with mmgrab() */
	atomic_t nvma;			/* its mappings: one, unless that was split */
	struct vp_backing back;
	struct inode *inode;		/* only for its address_space, to find every mapping */
};

/* A window that user space asked for at least once: port->windows, under port->lock. */
struct vp_window {
	struct list_head node;
	u32 slot;
	u32 serial;
	u64 locator;
	u32 kind;
	struct vp_map *map;
};

int vp_fs_init(void);
void vp_fs_exit(void);
struct vp_map *vp_map_new(const struct vp_backing *back, bool readonly);
void vp_map_put(struct vp_map *map);
void vp_map_revoke(struct vp_map *map);
bool vp_map_in_use(struct vp_map *map);
int vp_map_mmap(struct vp_map *map, struct vm_area_struct *vma);
u64 vp_map_align(const struct vp_map *map);
int vp_window_open(struct vp_port *port, struct vhp_ioc_window *w);
void vp_window_forget_key(struct vp_port *port);
void vp_windows_check(struct vp_port *port, const struct vhp_abi_window *win, u32 n);
void vp_windows_revoke(struct vp_port *port, const void *dev);
bool vp_windows_in_use(struct vp_port *port);

/* ---- signal.c ------------------------------------------------------------------------------ */

/* One signal to the guest, by its meaning (0 state, 1 + q). */
struct vp_kick {
	spinlock_t lock;		/* taken in hard interrupts */
	struct eventfd_ctx *ctx;
	bool pending;			/* arrived while there was no eventfd */
	u64 count;
};

/* What a number on the wire carries besides the signal of that number: kicks of further queues. */
struct vp_number {
	unsigned long kicks[BITS_TO_LONGS(VHP_MAX_QUEUES)];
};

/* One eventfd hooked to a signal from the guest. */
struct vp_call {
	wait_queue_entry_t wait;
	poll_table pt;
	struct eventfd_ctx *ctx;
	struct vp_port *port;
	u32 signal;
};

void vp_kick_deliver(struct vp_kick *k);
int vp_kick_set(struct vp_port *port, u32 signal, int fd);
int vp_call_set(struct vp_port *port, u32 signal, int fd);
void vp_signals_drop(struct vp_port *port);
void vp_raise(struct vp_port *port, u32 signal);

/* ---- bindings -------------------------------------------------------------------------------- */

struct vp_port_ops {
	const char *name;
	u32 attachment;
	/* Any context. `doorbell` is what the state page says for the signal (0: default). */
	void (*raise)(struct vp_port *port, u32 signal, u32 doorbell);
	/* Process context: to-guest number `nr` (< nnumbers) must be delivered from now on. */
	int (*listen)(struct vp_port *port, u32 nr);
	/* Process context. 0, -EAGAIN (not there yet) or -ENODEV (never on this binding). */
	int (*find)(struct vp_port *port, u32 kind, u64 locator, u64 size, struct vp_backing *b);
	/* Process context: windows[] changed; look for devices that carry them. May be NULL. */
	void (*windows_changed)(struct vp_port *port);
};

/* What a binding fills in before vp_port_register(). */
struct vp_port_setup {
	struct device *parent;
	const struct vp_port_ops *ops;
	void *priv;
	void *ctrl;			/* mapped control block, valid until unregistered */
	phys_addr_t ctrl_phys;
	u32 nnumbers;			/* to-guest numbers that the device can deliver */
};

/* ---- core.c ------------------------------------------------------------------------------- */

struct vp_file {
	struct vp_port *port;
	bool owner;
	/* counters of port->ev_* at the last read */
	int seen_state, seen_window, seen_detached;
	bool read_once;
	struct mutex lock;
};

struct vp_port {
	struct device dev;
	struct cdev cdev;
	int id;
	struct list_head node;		/* all ports, under vp_ports_lock */
	const struct vp_port_ops *ops;
	void *priv;

	struct vhp_abi_control *ctrl;
	struct vp_map *ctrl_map;
	u32 abi_version;
	u32 max_queues;
	u32 nsignals;			/* 1 + max_queues: meanings, the index of kick/call */
	u32 nnumbers;			/* numbers on the wire, the index of number */
	u32 doorbell0;
	char name[33];

	struct rw_semaphore life;
	bool gone;			/* no new operations; those that wait come back */
	bool dead;			/* and all mappings are revoked */

	struct mutex lock;
	struct vp_file *owner;
	u32 pkey;			/* of all windows that this owner gets; 0: none was asked for yet */
	struct mm_struct *pkey_mm;	/* and in which process; held with mmgrab() while there is a key */
	bool detaching;			/* an owner left, its traces are being removed */
	unsigned long detach_deadline;
	struct delayed_work detach_work;
	struct list_head windows;

	struct mutex cmd_lock;
	u32 cmd_seq;
	bool maybe_attached;		/* an ATTACH was sent and no DETACH answered since */

	wait_queue_head_t wq;		/* answers, events, gone, detaching */
	atomic_t ev_state, ev_window, ev_detached;
	struct work_struct state_work;
	struct mutex snap_lock;
	struct vhp_abi_state *snap;
	u32 last_link, last_attached, last_regions_gen;
	u64 last_epoch;
	bool have_last;

	struct vp_kick *kick;		/* [nsignals] */
	struct vp_call **call;		/* [nsignals], under lock */
	u32 *doorbell;			/* [nsignals], READ_ONCE */
	struct vp_number *number;	/* [nnumbers] */
	u32 *kick_number;		/* [max_queues] as wired, under snap_lock */
	atomic64_t calls, commands, revocations;
};

extern struct class vp_class;
extern const struct attribute_group *vp_port_groups[];
extern struct list_head vp_ports;
extern struct mutex vp_ports_lock;
extern dev_t vp_devt;
extern struct workqueue_struct *vp_wq;

/* 0 if this looks like the header of a control block, -ENODEV if the magic is missing, -EPROTO. */
int vp_header_check(struct device *dev, const struct vhp_abi_header *h, u32 attachment);
struct vp_port *vp_port_register(const struct vp_port_setup *s);
/* After the binding can carry signals. */
void vp_port_start(struct vp_port *port);
/* Stop, DETACH, revoke. Then only interrupts refer to the port: stop them, then free. */
void vp_port_unregister(struct vp_port *port);
void vp_port_free(struct vp_port *port);
/* Any context: the to-guest number `nr` arrived. */
void vp_port_signalled(struct vp_port *port, u32 nr);
/* Process context: bring what is derived from the state page up to date, raise events. */
void vp_port_sync(struct vp_port *port);
/* Process context: windows or devices changed, tell user space. */
void vp_port_window_event(struct vp_port *port);
/* Process context: take everything back and DETACH; user space sees VHP_EV_DETACHED. */
void vp_port_quiesce(struct vp_port *port, unsigned int timeout_ms);
void vp_port_resume(struct vp_port *port);
void vp_port_owner_left(struct vp_port *port);
/* The port with this number, or NULL; it neither goes nor is unregistered until it is put. */
struct vp_port *vp_port_get(int id);
void vp_port_put(struct vp_port *port);
/* Does any port name a window of this kind, locator and size? Revoke all windows in a device. */
bool vp_ports_name_window(u32 kind, u64 locator, u64 size);
void vp_ports_device_gone(const void *dev);

/* ---- command.c ---------------------------------------------------------------------------- */

bool vp_state_try(struct vp_port *port, size_t off, void *dst, size_t len);
int vp_state_read(struct vp_port *port, size_t off, void *dst, size_t len);
int vp_command(struct vp_port *port, struct vhp_ioc_command *c, bool interruptible);

/* ---- chardev.c, ivshmem.c, shmem.c --------------------------------------------------------- */

extern const struct file_operations vp_port_fops;
int vp_ivshmem_init(void);
void vp_ivshmem_exit(void);
int vp_shmem_init(void);
void vp_shmem_exit(void);

#endif /* VP_H */
