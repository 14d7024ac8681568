/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Input: 8 bytes of features, 10 of header, then the packet. What a receiver
 * without any offload gets must be complete packets that a second parser finds
 * right, and together the payload that was sent.
 */
#include <stdlib.h>
#include <string.h>

#include "net/offload.h"
#include "../unit/net/pktcheck.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)

static void cut(const uint8_t *pkt, uint32_t len, const struct virtio_net_hdr *h)
{
	struct vp_gso g;
	uint32_t n, done = 0, count = 0;
	struct pc_pkt k;
	uint8_t *out;

	if (vp_gso_init(&g, pkt, len, h))
		return;
	REQUIRE(g.hdr_len <= VP_GSO_HDR_MAX && g.hdr_len < len && g.mss);
	out = malloc(g.hdr_len + g.mss);
	while ((n = vp_gso_next(&g, out))) {
		REQUIRE(n > g.hdr_len && n <= g.hdr_len + g.mss);
		REQUIRE(!pc_parse(out, n, &k));
		REQUIRE(k.payload == g.hdr_len);
		REQUIRE(!memcmp(out + g.hdr_len, pkt + g.hdr_len + done, n - g.hdr_len));
		done += n - g.hdr_len;
		/* Many tiny segments only cost time here. */
		if (++count == 500)
			break;
	}
	REQUIRE(count == 500 || done == len - g.hdr_len);
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_net_hdr h;
	uint64_t features;
	uint8_t *pkt;
	uint32_t len;

	if (size < 18)
		return 0;
	memcpy(&features, data, 8);
	memcpy(&h, data + 8, 10);
	len = (uint32_t)size - 18;
	pkt = malloc(len ? len : 1); /* its own allocation: one byte too far is seen */
	memcpy(pkt, data + 18, len);

	cut(pkt, len, &h); /* as it came, unchecked */
	if (!vp_net_hdr_check(&h, len, features)) {
		REQUIRE(!(h.flags & ~VIRTIO_NET_HDR_F_NEEDS_CSUM));
		REQUIRE(vp_net_hdr_accepted(&h, UINT64_MAX));
		if (h.flags) {
			REQUIRE((uint32_t)h.csum_start + h.csum_offset + 2 <= len);
			cut(pkt, len, &h);
			REQUIRE(!vp_net_csum_complete(pkt, len, h.csum_start, h.csum_offset));
		} else {
			REQUIRE(h.gso_type == VIRTIO_NET_HDR_GSO_NONE && vp_net_hdr_accepted(&h, 0));
		}
	}
	free(pkt);
	return 0;
}
