/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Port links: what is known of the device side's back-end, and whether the one that comes fits.
 *
 * Threat model: what a data path says of itself comes from a device VM. It was copied once and bounded by the port;
 * here the type's own rules are applied. Whatever it says, the driver VM's VMM is offered what the profile holds: the
 * first back-end decides it, within what the link file allows, and later ones only what may change (a disk's size).
 */
#include "link/port_link.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "context/context.h"
#include "link/profile.h"

void vp_plink_publish_profile(struct vp_plink *pl)
{
	const struct vp_conf_link *conf = &pl->l->conf;
	uint64_t not_the_paths = pl->dev->not_the_paths | pl->m->not_the_paths;
	struct vu_backend_cfg cfg = { 0 };
	uint8_t config[VP_DEVICE_CONFIG_MAX];
	unsigned len;

	if (pl->profile.known)
		vp_plink_offer(pl, &cfg);
	vp_port_set_link(pl->port, conf->device_type, pl->m->mode, pl->n, cfg.features, cfg.features & ~not_the_paths);
	len = pl->dev->config(conf, VP_SIDE_DRIVER, &pl->profile, true, config);
	/* A data path that is asked what it has finds here how much of it is wanted. */
	vp_port_set_config(pl->port, config, VP_MAX(len, pl->dev->wanted(conf)));
	vp_plink_set_hold(pl);
}

static void learn(struct vp_plink *pl, const struct vp_profile *come)
{
	const struct vp_conf_link *conf = &pl->l->conf;
	struct vp_err e = { 0 };

	pl->profile = *come;
	pl->profile.known = true;
	if (conf->has_features)
		pl->profile.features &= conf->features;
	vp_profile_save(&pl->l->d->conf->daemon, conf, &pl->profile);
	vp_plink_publish_profile(pl);
	vp_log(VP_LOG_NOTICE, "%s: the profile was learned from its back-end: %u queues, %u bytes of config space",
	       pl->dev_name, come->queues, come->config_size);
	if (vp_port_is_settled(pl->port) && vp_plink_open_driver_side(pl, &e))
		vp_log(VP_LOG_ERR, "%s: %s", pl->name, e.msg);
}

static void refresh(struct vp_plink *pl, const struct vp_profile *come)
{
	uint8_t config[VP_DEVICE_CONFIG_MAX];
	unsigned len;

	if (!vp_profile_refresh(&pl->profile, come))
		return;
	vp_profile_save(&pl->l->d->conf->daemon, &pl->l->conf, &pl->profile);
	/* Nothing else: queues may be running. */
	len = pl->dev->config(&pl->l->conf, VP_SIDE_DRIVER, &pl->profile, true, config);
	vp_port_set_config(pl->port, config, len);
	vp_log(VP_LOG_NOTICE, "%s: the back-end's config space has changed; the driver VM is told", pl->dev_name);
	if (pl->slot.v && !pl->closing)
		vp_vdev_config_changed(pl->slot.v);
}

uint32_t vp_plink_backend(struct vp_plink *pl, const struct vp_port_backend *b, uint64_t *missing)
{
	const struct vp_conf_link *conf = &pl->l->conf;
	unsigned wanted = pl->dev->wanted(conf);
	struct vp_profile come = { .features = b->features & VP_DEVICE_BITS, .queues = b->queues }, own = { 0 };
	const struct vp_profile *p = pl->profile.known ? &pl->profile : &own;
	struct vp_err e = { 0 };
	bool again;
	int r;

	/* A network's is all configured. */
	if (!pl->dev->waits)
		return VHP_ST_OK;
	/* A longer one is cut: the type says what is of interest. */
	come.config_size = VP_MIN(b->config_size, wanted);
	memcpy(come.config, b->config, come.config_size);
	if (!pl->profile.known) {
		own = come;
		if (conf->has_features)
			own.features &= conf->features;
	}
	r = vp_profile_fits(conf, p, &come, missing, &e);
	again = r && !strncmp(pl->misfit, e.msg, sizeof(pl->misfit) - 1);
	snprintf(pl->misfit, sizeof(pl->misfit), "%s", r ? e.msg : "");
	if (r && !again) {
		vp_log(VP_LOG_WARNING, "%s: the back-end does not fit: %s", pl->dev_name, e.msg);
		vp_link_event(pl->l, "link.state", "the back-end does not fit; see link.show");
	}
	if (r)
		return *missing ? VHP_ST_FEATURES : VHP_ST_PROFILE;
	if (!pl->profile.known)
		learn(pl, &come);
	else
		refresh(pl, &come);
	return VHP_ST_OK;
}

const struct vp_profile *vp_plink_profile(struct vp_link *l, bool forget)
{
	struct vp_plink *pl = l->impl;

	if (forget)
		vp_profile_forget(&l->d->conf->daemon, &l->conf);
	return &pl->profile;
}
