/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a session has read and sent, in memory that outlives the process, for the messages that come with every packet
 * of a VM with a vIOMMU (docs/handover.md): IOTLB messages and their answers, misses and theirs. For these nothing else
 * is written down. The reader comes when the writer has ended, in the middle of a system call or between any two of
 * its instructions.
 *
 * Each is one system call, recvmmsg() or sendmmsg() of one message, whose header lies here: the kernel writes the
 * number of bytes into it within the call. So what was done and what is written down are never two things.
 */
#ifndef VP_VHOSTUSER_JOURNAL_H
#define VP_VHOSTUSER_JOURNAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* What the session was at when it ended. */
enum vu_doing {
	VU_DOING_NOTHING,
	VU_DOING_TAKE,  /* reads a message that it has done, and answers it */
	VU_DOING_ASK,   /* sends a request that will be answered */
	VU_DOING_HEAR,  /* reads the answer to one */
};

#define VU_JOURNAL_MASK 0xfffffffu /* of its counters */


struct vu_journal {
	/* enum vu_doing, requests sent, answers read: 8, 28 and 28 bits; one store changes them all */
	uint64_t state;
	uint64_t pad[7];
	struct mmsghdr in, out; /* of the two calls; of them only msg_len counts */
} __attribute__((aligned(64)));

/* asked and heard: requests of this session that were sent, and answers that were read, modulo VU_JOURNAL_MASK + 1. */
struct vu_journal_state {
	enum vu_doing doing;
	uint32_t asked, heard;
};
struct vu_journal_state vu_journal_get(const struct vu_journal *j);
void vu_journal_set(struct vu_journal *j, struct vu_journal_state s);

/* It is about to do that: in and out have not happened. */
void vu_journal_begin(struct vu_journal *j, enum vu_doing doing);
/* Bytes, or -errno. Nothing waits. */
ssize_t vu_journal_recv(struct vu_journal *j, int fd, void *buf, size_t n);
ssize_t vu_journal_send(struct vu_journal *j, int fd, const void *buf, size_t n);

/* For tests: called where the process may be killed. NULL: nobody looks. */
enum vu_journal_point {
	VU_AT_DONE,     /* a message is done, and not read yet */
	VU_AT_READ,     /* read, and not answered */
	VU_AT_ANSWERED, /* that is not written down */
	VU_AT_ASKED,
	VU_AT_HEARD,
};
extern void (*vu_journal_at)(enum vu_journal_point p);

#endif
