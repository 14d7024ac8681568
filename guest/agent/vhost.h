/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The kernel's vhost devices (/dev/vhost-net, /dev/vhost-vsock, /dev/vhost-scsi): what is the same for all of them.
 *
 * fd is the open device, index a queue of it. what names it in sentences. Threads: any, one for each fd. Errors: 0 or
 * -errno.
 */
#ifndef VHP_AGENT_VHOST_H
#define VHP_AGENT_VHOST_H

#include "base/err.h"
#include "datapath.h"
#include "memmap.h"

/* Regions that this kernel takes. */
unsigned int vhost_max_regions(void);
int vhost_set_mem(int fd, const char *what, unsigned int max_regions, const struct memmap *m,
		  struct vp_err *e);

int vhost_file(int fd, unsigned int index, unsigned long req, int file);
int vhost_state(int fd, unsigned int index, unsigned long req, uint32_t num);

/* Size, base, addresses and eventfds of a ring; the queue must not run. */
int vhost_ring(int fd, const char *what, unsigned int index, const struct dp_queue *c, int err_fd,
	       struct vp_err *e);
/* Forget its eventfds and say where it stood. The queue must not run. */
int vhost_ring_end(int fd, const char *what, unsigned int index, uint32_t *base, struct vp_err *e);

/* The device translates by itself: it is told in messages, which it asks for. After VHOST_SET_OWNER. */
int vhost_iotlb_on(int fd);
/* It asks: 1, with what; 0: it does not. */
int vhost_iotlb_ask(int fd, uint64_t *addr, bool *write);
/* uva 0: [addr, addr + size) is not there any more; the device uses nothing of it when this returns. */
int vhost_iotlb_tell(int fd, uint64_t addr, uint64_t size, uint64_t uva);

/* A number in a file of a few bytes, such as a module's parameter. */
unsigned int vhost_param(const char *path, unsigned int fallback);

#endif
