/* SPDX-License-Identifier: BSD-3-Clause */
#include "rates.h"

#include <stdio.h>
#include <string.h>

const char *rates_human(double v, char *buf, size_t size)
{
	static const char units[] = " kMGTP";
	int u = 0;

	while (v >= 1000 && u < 5) {
		v /= 1000;
		u++;
	}
	if (!u)
		snprintf(buf, size, "%.0f", v);
	else
		snprintf(buf, size, "%.*f%c", v < 10 ? 2 : v < 100 ? 1 : 0, v, units[u]);
	return buf;
}

json_t *rates_find(json_t *result, const char *name)
{
	json_t *l;
	size_t i;

	json_array_foreach(json_object_get(result, "links"), i, l)
		if (!strcmp(cli_str(l, "name"), name))
			return l;
	return NULL;
}
