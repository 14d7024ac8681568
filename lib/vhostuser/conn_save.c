/* SPDX-License-Identifier: BSD-3-Clause */
/* A connection as a record: what is half read and not yet sent. Threat model: base/record.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "vhostuser/codec.h"

enum tag { TAG_SOCKET = 32, TAG_RX, TAG_RX_FD, TAG_OUT, TAG_OUT_MSG, TAG_OUT_OFF, TAG_OUT_FD };

void vu_conn_save(const struct vu_conn *c, unsigned tag, struct vp_rec *r)
{
	uint8_t raw[VU_HDR_SIZE + VU_MAX_PAYLOAD];
	size_t head = VP_MIN(c->rx_have, (size_t)VU_HDR_SIZE);

	if (c->fd < 0)
		return;
	vp_rec_begin(r, tag);
	vp_rec_fd(r, TAG_SOCKET, VP_REC_FD_SOCKET, c->fd);
	memcpy(raw, &c->rx.hdr, head);
	if (c->rx_have > head)
		memcpy(raw + head, c->rx.p.bytes, c->rx_have - head);
	vp_rec_put(r, TAG_RX, raw, c->rx_have);
	for (unsigned i = 0; i < c->rx_nfds; i++)
		vp_rec_fd(r, TAG_RX_FD, VP_REC_FD_ANY, c->rx_fds[i]);
	for (unsigned i = 0; i < c->out_len; i++) {
		const struct vu_out *o = &c->out[(c->out_head + i) % VU_OUTQ];

		memcpy(raw, &o->msg->hdr, VU_HDR_SIZE);
		memcpy(raw + VU_HDR_SIZE, o->msg->p.bytes, o->msg->hdr.size);
		vp_rec_begin(r, TAG_OUT);
		vp_rec_put(r, TAG_OUT_MSG, raw, VU_HDR_SIZE + o->msg->hdr.size);
		vp_rec_u64(r, TAG_OUT_OFF, o->off);
		for (unsigned k = 0; !o->off && k < o->nfds; k++)
			vp_rec_fd(r, TAG_OUT_FD, VP_REC_FD_ANY, o->fds[k]);
		vp_rec_end(r);
	}
	vp_rec_end(r);
}

/* A whole or partial message, as it came. */
static int load_msg(struct vu_msg *m, const struct vp_rec_in *in, bool whole)
{
	if (in->n > VU_HDR_SIZE + VU_MAX_PAYLOAD)
		return -EPROTO;
	memset(m, 0, sizeof(*m));
	memcpy(&m->hdr, in->p, VP_MIN(in->n, (size_t)VU_HDR_SIZE));
	if (in->n < VU_HDR_SIZE)
		return whole ? -EPROTO : 0;
	if (m->hdr.size > VU_MAX_PAYLOAD || in->n > VU_HDR_SIZE + m->hdr.size ||
	    (whole && in->n != VU_HDR_SIZE + m->hdr.size))
		return -EPROTO;
	memcpy(m->p.bytes, in->p + VU_HDR_SIZE, in->n - VU_HDR_SIZE);
	return 0;
}

static int load_out(struct vu_conn *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vu_out *o = &c->out[(c->out_head + c->out_len) % VU_OUTQ];
	struct vp_rec_in rest = *in, body;
	struct vu_msg m;
	unsigned tag;
	int r = 0;

	if (c->out_len == VU_OUTQ || !vp_rec_find(in, TAG_OUT_MSG, &body) || load_msg(&m, &body, true))
		return vp_err_set(e, -EPROTO, "a message to be sent is malformed");
	memset(o, 0, sizeof(*o));
	o->msg = malloc(offsetof(struct vu_msg, p) + m.hdr.size);
	if (!o->msg)
		return vp_err_set(e, -ENOMEM, "out of memory");
	memcpy(o->msg, &m, offsetof(struct vu_msg, p) + m.hdr.size);
	o->len = VU_HDR_SIZE + m.hdr.size;
	o->off = vp_rec_num(in, TAG_OUT_OFF, 0);
	c->out_len++;
	if (o->off >= o->len)
		return vp_err_set(e, -EPROTO, "a message to be sent is malformed");
	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag != TAG_OUT_FD)
			continue;
		if (o->nfds == VU_MAX_FDS)
			return vp_err_set(e, -EPROTO, "a message to be sent has too many file descriptors");
		r = vp_rec_take_this(&body, VP_REC_FD_ANY, &o->fds[o->nfds], e);
		o->nfds += !r;
	}
	return r;
}

int vu_conn_restore(struct vu_conn *c, const struct vp_rec_in *in, struct vp_err *e)
{
	struct vp_rec_in rest = *in, body;
	unsigned tag;
	int r = vp_rec_take(in, TAG_SOCKET, VP_REC_FD_SOCKET, &c->fd, e);

	if (!r && c->fd < 0)
		r = vp_err_set(e, -EPROTO, "a connection has no socket");
	if (!r && vp_rec_find(in, TAG_RX, &body)) {
		r = load_msg(&c->rx, &body, false);
		if (r)
			return vp_err_set(e, r, "a message that is half read is malformed");
		c->rx_have = body.n;
	}
	while (!r && vp_rec_next(&rest, &tag, &body)) {
		if (tag == TAG_OUT)
			r = load_out(c, &body, e);
		if (tag != TAG_RX_FD)
			continue;
		if (c->rx_nfds == VU_MAX_FDS)
			return vp_err_set(e, -EPROTO, "a message that is half read has too many file descriptors");
		r = vp_rec_take_this(&body, VP_REC_FD_ANY, &c->rx_fds[c->rx_nfds], e);
		c->rx_nfds += !r;
	}
	return r;
}
