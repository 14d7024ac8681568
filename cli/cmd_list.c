/* SPDX-License-Identifier: BSD-3-Clause */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define COLUMNS 7

static const struct cli_column columns[COLUMNS] = {
	{ "LINK" }, { "TYPE" }, { "MODE" }, { "DRIVER" }, { "DEVICE" }, { "ENDPOINT" }, { "STATUS" },
};
static const char *const keys[COLUMNS] = { "name", "type", "mode", "driver_vm", "device_vm", "endpoint", "status" };

static struct cli_table *table_of(const json_t *result)
{
	struct cli_table *t = cli_table(columns, COLUMNS);
	json_t *l;
	size_t i;

	json_array_foreach(json_object_get(result, "links"), i, l) {
		const char *v[COLUMNS];

		for (int k = 0; k < COLUMNS; k++)
			v[k] = cli_str(l, keys[k]);
		if (t)
			cli_row(t, v);
	}
	return t;
}

/* Just behind this text, or NULL when something else stands there. */
static char *behind(char *at, const char *text)
{
	size_t n = strlen(text);

	return at && !strncmp(at, text, n) ? at + n : NULL;
}

/*
 * A plain string: its end becomes a zero, and what is behind it is returned. NULL when it is not plain.
 */
static char *plain(char *at, const char **value)
{
	char *end;

	if (!at || *at != '"')
		return NULL;
	*value = at + 1;
	end = at + 1 + strcspn(at + 1, "\"\\");
	if (*end != '"')
		return NULL;
	*end = 0;
	return end + 1;
}

/*
 * {"name":"ab","type":"net",...,"status":"up"}: the members of a brief link and no others, each a plain string. NULL:
 * it is not.
 */
static char *brief(char *at, const char *v[COLUMNS])
{
	unsigned seen = 0;

	at = behind(at, "{");
	while (at) {
		const char *key, *value = "";

		at = plain(at, &key);
		at = behind(at, ":");
		if (!at)
			return NULL;
		if (*at == '"')
			at = plain(at, &value);
		else
			at = *at == 't' ? behind(at, "true") : behind(at, "false");
		for (int k = 0; at && k < COLUMNS; k++)
			if (!strcmp(keys[k], key)) {
				v[k] = *value ? value : "-";
				seen |= 1u << k;
				break;
			}
		if (at && *at != ',')
			break;
		at = at ? at + 1 : NULL;
	}
	return seen == (1u << COLUMNS) - 1 ? behind(at, "}") : NULL;
}

/*
 * From the text of the usual answer, which is long where there are thousands of links. NULL: a JSON parser has to look.
 */
static struct cli_table *table_of_text(char *text)
{
	struct cli_table *t = cli_table(columns, COLUMNS);
	char *at = behind(text, "{\"links\":[");

	while (t && at && *at == '{') {
		const char *v[COLUMNS];

		at = brief(at, v);
		if (at)
			cli_row(t, v);
		if (at && *at == ',')
			at++;
	}
	if (t && behind(at, "]}"))
		return t;
	if (t) {
		free(t->cells);
		free(t);
	}
	return NULL;
}

static int run(struct cli *c, int argc, char **argv)
{
	struct cli_table *t = NULL;
	json_t *result;
	char *text, *copy;
	int n, r = cli_operands(c, &cmd_list, argc, argv, 0, 0, &n);

	if (r >= 0)
		return r;
	r = cli_call_text(c, "link.list", NULL, &text);
	if (r)
		return r;
	if (c->json) {
		puts(text);
		free(text);
		return 0;
	}
	copy = strdup(text);
	if (copy)
		t = table_of_text(copy);
	if (!t) {
		result = json_loads(text, 0, NULL);
		t = table_of(result);
		json_decref(result);
	}
	r = t ? cli_table_print(t) : EXIT_REFUSED;
	free(copy);
	free(text);
	return r;
}

const struct cli_command cmd_list = {
	"list", "[--json]", "List all links",
	"STATUS is up (both VMs are connected and ready), partial (only one is, or one is\n"
	"still starting), waiting (none is), down (switched off) or broken (a queue broke\n"
	"the rules; show says which and why).\n", run,
};
