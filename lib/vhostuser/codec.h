/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The messages of the vhost-user protocol as a table, and a connection that reads and writes them
 * without ever blocking.
 *
 * Threat model: every byte and every fd that arrives comes from a VMM that a hostile guest may have
 * taken over. Such a VMM may send half a message and fall silent, announce any size, attach any number
 * of fds of any type, send what its state does not allow, and never read what we send. None of this may
 * block, allocate without bound, leak an fd, or read beyond a buffer. A message is handed on only after
 * its size, fd count, flags, feature and state have been checked against the table. Its *values* are
 * still untrusted then.
 *
 * Threads: a connection belongs to one thread. No function here blocks.
 */
#ifndef VP_VHOSTUSER_CODEC_H
#define VP_VHOSTUSER_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/record.h"
#include "vhostuser/proto.h"

/* Who sends the request. */
enum vu_dir { VU_FROM_FRONTEND, VU_FROM_BACKEND };

/* Does a message get an answer? */
enum vu_reply {
	VU_REPLY_ACK,       /* u64, only if NEED_REPLY is set and REPLY_ACK negotiated */
	VU_REPLY_ALWAYS,    /* has a reply of its own; NEED_REPLY changes nothing */
};

/* States of a back-end session, as a mask in the table. */
enum vu_state {
	VU_ST_NEW   = 1,    /* connected, SET_OWNER not yet seen */
	VU_ST_OWNED = 2,    /* SET_OWNER seen */
};
#define VU_ST_ANY (VU_ST_NEW | VU_ST_OWNED)

#define VU_MI_SOFT  0x01    /* a refusal that nobody asked to hear of does not end the session */
#define VU_MI_NEVER 0x02    /* known, but not served by this implementation */

struct vu_msg_info {
	const char *name;       /* "SET_MEM_TABLE"; NULL = no such message */
	uint16_t min, max;      /* payload of the request, bytes */
	uint8_t fd_min, fd_max;
	uint8_t reply;          /* enum vu_reply */
	int8_t pf;              /* protocol feature that must be negotiated, -1 = none */
	uint8_t states;         /* mask of enum vu_state */
	uint8_t flags;          /* VU_MI_* */
	uint16_t rmin, rmax;    /* payload of the reply, bytes (VU_REPLY_ACK: 8) */
	uint8_t rfd_max;        /* fds of the reply */
};

/* NULL when there is no such message. */
const struct vu_msg_info *vu_msg_info(enum vu_dir dir, uint32_t request);

/* "SET_MEM_TABLE" or "message 77"; buf (at least 24 bytes) is used for the latter. */
const char *vu_msg_name(enum vu_dir dir, uint32_t request, char *buf, size_t len);

struct vu_msg {
	struct vu_hdr hdr;
	union vu_payload p;
};

/*
 * Is the request a legal message of dir, in this state and with these protocol features? 0, or an error
 * with a sentence in *e that names the message, what is wrong and what was expected: -EBADMSG (flags,
 * size), -EBADF (fd count), -ENOSYS (no such message), -EOPNOTSUPP (feature not negotiated), -EPROTO
 * (state). After the last three the stream is intact, so the receiver may refuse the message and go on.
 */
int vu_msg_check(enum vu_dir dir, const struct vu_msg *m, unsigned int nfds, uint64_t pf,
		 unsigned int state, struct vp_err *e);

/* The same for a reply to request. -EBADMSG or -EBADF. */
int vu_reply_check(enum vu_dir dir, uint32_t request, const struct vu_msg *m, unsigned int nfds,
		   struct vp_err *e);

#define VU_OUTQ 32          /* messages that may wait for a peer that does not read */

struct vu_out {
	struct vu_msg *msg;     /* malloc'ed to its size */
	size_t off, len;        /* bytes sent, bytes in all */
	int fds[VU_MAX_FDS];    /* our duplicates, closed when sent */
	unsigned int nfds;
};

struct vu_conn {
	int fd;                 /* owned; -1 = closed */
	enum vu_dir rx_dir;     /* direction whose messages we receive (as requests) */
	bool rx_replies;        /* what arrives are replies to our requests, not requests */
	struct vu_msg rx;       /* the message being read */
	size_t rx_have;         /* bytes of rx present */
	int rx_fds[VU_MAX_FDS]; /* fds collected for it; owned */
	unsigned int rx_nfds;
	struct vu_out out[VU_OUTQ];
	unsigned int out_head, out_len;
};

/*
 * Takes over fd, a connected stream socket. Its O_NONBLOCK flag does not matter: a peer may share the
 * open file description and change it.
 */
void vu_conn_init(struct vu_conn *c, int fd, enum vu_dir rx_dir, bool rx_replies);

/* Closes the socket and every fd collected or waiting to be sent. Idempotent. */
void vu_conn_close(struct vu_conn *c);

/*
 * Read on. Returns 1 when c->rx and c->rx_fds hold a whole message (flags and
 * size sane, everything else unchecked: call vu_msg_check next), 0 when more must arrive
 * first, or -errno with *e set: -ECONNRESET (closed by the peer), -EBADMSG, -EBADF or that
 * of recvmsg. After an error the stream is lost: close it. Never reads beyond
 * the end of one message, so poll stays truthful.
 */
int vu_conn_recv(struct vu_conn *c, struct vp_err *e);

/* Forget the message just received; closes what is left in rx_fds (taken ones are -1). */
void vu_conn_next(struct vu_conn *c);

/*
 * Send m (its hdr.size counts) with nfds fds, which stay the caller's. What the
 * socket does not take is queued, fds duplicated. 0, or -errno with *e set; then
 * close. -ENOBUFS: VU_OUTQ messages wait already, the peer does not read.
 */
int vu_conn_send(struct vu_conn *c, const struct vu_msg *m, const int *fds, unsigned int nfds,
		 struct vp_err *e);

/*
 * Look at what comes next, and leave it where it is. 1: a message with so many bytes of payload, all of it, without
 * fds: m has them. 0: nothing. -1: anything else; also while one is half read, or some wait to be sent.
 */
int vu_conn_peek(const struct vu_conn *c, size_t payload, struct vu_msg *m);

/* Call when writable. 0 or -errno with *e set. */
int vu_conn_flush(struct vu_conn *c, struct vp_err *e);

/*
 * For another process that goes on with it (docs/handover.md): an element of that tag, none of a closed one. There into
 * a connection that was made without a socket; after an error close it. -EPROTO, -EBADF, -ENOMEM.
 */
void vu_conn_save(const struct vu_conn *c, unsigned int tag, struct vp_rec *r);
int vu_conn_restore(struct vu_conn *c, const struct vp_rec_in *in, struct vp_err *e);

static inline bool vu_conn_want_write(const struct vu_conn *c)
{
	return c->out_len > 0;
}

/*
 * Feature names. dir-independent; dev is a virtio device id (1 = net) that
 * names bits 0-23 and 50-63. NULL for a bit without a name.
 */
const char *vu_feature_name(unsigned int dev, unsigned int bit);
const char *vu_pf_name(unsigned int bit);

/*
 * "CSUM MRG_RXBUF VERSION_1 bit45": set bits by name, ascending, into buf;
 * always terminated, cut at a name when buf is short. Returns buf.
 */
char *vu_features_str(unsigned int dev, uint64_t features, char *buf, size_t len);
char *vu_pf_str(uint64_t pf, char *buf, size_t len);

#endif
