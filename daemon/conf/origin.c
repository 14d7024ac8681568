/* SPDX-License-Identifier: BSD-3-Clause */
/* Which line of which file made a setting; for explaining decisions, never for making them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conf/keys.h"

struct vp_conf_origin {
	enum vp_conf_kind kind;
	unsigned          line;
	char             *path;  /* shared by neighbours: owned by the first of them */
	char              name[VP_CONF_NAME_MAX], section[16], key[32];
};

void vp_conf_note(struct vp_conf *c, enum vp_conf_kind kind, const char *name, const char *section, const char *key,
		  const char *path, unsigned line)
{
	struct vp_conf_origin *o, *last = c->n_origins ? &c->origins[c->n_origins - 1] : NULL;
	char *shared = last && !strcmp(last->path, path) ? last->path : strdup(path);

	if (!shared)
		return;
	if (c->n_origins == c->cap_origins) {
		unsigned cap = c->cap_origins ? 2 * c->cap_origins : 64;

		o = realloc(c->origins, cap * sizeof(*o));
		if (!o) {
			if (!last || shared != last->path)
				free(shared);
			return;
		}
		c->origins = o;
		c->cap_origins = cap;
	}
	o = &c->origins[c->n_origins++];
	*o = (struct vp_conf_origin){ .kind = kind, .line = line, .path = shared };
	snprintf(o->name, sizeof(o->name), "%s", name);
	snprintf(o->section, sizeof(o->section), "%s", section);
	snprintf(o->key, sizeof(o->key), "%s", key);
}

void vp_conf_origins_free(struct vp_conf *c)
{
	for (unsigned i = 0; i < c->n_origins; i++)
		if (!i || c->origins[i].path != c->origins[i - 1].path)
			free(c->origins[i].path);
	free(c->origins);
}

bool vp_conf_where(const struct vp_conf *c, enum vp_conf_kind kind, const char *name, const char *section,
		   const char *key, char *buf, size_t size)
{
	for (unsigned i = c->n_origins; i-- > 0;) {
		const struct vp_conf_origin *o = &c->origins[i];

		if (o->kind != kind || strcmp(o->name, name) || strcmp(o->section, section) || strcmp(o->key, key))
			continue;
		snprintf(buf, size, "%s:%u", o->path, o->line);
		return true;
	}
	buf[0] = 0;
	return false;
}
