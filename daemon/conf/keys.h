/* SPDX-License-Identifier: BSD-3-Clause */
/* The key tables behind conf.h, for files of this directory and main's options only. Main thread. */
#ifndef VP_DAEMON_CONF_KEYS_H
#define VP_DAEMON_CONF_KEYS_H

#include "conf/conf.h"

#define VP_CONF_MAX_KEYS 64  /* keys in one table; bounds vp_conf_key_set()'s return value */

/* >= 0: the key's index in its table, for finding duplicates. -ENOENT, -EINVAL with a message. */
int vp_conf_key_set(enum vp_conf_kind kind, void *object, const char *section, const char *key, const char *value,
		    struct vp_err *e);
bool vp_conf_section_known(enum vp_conf_kind kind, const char *section);
/* "[A], [B]" into buf. */
void vp_conf_sections(enum vp_conf_kind kind, char *buf, size_t size);
/* What vp_conf_note() keeps. */
void vp_conf_origins_free(struct vp_conf *c);
/* "0,2-5" into d->cpus. */
int vp_conf_parse_cpus(struct vp_conf_daemon *d, const char *v, struct vp_err *e);

#endif
