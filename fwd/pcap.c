/* SPDX-License-Identifier: BSD-3-Clause */
#include "fwd.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/time.h>

struct pcap {
	FILE *f;
	int   err;
};

struct file_hdr {
	uint32_t magic;
	uint16_t major, minor;
	uint32_t zone, sigfigs, snaplen, linktype;
};

struct packet_hdr {
	uint32_t sec, usec, caplen, len;
};

struct pcap *pcap_create(const char *path)
{
	const struct file_hdr h = { 0xa1b2c3d4, 2, 4, 0, 0, FWD_ROOM, 1 /* Ethernet */ };
	struct pcap *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->f = fopen(path, "wbe");
	if (!p->f) {
		free(p);
		return NULL;
	}
	if (fwrite(&h, sizeof(h), 1, p->f) != 1)
		p->err = -errno;
	return p;
}

void pcap_packet(struct pcap *p, const void *data, uint32_t len)
{
	struct packet_hdr h;
	struct timeval tv;

	if (p->err)
		return;
	gettimeofday(&tv, NULL);
	h = (struct packet_hdr){ (uint32_t)tv.tv_sec, (uint32_t)tv.tv_usec, len, len };
	if (fwrite(&h, sizeof(h), 1, p->f) != 1 || fwrite(data, len, 1, p->f) != 1)
		p->err = -errno;
}

int pcap_close(struct pcap *p)
{
	int err;

	if (!p)
		return 0;
	if (fclose(p->f) && !p->err)
		p->err = -errno;
	err = p->err;
	free(p);
	return err;
}
