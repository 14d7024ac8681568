/* SPDX-License-Identifier: BSD-3-Clause */
/* Words for device types, and which keys go with which. What a type does is in device/device.h. */
#ifndef VP_DAEMON_CONF_TYPES_H
#define VP_DAEMON_CONF_TYPES_H

#include "conf/conf.h"

/* The virtio ID that a word names ("blk", "26"); 0 = none. */
uint32_t vp_type_parse(const char *word);
/* Virtqueues of the link's device, those included that Queues= does not count, that pass through a link. */
unsigned vp_type_queues(const struct vp_conf_link *l);

/* Its word, or its number. Valid until the next call. */
const char *vp_type_name(uint32_t id);
/* For messages: "net, blk, ...". */
const char *vp_type_words(void);
/* Are all keys of the link good for its type? -EINVAL with a message. */
int vp_type_check(const struct vp_conf_link *l, struct vp_err *e);

#endif
