/* SPDX-License-Identifier: BSD-3-Clause */
#include "front/stats.h"

#include "guestmem/iotlb.h"

#include <string.h>

#include "base/util.h"
#include "vhostuser/codec.h"

_Static_assert(sizeof(struct vp_queue_stats) % sizeof(uint64_t) == 0, "counters are summed as an array");

void vp_stats_add(struct vp_queue_stats *sum, const struct vp_queue_stats *s)
{
	const uint64_t *from = (const uint64_t *)s;
	uint64_t *to = (uint64_t *)sum;

	for (size_t i = 0; i < sizeof(*s) / sizeof(*to); i++)
		to[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

void vp_stats_side(const struct vp_queue_stats *past, struct vp_vdev *v, struct vp_queue_stats *sum)
{
	*sum = *past;
	for (unsigned q = 0; v && q < vp_vdev_rings(v); q++)
		if (vp_vdev_use(v, q) != VP_QUEUE_RECEIVES)
			vp_stats_add(sum, &vp_vdev_ring(v, q)->rq.stats);
}

static void put(json_t *o, const char *key, uint64_t v)
{
	json_object_set_new(o, key, json_integer((json_int_t)v));
}

static json_t *counters(const struct vp_queue_stats *s)
{
	json_t *o = json_object(), *drops = json_object();
	uint64_t total = 0;

	put(o, "packets", s->packets);
	put(o, "bytes", s->bytes);
	for (unsigned i = 0; i < VP_DROP_MAX; i++) {
		put(drops, vp_drop_str(i), s->drops[i]);
		total += s->drops[i];
	}
	put(o, "dropped", total);
	json_object_set_new(o, "drops", drops);
	put(o, "gso", s->gso);
	put(o, "segmented", s->cut);
	put(o, "checksummed", s->summed);
	put(o, "calls", s->calls);
	put(o, "bursts", s->bursts);
	put(o, "busy_cycles", s->busy_cycles);
	return o;
}

json_t *vp_stats_json(const struct vp_queue_stats *sent, const struct vp_queue_stats *received, struct vp_vdev *v)
{
	json_t *o = json_object(), *rx = json_object(), *queues = json_array();

	json_object_set_new(o, "tx", counters(sent));
	put(rx, "packets", received->packets);
	put(rx, "bytes", received->bytes);
	json_object_set_new(o, "rx", rx);
	for (unsigned q = 0; v && q < vp_vdev_rings(v); q++) {
		struct vp_queue_stats s = { 0 };
		json_t *c;

		if (vp_vdev_use(v, q) == VP_QUEUE_RECEIVES)
			continue;
		vp_stats_add(&s, &vp_vdev_ring(v, q)->rq.stats);
		c = counters(&s);
		put(c, "queue", q);
		json_array_append_new(queues, c);
	}
	json_object_set_new(o, "queues", queues);
	return o;
}

static json_t *show_queue(struct vp_vdev *v, unsigned q)
{
	static const char *const use[] = { "transmit", "receive", "request" };
	const struct vp_vdev_ring *r = vp_vdev_ring(v, q);
	const char *state = "stopped";

	if (r->error[0])
		state = "broken";
	else if (r->usable)
		state = r->enabled ? "running" : "disabled";
	else if (r->wait)
		state = "waiting";
	return json_pack("{s:i,s:s,s:s,s:i,s:s,s:b,s:b,s:o}", "queue", q, "direction", use[vp_vdev_use(v, q)],
			 "state", state, "size", r->usable ? r->rq.vq.size : 0, "format",
			 r->usable && r->rq.vq.packed ? "packed" : "split", "kick", r->kick_fd >= 0, "call",
			 r->rq.call_fd >= 0, "error", r->error[0] ? json_string(r->error) : json_null());
}

static json_t *show_iommu(const struct vp_vdev *v)
{
	struct vp_iotlb_stats s;
	json_t *o;

	if (!v || !vp_vdev_iommu_stats(v, &s))
		return json_null();
	o = json_object();
	put(o, "entries", s.entries);
	put(o, "misses", s.misses);
	put(o, "updates", s.updates);
	put(o, "invalidations", s.invalidations);
	put(o, "lookups", s.lookups);
	return o;
}

json_t *vp_stats_show(const struct vp_conf_side *conf, const struct vp_peer *p, struct vp_vdev *v)
{
	json_t *o = json_object(), *queues = json_array();
	struct vp_peer_info i;
	char mac[18], text[1024];

	vp_peer_get_info(p, &i);
	json_object_set_new(o, "vm", json_string(conf->vm));
	json_object_set_new(o, "socket", json_string(conf->socket));
	json_object_set_new(o, "socket_mode", json_string(conf->socket_mode == VP_SOCKET_CLIENT ? "client" : "server"));
	json_object_set_new(o, "connected", json_boolean(i.state == VP_PEER_CONNECTED));
	json_object_set_new(o, "pid", i.pid ? json_integer(i.pid) : json_null());
	json_object_set_new(o, "uid", i.pid ? json_integer(i.uid) : json_null());
	put(o, "sessions", i.sessions);
	put(o, "refused", i.refused);
	json_object_set_new(o, "last", i.last[0] ? json_string(i.last) : json_null());
	vp_mac_str(conf->mac, mac);
	json_object_set_new(o, "mac", conf->has_mac ? json_string(mac) : json_null());
	json_object_set_new(o, "features",
			    v ? json_string(vu_features_str(vp_vdev_type(v), vp_vdev_features(v), text, sizeof(text)))
			      : json_null());
	put(o, "regions", v ? vp_vdev_regions(v) : 0);
	json_object_set_new(o, "iommu", show_iommu(v));
	json_object_set_new(o, "dirty_log", json_boolean(v && vp_vdev_logging(v)));
	for (unsigned q = 0; v && q < vp_vdev_rings(v); q++)
		json_array_append_new(queues, show_queue(v, q));
	json_object_set_new(o, "queues", queues);
	return o;
}
