/* SPDX-License-Identifier: BSD-3-Clause */
#include "capture.h"

#include <endian.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "capfile/pcapng.h"
#include "engine/queue.h"

static const char *device_type = "";

void capture_set_type(const char *type)
{
	device_type = type;
}

/* ---- packets --------------------------------------------------------------------------------- */

static const char *why(const struct vp_cap_packet *p)
{
	return p->why ? vp_drop_str((enum vp_drop)(p->why - 1)) : NULL;
}

static struct virtio_net_hdr header(const struct vp_cap_packet *p)
{
	return (struct virtio_net_hdr){ .flags = p->flags, .gso_type = p->gso_type, .hdr_len = p->hdr_len,
					.gso_size = p->gso_size, .csum_start = p->csum_start,
					.csum_offset = p->csum_offset };
}

/* What became of it, and what its offload header says. NULL: nothing worth saying. */
static const char *comment(const struct vp_cap_packet *p, char *buf, size_t size)
{
	const struct virtio_net_hdr h = header(p);
	char note[200];
	int n = vp_pcapng_offload_note(note, sizeof(note), &h);

	if (!n && !p->why)
		return NULL;
	snprintf(buf, size, "%s%s%s%s", p->why ? "dropped by vhost-pcid: " : "", p->why ? why(p) : "",
		 n && p->why ? "; " : "", note);
	return buf;
}

void capture_write_packet(FILE *f, const struct vp_cap_packet *p, uint64_t lost)
{
	const struct virtio_net_hdr h = header(p);
	char text[300];
	struct vp_pcapng_packet out = {
		.ns = p->r.ns, .data = p + 1, .len = p->len, .caplen = p->caplen, .has_queue = true,
		.queue = p->r.queue, .lost = lost,
		.flags = p->r.side ? VP_PCAPNG_IN : VP_PCAPNG_OUT, .comment = comment(p, text, sizeof(text)),
	};

	out.flags |= vp_pcapng_offload_flags(&h);
	vp_pcapng_packet(f, &out);
}

static void put_time(FILE *f, uint64_t ns)
{
	time_t s = (time_t)(ns / 1000000000u);
	struct tm tm = { 0 };
	char text[16];

	localtime_r(&s, &tm);
	strftime(text, sizeof(text), "%H:%M:%S", &tm);
	fprintf(f, "%s.%06u ", text, (unsigned)(ns % 1000000000u / 1000));
}

static void mac_str(const uint8_t *m, char out[18])
{
	snprintf(out, 18, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
}

static void put_json(FILE *f, json_t *o)
{
	json_dumpf(o, f, JSON_COMPACT);
	putc('\n', f);
	json_decref(o);
}

static json_t *maybe(const char *s)
{
	return s ? json_string(s) : json_null();
}

void capture_print_packet(FILE *f, const struct vp_cap_packet *p, uint64_t lost, bool json)
{
	const uint8_t *b = (const uint8_t *)(p + 1);
	char text[300], dst[18] = "", src[18] = "";
	const char *note = comment(p, text, sizeof(text));
	bool ether = p->caplen >= 14;
	unsigned type = ether ? (unsigned)b[12] << 8 | b[13] : 0;

	if (ether) {
		mac_str(b, dst);
		mac_str(b + 6, src);
	}
	if (json) {
		put_json(f, json_pack("{s:I,s:s,s:i,s:i,s:i,s:o,s:o,s:o,s:o,s:o,s:I}", "time_ns",
				      (json_int_t)p->r.ns, "from", p->r.side ? "device" : "driver", "queue",
				      p->r.queue, "length", (int)p->len, "captured", (int)p->caplen, "source",
				      maybe(ether ? src : NULL), "destination", maybe(ether ? dst : NULL),
				      "ethertype", ether ? json_integer(type) : json_null(), "dropped", maybe(why(p)),
				      "note", maybe(note), "lost", (json_int_t)lost));
		return;
	}
	if (lost)
		fprintf(f, "(%" PRIu64 " packets dropped here for want of buffer)\n", lost);
	put_time(f, p->r.ns);
	fprintf(f, "%s queue %u, %s > %s, ethertype 0x%04x, length %u%s%s\n", p->r.side ? "in " : "out", p->r.queue,
		src, dst, type, p->len, note ? ": " : "", note ? note : "");
}

/* ---- requests -------------------------------------------------------------------------------- */

static uint64_t head_u64(const struct vp_cap_request *r, unsigned at)
{
	uint64_t v;

	memcpy(&v, r->head + at, sizeof(v));
	return le64toh(v);
}

static uint32_t head_u32(const struct vp_cap_request *r, unsigned at)
{
	uint32_t v;

	memcpy(&v, r->head + at, sizeof(v));
	return le32toh(v);
}

/* A request in words. What is not known is NULL or -1. */
struct request {
	char        type[24];
	int64_t     sector, bytes;
	const char *status;
};

static const char *blk_type(uint32_t op)
{
	switch (op) {
	case VIRTIO_BLK_T_IN: return "read";
	case VIRTIO_BLK_T_OUT: return "write";
	case VIRTIO_BLK_T_FLUSH: return "flush";
	case VIRTIO_BLK_T_GET_ID: return "get-id";
	case VIRTIO_BLK_T_DISCARD: return "discard";
	case VIRTIO_BLK_T_WRITE_ZEROES: return "write-zeroes";
	case 14 /* VIRTIO_BLK_T_SECURE_ERASE */: return "secure-erase";
	default: return NULL;
	}
}

static void read_blk(const struct vp_cap_request *r, struct request *q)
{
	static const char *const status[] = { "ok", "error", "unsupported" };
	uint32_t op = r->head_len >= 16 ? head_u32(r, 0) : UINT32_MAX;
	const char *word = blk_type(op);

	if (r->has_status)
		q->status = r->status < VP_ARRAY_SIZE(status) ? status[r->status] : "unknown";
	if (r->head_len < 16)
		return;
	if (word)
		snprintf(q->type, sizeof(q->type), "%s", word);
	else
		snprintf(q->type, sizeof(q->type), "type-%u", op);
	if (op == VIRTIO_BLK_T_IN || op == VIRTIO_BLK_T_OUT) {
		q->sector = (int64_t)head_u64(r, 8);
		q->bytes = op == VIRTIO_BLK_T_IN ? (int64_t)r->in_len - 1 : (int64_t)r->out_len - 16;
	} else if (op != VIRTIO_BLK_T_FLUSH && op != VIRTIO_BLK_T_GET_ID && r->head_len >= 28) {
		/* The first of its ranges. */
		q->sector = (int64_t)head_u64(r, 16);
		q->bytes = (int64_t)head_u32(r, 24) * 512;
	}
}

static void read_request(const struct vp_cap_request *r, struct request *q)
{
	*q = (struct request){ .sector = -1, .bytes = -1 };
	if (!strcmp(device_type, "blk"))
		read_blk(r, q);
	else if (!strcmp(device_type, "fs") && r->head_len >= 8)
		snprintf(q->type, sizeof(q->type), "fuse-%u", head_u32(r, 4));
	else if (!strcmp(device_type, "scsi") && r->head_len >= 20)
		snprintf(q->type, sizeof(q->type), "scsi-0x%02x", r->head[19]);
}

void capture_print_request(FILE *f, const struct vp_cap_request *r, uint64_t lost, bool json)
{
	struct request q;

	read_request(r, &q);
	if (json) {
		put_json(f, json_pack("{s:I,s:i,s:o,s:o,s:o,s:I,s:I,s:I,s:o,s:o,s:b,s:I}", "time_ns",
				      (json_int_t)r->r.ns, "queue", r->r.queue, "type", maybe(*q.type ? q.type : NULL),
				      "sector", q.sector < 0 ? json_null() : json_integer(q.sector), "bytes",
				      q.bytes < 0 ? json_null() : json_integer(q.bytes), "out_bytes",
				      (json_int_t)r->out_len, "in_bytes", (json_int_t)r->in_len, "used_bytes",
				      (json_int_t)r->used, "latency_ns",
				      r->latency_ns ? json_integer((json_int_t)r->latency_ns) : json_null(), "status",
				      maybe(q.status), "failed", r->failed, "lost", (json_int_t)lost));
		return;
	}
	if (lost)
		fprintf(f, "(%" PRIu64 " requests dropped here for want of buffer)\n", lost);
	put_time(f, r->r.ns);
	fprintf(f, "queue %u %s", r->r.queue, *q.type ? q.type : "request");
	if (q.sector >= 0)
		fprintf(f, ", sector %" PRId64, q.sector);
	if (q.bytes >= 0)
		fprintf(f, ", %" PRId64 " bytes", q.bytes);
	else
		fprintf(f, ", %u bytes out, %u bytes in", r->out_len, r->in_len);
	if (r->latency_ns)
		fprintf(f, ", %" PRIu64 ".%03" PRIu64 " us", r->latency_ns / 1000, r->latency_ns % 1000);
	fprintf(f, "%s%s%s\n", q.status ? ", " : "", q.status ? q.status : "",
		r->failed ? ", no back-end answered it" : "");
}
