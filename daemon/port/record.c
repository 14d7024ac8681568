/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Written by the daemon whose port it is; read by the next one, here, and by what stays when the daemon has gone
 * (orphan.c).
 */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "port/record.h"
#include "port/priv.h"

static void restore(struct vp_port *p)
{
	struct port_record *k = p->record;

	/* Even: the state page itself is written anew. */
	p->generation = ((k->generation + 1) & ~1u) + 2;
	p->st.regions_generation = htole32(k->regions_generation + 1);
	p->st.config_generation = htole32(k->config_generation);
	p->st.link_epoch = htole64(k->link_epoch);
	p->serial = k->serial;
	p->answered = k->answered;
	p->was_running = k->running;
	k->left = 0;
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		p->q[q].run = k->run[q];
}

struct port_record *port_record_map(int recordfd)
{
	struct stat st;
	void *k;

	/*
	 * seccomp control: newfstatat fstat mmap(arg2 & PROT_EXEC == 0) munmap; guard: newfstatat fstat mmap(arg2 &
	 * PROT_EXEC == 0) munmap
	 */
	if (fstat(recordfd, &st))
		return NULL;
	if (st.st_size < (off_t)sizeof(struct port_record)) {
		errno = EINVAL;
		return NULL;
	}
	k = mmap(NULL, sizeof(struct port_record), PROT_READ | PROT_WRITE, MAP_SHARED, recordfd, 0);
	return k == MAP_FAILED ? NULL : k;
}

void port_record_unmap(struct port_record *k)
{
	if (k)
		munmap(k, sizeof(*k));
}

int port_record_make(struct vp_port *p, struct vp_err *e)
{
	/* seccomp control: memfd_create ftruncate */
	if (!p->conf.kept)
		p->recordfd = memfd_create("vhost-pci port", MFD_CLOEXEC);
	if (p->recordfd < 0 || (!p->conf.kept && ftruncate(p->recordfd, sizeof(struct port_record)) < 0))
		return vp_err_set(e, -errno, "the port's state: %m");
	p->record = port_record_map(p->recordfd);
	if (!p->record && errno == EINVAL)
		return vp_err_set(e, -EINVAL, "the port's record was written by an older daemon");
	if (!p->record)
		return vp_err_set(e, -errno, "the port's state cannot be mapped: %m");
	if (!p->conf.kept) {
		*p->record = (struct port_record){ .version = PORT_RECORD_VERSION, .mem_size = p->mem_size };
		return 0;
	}
	if (p->record->version != PORT_RECORD_VERSION || p->record->mem_size != p->mem_size)
		return vp_err_set(e, -EINVAL,
				  p->record->version != PORT_RECORD_VERSION
					  ? "the port's record was written by another version of the daemon"
					  : "the port's memory is to have another size than the device VM's device");
	if (!p->silent)
		restore(p);
	return 0;
}

/* Before the page shows it: what the guest has seen is never newer than what is kept. */
void port_record_save(struct vp_port *p)
{
	struct port_record *k = p->record;

	for (unsigned q = 0; q < p->nqueues; q++)
		k->run[q] = p->q[q].run;
	k->running = p->left_running || p->was_running || p->settle_deadline || vp_port_in_guests_hands(p);
	k->generation = p->generation + 2;
	k->regions_generation = le32toh(p->st.regions_generation);
	k->config_generation = le32toh(p->st.config_generation);
	k->link_epoch = le64toh(p->st.link_epoch);
	k->serial = p->serial;
	k->answered = p->answered;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);  /* a process that is killed here stopped between two instructions */
}

void port_record_left(struct vp_port *p)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	p->record->left = 1;
}

void vp_port_leave(struct vp_port *p)
{
	if (p)
		p->left_running |= vp_port_in_guests_hands(p);
}

void port_record_free(struct vp_port *p)
{
	port_record_unmap(p->record);
	p->record = NULL;
	vp_close(&p->recordfd);
}

bool vp_port_was_kept(const struct vp_port *p)
{
	return p->conf.kept;
}

uint32_t *vp_port_attachment_word(struct vp_port *p)
{
	return &p->record->attachment_word;
}

/* Each is written before what it says is done: who reads it later asks for too much rather than too little. */
void vp_port_record_map(struct vp_port *p, unsigned slot, uint64_t off, uint64_t len)
{
	struct port_record_map *m = &p->record->map[slot];

	m->len = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	m->off = off;
	m->unmapping = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	m->len = len;
}

void vp_port_record_unmapping(struct vp_port *p, unsigned slot)
{
	p->record->map[slot].unmapping = 1;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

void vp_port_record_no_maps(struct vp_port *p)
{
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		p->record->map[i].len = 0;
}

int vp_port_record_fd(const struct vp_port *p)
{
	return p->recordfd;
}
