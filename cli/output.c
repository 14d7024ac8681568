/* SPDX-License-Identifier: BSD-3-Clause */
/* Operands and output: tables (libsmartcols) and JSON from one description. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

int cli_operands(struct cli *c, const struct cli_command *cmd, int argc, char **argv, int min, int max, int *n)
{
	int out = 0;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			printf("Usage: vhost-pcictl %s %s\n%s.\n%s%s", cmd->name, cmd->args, cmd->summary, *cmd->help ? "\n" : "",
			       cmd->help);
			return 0;
		}
		if (!strcmp(argv[i], "--json")) {
			c->json = true;
		} else if (argv[i][0] == '-') {
			fprintf(stderr, "vhost-pcictl %s: there is no option %s; try vhost-pcictl %s --help\n", cmd->name, argv[i],
				cmd->name);
			return EXIT_USAGE;
		} else {
			argv[1 + out++] = argv[i];
		}
	}
	if (out < min || out > max) {
		fprintf(stderr, "vhost-pcictl %s: %s; usage: vhost-pcictl %s %s\n", cmd->name,
			out < min ? "an argument is missing" : "too many arguments", cmd->name, cmd->args);
		return EXIT_USAGE;
	}
	*n = out;
	return -1;
}

int cli_print_json(json_t *o)
{
	json_dumpf(o, stdout, JSON_INDENT(2));
	putchar('\n');
	return 0;
}

struct libscols_table *cli_table(struct cli *c, const char *name, const struct cli_column *cols, size_t n)
{
	struct libscols_table *t = scols_new_table();

	if (!t)
		goto fail;
	scols_table_set_name(t, name);
	scols_table_enable_json(t, c->json);
	for (size_t i = 0; i < n; i++) {
		struct libscols_column *col = scols_table_new_column(t, cols[i].name, 0, cols[i].flags);

		if (!col)
			goto fail;
		scols_column_set_json_type(col, cols[i].json);
	}
	return t;
fail:
	fputs("vhost-pcictl: out of memory\n", stderr);
	scols_unref_table(t);
	return NULL;
}

int cli_row(struct libscols_table *t, size_t n, const char *const *values)
{
	struct libscols_line *l = scols_table_new_line(t, NULL);

	if (!l)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		if (values[i] && scols_line_set_data(l, i, values[i]))
			return -ENOMEM;
	return 0;
}

int cli_table_print(struct libscols_table *t)
{
	scols_print_table(t);
	if (scols_table_is_json(t))
		putchar('\n');
	scols_unref_table(t);
	return 0;
}

const char *cli_str(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s && *s ? s : "-";
}

long long cli_int(const json_t *o, const char *key)
{
	return json_integer_value(json_object_get(o, key));
}

json_t *cli_config(char **words, int n)
{
	json_t *config = json_object();

	for (int i = 0; i < n; i++) {
		char *dot = strchr(words[i], '.'), *eq = dot ? strchr(dot, '=') : NULL;
		json_t *section;

		if (!eq || dot == words[i]) {
			fprintf(stderr, "vhost-pcictl: %s is not SECTION.KEY=VALUE, such as Driver.VM=web; see vhost-pci.link(5)\n", words[i]);
			json_decref(config);
			return NULL;
		}
		*dot = *eq = 0;
		section = json_object_get(config, words[i]);
		if (!section) {
			section = json_object();
			json_object_set_new(config, words[i], section);
		}
		if (json_object_get(section, dot + 1)) {
			fprintf(stderr, "vhost-pcictl: %s.%s is given twice; give it once\n", words[i], dot + 1);
			json_decref(config);
			return NULL;
		}
		if (json_object_set_new(section, dot + 1, json_string(eq + 1))) {
			fprintf(stderr, "vhost-pcictl: the value of %s.%s is not UTF-8 text\n", words[i], dot + 1);
			json_decref(config);
			return NULL;
		}
	}
	return config;
}
