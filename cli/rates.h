/* SPDX-License-Identifier: BSD-3-Clause */
/* Rows of counters: what stats and top have in common. */
#ifndef VP_CLI_RATES_H
#define VP_CLI_RATES_H

#include "cli.h"

/* "1.23M": a number a second, or a count, in at most 6 characters. buf of at least 16 bytes. */
const char *rates_human(double v, char *buf, size_t size);

/* The counters of the link called name in a result of link.stats; NULL when it is not there. */
json_t *rates_find(json_t *result, const char *name);

/*
 * The name of a side in a row: "driver", with a * where the counters are its device VM's word; *marked is set then.
 * NULL: nobody has counted.
 */
const char *rates_side(const json_t *l, const char *side, char *buf, size_t size, bool *marked);
/* Below a table that has such rows. */
void rates_legend(bool marked);

#endif
