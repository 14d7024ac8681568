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

const char *rates_side(const json_t *l, const char *side, char *buf, size_t size, bool *marked)
{
	const char *by = cli_str(l, "counted_by");

	if (!strcmp(by, "nobody"))
		return NULL;
	snprintf(buf, size, "%s%s", side, !strcmp(by, "device-vm") ? "*" : "");
	*marked |= !strcmp(by, "device-vm");
	return buf;
}

void rates_legend(bool marked)
{
	if (marked)
		puts("* as the link's device VM says: the packets do not pass through the daemon");
}
