/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The two VMs of fuzz_session.c: VMMs that speak vhost-user and QMP, a device VM with a port, and what they keep of all
 * that they sent.
 */
#ifndef VP_FUZZ_SESSION_PEER_H
#define VP_FUZZ_SESSION_PEER_H

#include <sys/types.h>

#include "session.h"

#define MEM_BYTES  (4u << 20)
#define GPA        0x100000000u
#define UVA        0x7f5500000000u
#define RINGS      4u
#define RING_SIZE  32u
#define TABLE      0x100000u          /* 32,768 empty entries */
#define TSO        0x200000u          /* a packet of 32,000 bytes with an offload header */
#define BIG        0x280000u          /* a receive ring of 32,768 small buffers */
#define BIG_SIZE   32768u
#define RINGS_AT   0x1000u            /* each has 0x1000 */
#define FDS        32u
#define CHANNELS   8u

struct peer {
	bool     device;                /* which end of the link */
	bool     vu;                    /* speaks vhost-user */
	int      sock, chan[CHANNELS];  /* chan: our ends of request channels */
	unsigned n_chan;
	int      kick[RINGS], call[RINGS];
	uint16_t avail[RINGS];
	bool     packed, iommu, reply;
	int      memfds[2], memfd;      /* one that can shrink, one that cannot */
	uint8_t *mems[2], *mem;
	uint8_t *ctrl;                  /* a port's control block */
	size_t   ctrl_bytes;
	int      bell[RINGS + 1];       /* doorbells that the daemon handed out */
	unsigned n_bell;
	uint32_t seq;
};

extern const struct rig_link *lk;  /* of this input */
extern struct peer peers[2];       /* the driver's side, the device's */
extern int kept[FDS];
extern unsigned n_kept;

int keep(int fd);
int event(void);
void send_fds(int sock, const void *buf, size_t len, const int *fds, unsigned n);
ssize_t recv_fds(int sock, void *buf, size_t len, int *fds, unsigned max, unsigned *n);
void say(struct peer *p, uint32_t id, const void *payload, uint32_t size, int fd);
void say_u64(struct peer *p, uint32_t id, uint64_t v, int fd);
void say_state(struct peer *p, uint32_t id, uint32_t q, uint32_t num);
void listen_to(int sock);
void write_memory(struct peer *p);
void make_memory(struct peer *p);
void choose_memory(struct peer *p);
void add_region(struct peer *p, uint32_t id, unsigned i);
void mem_table(struct peer *p, unsigned n);
uint8_t *ring(struct peer *p, unsigned q);
void ring_addr(struct peer *p, unsigned q, unsigned move);
void start_ring(struct peer *p, unsigned q);
void start_big_ring(struct peer *p);
void new_channel(struct peer *p);
void serve_channel(struct peer *p, unsigned how);
void come(struct peer *p, unsigned how);
void leave(struct peer *p);
void qmp_serve(void);
void end_qmp(void);
void qmp_event(unsigned what);
void take_port(struct peer *p);
void raise_fd(int fd);
void command(struct peer *p, unsigned opcode, uint64_t a, uint64_t b);
void offer(struct peer *p, unsigned q, unsigned n, unsigned kind, unsigned arg);

#endif
