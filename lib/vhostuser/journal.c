/* SPDX-License-Identifier: BSD-3-Clause */
#include "vhostuser/journal.h"

#include <errno.h>
#include <string.h>

/* As in virtq/place.h: the reader comes later, and it is the compiler alone that must keep the order. */
#define ORDER() __atomic_signal_fence(__ATOMIC_SEQ_CST)

void (*vu_journal_at)(enum vu_journal_point p);

struct vu_journal_state vu_journal_get(const struct vu_journal *j)
{
	return (struct vu_journal_state){ (enum vu_doing)(j->state >> 56), j->state >> 28 & VU_JOURNAL_MASK,
					  j->state & VU_JOURNAL_MASK };
}

void vu_journal_set(struct vu_journal *j, struct vu_journal_state s)
{
	ORDER();
	__atomic_store_n(&j->state,
			 (uint64_t)s.doing << 56 | (uint64_t)(s.asked & VU_JOURNAL_MASK) << 28 |
				 (s.heard & VU_JOURNAL_MASK),
			 __ATOMIC_RELAXED);
	ORDER();
}

void vu_journal_begin(struct vu_journal *j, enum vu_doing doing)
{
	struct vu_journal_state s = vu_journal_get(j);

	j->in.msg_len = j->out.msg_len = 0;
	s.doing = doing;
	vu_journal_set(j, s);
}

static void one(struct mmsghdr *h, struct iovec *v)
{
	/* Not msg_len, which has been set. */
	h->msg_hdr = (struct msghdr){ .msg_iov = v, .msg_iovlen = 1 };
}

ssize_t vu_journal_recv(struct vu_journal *j, int fd, void *buf, size_t n)
{
	struct iovec v = { buf, n };
	int r;

	one(&j->in, &v);
	do {
		/* seccomp control: recvmmsg */
		r = recvmmsg(fd, &j->in, 1, MSG_DONTWAIT, NULL);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : (ssize_t)j->in.msg_len;
}

ssize_t vu_journal_send(struct vu_journal *j, int fd, const void *buf, size_t n)
{
	struct iovec v = { (void *)buf, n };
	int r;

	one(&j->out, &v);
	do {
		/* seccomp control: sendmmsg */
		r = sendmmsg(fd, &j->out, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : (ssize_t)j->out.msg_len;
}
