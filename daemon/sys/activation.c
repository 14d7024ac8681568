/* SPDX-License-Identifier: BSD-3-Clause */
#include "sys/activation.h"

#include <string.h>

int vp_activation_take(struct vp_activation *a, const char *name)
{
	for (unsigned i = 0; i < a->n; i++)
		if (a->s[i].fd >= 0 && !strcmp(a->s[i].name, name)) {
			int fd = a->s[i].fd;

			a->s[i].fd = -1;
			return fd;
		}
	return -1;
}
