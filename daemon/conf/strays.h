/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files in the configuration's directories that nobody reads, such as disk.lnk: their names are misspelt, or they lie
 * in the wrong place. What editors, packages and people leave there by habit is none of them.
 */
#ifndef VP_CONF_STRAYS_H
#define VP_CONF_STRAYS_H

#include <stdbool.h>

#include "conf/conf.h"

/* Does s end in suffix, with something before it? */
bool vp_conf_has_suffix(const char *s, const char *suffix);

/* Warn of each. The runtime directory is left out: it belongs to programs. */
void vp_conf_strays(const struct vp_conf_paths *paths, const char *runtime_dir, struct vp_conf_report *rep);

#endif
