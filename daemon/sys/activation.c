/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/activation.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int vp_activation_take_ours(struct vp_activation *a, const char *name, bool *ours)
{
	/* From the end: an upgrade adds a link's sockets just before the link asks for them, among thousands. */
	for (unsigned i = a->n; i-- > 0;)
		if (a->s[i].fd >= 0 && !strcmp(a->s[i].name, name)) {
			int fd = a->s[i].fd;

			a->s[i].fd = -1;
			*ours = a->s[i].ours;
			return fd;
		}
	*ours = false;
	return -1;
}

int vp_activation_take(struct vp_activation *a, const char *name)
{
	bool ours;

	return vp_activation_take_ours(a, name, &ours);
}

int vp_activation_add(struct vp_activation *a, const char *name, int fd, bool ours)
{
	void *s = realloc(a->s, (a->n + 1) * sizeof(*a->s));

	if (!s)
		return -ENOMEM;
	a->s = s;
	a->s[a->n].fd = fd;
	a->s[a->n].ours = ours;
	snprintf(a->s[a->n].name, sizeof(a->s[0].name), "%s", name);
	a->n++;
	return 0;
}
