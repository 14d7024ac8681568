/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port as its owner and its attachment make it and tell it things.
 *
 * Threat model: the device VM's guest may write any command at any time, in floods, and may never
 * answer. A command is copied once and the copy is checked; what the guest leaves undone ends at a
 * deadline. In fast mode the guest is trusted with the driver VM's memory (policy.c has seen
 * to that), but never with the daemon's: nothing it says becomes an index or an address before a check.
 */
#include "port/port.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/foreign.h"
#include "port/priv.h"

static struct vp_port *ports;

void vp_port_set_attachment(struct vp_port *p, const struct vp_port_att_ops *ops, void *att)
{
	p->aops = ops;
	p->att = att;
}

void vp_port_set_link(struct vp_port *p, uint32_t device_type, uint32_t mode, uint32_t nqueues, uint64_t offered,
		      uint64_t required)
{
	vp_port_begin(p);
	p->device_type = device_type;
	p->nqueues = VP_MIN(nqueues, p->conf.max_queues);
	p->offered = offered;
	p->required = required;
	p->st.device_type = htole32(device_type);
	p->st.mode = htole32(mode);
	p->st.max_queues = htole32(p->nqueues);
	p->st.nqueues = htole32(p->nqueues);
	p->st.offered_features[0] = htole64(offered);
	p->st.required_features[0] = htole64(required);
	for (unsigned q = 0; q < p->nqueues; q++) {
		port_queue_entry(p, q)->kick_signal = htole32(1 + q);
		port_queue_entry(p, q)->doorbell = htole32(p->conf.queue_doorbell + q);
	}
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_set_mode(struct vp_port *p, uint32_t mode, bool logged)
{
	vp_port_begin(p);
	p->st.mode = htole32(mode);
	p->logged = logged;
	port_show_status(p);
	vp_port_commit(p);
}

void vp_port_set_hold(struct vp_port *p, unsigned hold)
{
	p->hold = hold;
	port_evaluate(p);
}

void vp_port_set_maps(struct vp_port *p, bool on)
{
	vp_port_begin(p);
	p->maps = on;
	port_show_status(p);
	vp_port_commit(p);
}

void vp_port_maps_changed(struct vp_port *p)
{
	vp_port_begin(p);
	port_touch_regions(p);
	vp_port_commit(p);
}

void vp_port_set_driver(struct vp_port *p, enum vp_port_driver d, uint64_t features)
{
	vp_port_begin(p);
	if (p->driver == VP_PORT_NO_DRIVER && d != VP_PORT_NO_DRIVER)
		p->st.link_epoch = htole64(le64toh(p->st.link_epoch) + 1);
	if (d != p->driver)
		p->driver_us = d == VP_PORT_DRIVER_RUNS ? port_now(p) : 0;
	p->driver = d;
	p->features = features;
	/* A driver that starts anew mends its rings. */
	for (unsigned q = 0; d != VP_PORT_DRIVER_RUNS && q < p->nqueues; q++)
		port_queue_flags(p, q, 0, VHP_QUEUE_BROKEN);
	port_evaluate(p);
	vp_port_commit(p);
}

void vp_port_set_config(struct vp_port *p, const void *config, unsigned size)
{
	size = VP_MIN(size, VHP_CONFIG_MAX);
	if (le32toh(p->st.config_size) == size && !memcmp(p->st.config, config, size))
		return;
	vp_port_begin(p);
	memset(p->st.config, 0, sizeof(p->st.config));
	memcpy(p->st.config, config, size);
	p->st.config_size = htole32(size);
	p->st.config_generation = htole32(le32toh(p->st.config_generation) + 1);
	vp_port_commit(p);
}

void vp_port_set_written(struct vp_port *p, uint32_t off, uint32_t len, const uint8_t *all)
{
	vp_port_begin(p);
	memcpy(p->st.set_config, all, sizeof(p->st.set_config));
	p->st.set_offset = htole32(off);
	p->st.set_size = htole32(len);
	p->st.set_generation = htole32(le32toh(p->st.set_generation) + 1);
	vp_port_commit(p);
}

bool port_lends(const char *vm, dev_t dev, ino_t ino)
{
	struct stat st;

	for (const struct vp_port *p = ports; p; p = p->next) {
		if (!vm || !p->conf.device_vm || strcmp(vm, p->conf.device_vm))
			continue;
		if (!fstat(p->memfd, &st) && st.st_dev == dev && st.st_ino == ino)
			return true;
		for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
			if (p->win[i].state != WIN_FREE && p->win[i].fd >= 0 && p->win[i].dev == dev &&
			    p->win[i].ino == ino)
				return true;
	}
	return false;
}

bool vp_port_lends(const char *vm, int fd)
{
	struct stat st;

	return vp_foreign_kind(fd, NULL, NULL) == VP_FOREIGN_MEMORY && !fstat(fd, &st) &&
	       port_lends(vm, st.st_dev, st.st_ino);
}

int vp_port_new(struct vp_port **out, sd_event *event, const struct vp_port_conf *conf, const struct vp_port_ops *ops,
		void *ctx, struct vp_err *e)
{
	struct vp_port *p;
	int r;

	if (!conf->max_queues || conf->max_queues > VHP_MAX_QUEUES)
		return vp_err_set(e, -EINVAL, "a port has 1 to %u queues, not %u", VHP_MAX_QUEUES, conf->max_queues);
	p = calloc(1, sizeof(*p));
	if (!p)
		return vp_err_set(e, -ENOMEM, "port %.32s: out of memory", conf->name);
	p->event = event;
	p->conf = *conf;
	p->silent = conf->silent;
	if (!p->conf.nsignals)
		p->conf.nsignals = 1 + conf->max_queues;
	if (!p->conf.answer_timeout_us)
		p->conf.answer_timeout_us = 1000000;
	p->ops = ops;
	p->ctx = ctx;
	p->memfd = conf->kept ? conf->kept_memfd : -1;
	p->recordfd = conf->kept ? conf->kept_state : -1;
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		p->win[i].fd = -1;
	p->next = ports;
	ports = p;
	r = port_page_make(p, e);
	if (r) {
		vp_port_free(p);
		return r;
	}
	port_evaluate(p);
	*out = p;
	return 0;
}

void vp_port_goodbye(struct vp_port *p)
{
	if (!p || !p->record || p->gone || p->silent)
		return;
	vp_port_begin(p);
	/*
	 * With queues in its hands it stays attached, or it would not say SYNC: somebody may be waiting for that
	 * (guard.h).
	 */
	if (!p->left_running)
		p->st.flags = 0;
	p->st.link_status = htole32(VHP_LINK_DOWN);
	p->st.link_reason = htole32(VHP_REASON_DAEMON);
	for (unsigned q = 0; q < p->nqueues; q++)
		port_queue_flags(p, q, 0, VHP_QUEUE_STARTED | VHP_QUEUE_STOP | VHP_QUEUE_ENABLED);
	if (p->st.nregions)
		port_touch_regions(p);
	p->st.nregions = 0;
	vp_port_commit(p);
	p->gone = true;
	port_record_left(p);
}

void vp_port_abandon(struct vp_port *p)
{
	if (!p)
		return;
	p->silent = true;
	p->online = p->attached = false;
	p->aops = NULL;
}

void vp_port_free(struct vp_port *p)
{
	struct vp_port **at;

	if (!p)
		return;
	p->aops = NULL; /* whoever owns the attachment has freed it by now */
	vp_port_goodbye(p);
	sd_event_source_disable_unref(p->timer);
	for (unsigned q = 0; q < VHP_MAX_QUEUES; q++)
		vp_slow_end(&p->q[q].slow);
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		vp_close_foreign(&p->win[i].fd);
	port_mem_free(p);
	port_page_free(p);
	for (at = &ports; *at != p; at = &(*at)->next)
		;
	*at = p->next;
	free(p);
}
