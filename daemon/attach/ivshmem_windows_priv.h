/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside of the windows of the ivshmem attachment: ivshmem_windows.c, and ivshmem_windows_save.c for another daemon. */
#ifndef VP_DAEMON_IVWIN_PRIV_H
#define VP_DAEMON_IVWIN_PRIV_H

#include "attach/attach.h"
#include "attach/ivshmem_windows.h"
#include "sys/qmp.h"

#define VP_IVWINS_BUSES 64
#define VP_IVWINS_LEFT  64  /* devices of an earlier daemon: it had no more buses */

enum wstate { W_ADDING, W_PLUGGED, W_REMOVING, W_CHARDEV };

struct wdev {
	struct vp_ivwins *w;
	struct wdev      *next;
	int               slot;      /* -1 = nobody's any more */
	uint32_t          id;        /* of w->ids; 0 = none yet */
	enum wstate       state;
	bool              unwanted;  /* remove it as soon as that can be asked for */
	bool              seen;      /* scratch of on_list() */
	int               sock;      /* our end, kept open as long as the device exists */
	int               bus;       /* -1 = unknown */
	unsigned          looks, asks;
	sd_event_source  *timer;
	char              dev[VP_CONF_NAME_MAX + 16], chr[VP_CONF_NAME_MAX + 20];
	char              error[180];
};

struct vp_ivwins {
	const struct vp_attach_conf *c;
	struct vp_daemon          *d;
	const struct vp_conf_link *l;
	const char                *name;
	struct vp_port            *port;
	struct vp_qmp             *qmp;    /* NULL = not configured */
	struct vp_winids          *ids;    /* of the device VM */
	struct wdev               *list;
	char                       buses[VP_CONF_BUS_MAX];
	const char                *bus[VP_IVWINS_BUSES + 1];  /* the last: of devices that are in none of them */
	unsigned                   n_bus, next_bus;
	char                       prefix[VP_CONF_NAME_MAX + 8];
	uint64_t                   n_plugged, n_unplugged;
	unsigned                   asked;   /* lists of the VM's devices that are on their way */
	bool                       listed;  /* what an earlier daemon left plugged is in the list */
	bool                       freeing;
};

/* NULL: no memory. */
struct wdev *vp_ivwins_wdev(struct vp_ivwins *w, int slot);
/* After its device's. */
void vp_ivwins_name_chardev(struct wdev *v);
/* It waited for something: it does so anew. */
void vp_ivwins_wait_on(struct wdev *v);

/* Commands whose answers are a device's; of w itself: vp_ivwins_on_list(). */
#define VP_IVWINS_CALLS 5
extern const vp_qmp_done vp_ivwins_calls[VP_IVWINS_CALLS];
void vp_ivwins_on_list(void *arg, json_t *ret, const char *err);
extern const struct vp_qmp_ops vp_ivwins_qmp_ops;

#endif
