/* SPDX-License-Identifier: BSD-3-Clause */
#include "capfile/pcapng.h"

#include <string.h>
#include <sys/utsname.h>

/* Blocks and options, by the names of the format's specification. */
enum { SHB = 0x0a0d0d0a, IDB = 1, ISB = 5, EPB = 6 };
enum { OPT_END = 0, OPT_COMMENT = 1 };
enum { SHB_OS = 3, SHB_USERAPPL = 4 };
enum { IF_NAME = 2, IF_DESCRIPTION = 3, IF_TSRESOL = 9, IF_FILTER = 11 };
enum { EPB_FLAGS = 2, EPB_DROPCOUNT = 4, EPB_QUEUE = 6 };
enum { ISB_STARTTIME = 2, ISB_ENDTIME = 3, ISB_IFRECV = 4, ISB_IFDROP = 5, ISB_FILTERACCEPT = 6 };

#define LINKTYPE_ETHERNET 1
#define OPTIONS_MAX       2048

struct options {
	uint8_t  b[OPTIONS_MAX];
	uint32_t n;
};

/* Those that do not fit are left out: all of ours do. */
static void option(struct options *o, uint16_t code, const void *value, size_t len)
{
	const uint16_t head[2] = { code, (uint16_t)len };
	const size_t room = (len + 3) & ~(size_t)3;

	if (o->n + sizeof(head) + room + sizeof(head) > sizeof(o->b))
		return;
	memcpy(o->b + o->n, head, sizeof(head));
	memset(o->b + o->n + sizeof(head), 0, room);
	if (len)
		memcpy(o->b + o->n + sizeof(head), value, len);
	o->n += (uint32_t)(sizeof(head) + room);
}

static void text_option(struct options *o, uint16_t code, const char *s)
{
	option(o, code, s, strnlen(s, 500));
}

static void u64_option(struct options *o, uint16_t code, uint64_t v)
{
	option(o, code, &v, sizeof(v));
}

/* Times in options are two words, the high one first. */
static void time_option(struct options *o, uint16_t code, uint64_t ns)
{
	const uint32_t t[2] = { (uint32_t)(ns >> 32), (uint32_t)ns };

	option(o, code, t, sizeof(t));
}

/* fixed: its body in front of data and options. */
static void block(FILE *f, uint32_t type, const void *fixed, uint32_t nfixed, const void *data, uint32_t ndata,
		  struct options *o)
{
	static const uint8_t zeroes[4];
	const uint32_t pad = -ndata & 3;
	uint32_t total;

	if (o->n)
		option(o, OPT_END, NULL, 0);
	total = 12 + nfixed + ndata + pad + o->n;
	fwrite(&type, sizeof(type), 1, f);
	fwrite(&total, sizeof(total), 1, f);
	fwrite(fixed, 1, nfixed, f);
	if (ndata)
		fwrite(data, 1, ndata, f);
	fwrite(zeroes, 1, pad, f);
	fwrite(o->b, 1, o->n, f);
	fwrite(&total, sizeof(total), 1, f);
}

void vp_pcapng_begin(FILE *f, const struct vp_pcapng_interface *i)
{
	const struct { uint32_t magic; uint16_t major, minor; int64_t length; } shb = { 0x1a2b3c4d, 1, 0, -1 };
	const struct { uint16_t type, reserved; uint32_t snaplen; } idb = { LINKTYPE_ETHERNET, 0, i->snaplen };
	static const uint8_t nanoseconds = 9;
	struct options o = { .n = 0 };
	struct utsname u;
	char text[512];

	if (!uname(&u)) {
		snprintf(text, sizeof(text), "%s %s", u.sysname, u.release);
		text_option(&o, SHB_OS, text);
	}
	text_option(&o, SHB_USERAPPL, i->application);
	block(f, SHB, &shb, sizeof(shb), NULL, 0, &o);
	o.n = 0;
	text_option(&o, IF_NAME, i->name);
	text_option(&o, IF_DESCRIPTION, i->description);
	option(&o, IF_TSRESOL, &nanoseconds, 1);
	if (i->filter) {
		/* Its first byte: what follows is the expression itself. */
		snprintf(text, sizeof(text), "%c%.500s", 0, i->filter);
		option(&o, IF_FILTER, text, 1 + strnlen(i->filter, 500));
	}
	block(f, IDB, &idb, sizeof(idb), NULL, 0, &o);
}

void vp_pcapng_packet(FILE *f, const struct vp_pcapng_packet *p)
{
	const uint32_t epb[5] = { 0, (uint32_t)(p->ns >> 32), (uint32_t)p->ns, p->caplen, p->len };
	struct options o = { .n = 0 };

	option(&o, EPB_FLAGS, &p->flags, sizeof(p->flags));
	if (p->lost)
		u64_option(&o, EPB_DROPCOUNT, p->lost);
	if (p->has_queue)
		option(&o, EPB_QUEUE, &p->queue, sizeof(p->queue));
	if (p->comment)
		text_option(&o, OPT_COMMENT, p->comment);
	block(f, EPB, epb, sizeof(epb), p->data, p->caplen, &o);
}

void vp_pcapng_end(FILE *f, const struct vp_pcapng_stats *s)
{
	const uint32_t isb[3] = { 0, (uint32_t)(s->end_ns >> 32), (uint32_t)s->end_ns };
	struct options o = { .n = 0 };

	time_option(&o, ISB_STARTTIME, s->start_ns);
	time_option(&o, ISB_ENDTIME, s->end_ns);
	u64_option(&o, ISB_IFRECV, s->received);
	u64_option(&o, ISB_IFDROP, s->dropped);
	u64_option(&o, ISB_FILTERACCEPT, s->accepted);
	block(f, ISB, isb, sizeof(isb), NULL, 0, &o);
}

static bool is_gso(const struct virtio_net_hdr *h)
{
	return (h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) != VIRTIO_NET_HDR_GSO_NONE;
}

static const char *gso_name(const struct virtio_net_hdr *h)
{
	switch (h->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_TCPV4: return "TCPv4";
	case VIRTIO_NET_HDR_GSO_TCPV6: return "TCPv6";
	case 5 /* VIRTIO_NET_HDR_GSO_UDP_L4 */: return "UDP";
	default: return "unknown";
	}
}

uint32_t vp_pcapng_offload_flags(const struct virtio_net_hdr *h)
{
	return (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ? VP_PCAPNG_NO_CSUM : 0) | (is_gso(h) ? VP_PCAPNG_GSO : 0);
}

int vp_pcapng_offload_note(char *buf, size_t size, const struct virtio_net_hdr *h)
{
	int n = 0;

	buf[0] = 0;
	if (is_gso(h))
		n = snprintf(buf, size, "to be cut into %s segments of %u bytes", gso_name(h), h->gso_size);
	if (h->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM && (size_t)n < size)
		n += snprintf(buf + n, size - (size_t)n,
			      "%schecksum still to be filled in: from byte %u on, into byte %u", n ? "; " : "",
			      h->csum_start, h->csum_start + h->csum_offset);
	return n;
}
