/* SPDX-License-Identifier: BSD-3-Clause */
/* Operands and output: tables, and JSON. */
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

int cli_operands(struct cli *c, const struct cli_command *cmd, int argc, char **argv, int min, int max, int *n)
{
	int out = 0;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			printf("Usage: vhost-pcictl %s %s\n%s.\n%s%s", cmd->name, cmd->args, cmd->summary,
			       *cmd->help ? "\n" : "", cmd->help);
			return 0;
		}
		if (!strcmp(argv[i], "--json")) {
			c->json = true;
		} else if (argv[i][0] == '-') {
			fprintf(stderr, "vhost-pcictl %s: there is no option %s; try vhost-pcictl %s --help\n",
				cmd->name, argv[i], cmd->name);
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

struct cli_table *cli_table(const struct cli_column *cols, size_t n)
{
	struct cli_table *t = calloc(1, sizeof(*t));

	if (!t) {
		fputs("vhost-pcictl: out of memory\n", stderr);
		return NULL;
	}
	t->cols = cols;
	t->n = n;
	for (size_t i = 0; i < n; i++)
		t->width[i] = strlen(cols[i].name);
	return t;
}

int cli_row(struct cli_table *t, const char *const *values)
{
	for (size_t i = 0; i < t->n; i++) {
		const char *v = values[i] ? values[i] : "";
		size_t len = strlen(v);

		if (t->len + len + 1 > t->cap) {
			size_t cap = 2 * t->cap + len + 4096;
			char *p = realloc(t->cells, cap);

			if (!p) {
				t->failed = true;
				return -ENOMEM;
			}
			t->cells = p;
			t->cap = cap;
		}
		memcpy(t->cells + t->len, v, len + 1);
		t->len += len + 1;
		if (len > t->width[i])
			t->width[i] = len;
	}
	t->rows++;
	return 0;
}

static void cell(const struct cli_table *t, size_t i, const char *v, size_t len)
{
	static const char blanks[64] = "                                                                ";
	size_t pad = t->width[i] - len;

	if (i)
		putc_unlocked(' ', stdout);
	for (; t->cols[i].right && pad; pad -= pad < sizeof(blanks) ? pad : sizeof(blanks))
		fwrite_unlocked(blanks, 1, pad < sizeof(blanks) ? pad : sizeof(blanks), stdout);
	fwrite_unlocked(v, 1, len, stdout);
	for (; i + 1 < t->n && pad; pad -= pad < sizeof(blanks) ? pad : sizeof(blanks))
		fwrite_unlocked(blanks, 1, pad < sizeof(blanks) ? pad : sizeof(blanks), stdout);
}

int cli_table_print(struct cli_table *t)
{
	const char *at = t->cells;
	int r = t->failed ? EXIT_REFUSED : 0;

	for (size_t i = 0; !t->failed && i < t->n; i++)
		cell(t, i, t->cols[i].name, strlen(t->cols[i].name));
	putchar('\n');
	for (size_t row = 0; !t->failed && row < t->rows; row++) {
		for (size_t i = 0; i < t->n; i++) {
			size_t len = strlen(at);

			cell(t, i, at, len);
			at += len + 1;
		}
		putchar('\n');
	}
	if (t->failed)
		fputs("vhost-pcictl: out of memory\n", stderr);
	free(t->cells);
	free(t);
	return r;
}

bool cli_socket_closed(const json_t *side, char *owner, size_t size)
{
	const char *path = json_string_value(json_object_get(side, "socket"));
	struct stat st;
	struct passwd *pw;

	if (json_is_true(json_object_get(side, "connected")) || json_is_true(json_object_get(side, "online")) ||
	    !path || !strcmp(cli_str(side, "socket_mode"), "client") || stat(path, &st) || !S_ISSOCK(st.st_mode) ||
	    st.st_mode & 0066)
		return false;
	pw = getpwuid(st.st_uid);
	snprintf(owner, size, "%s%s", st.st_uid ? "root and " : "", pw ? pw->pw_name : "the daemon's user");
	return true;
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
			fprintf(stderr,
				"vhost-pcictl: %s is not SECTION.KEY=VALUE, such as Driver.VM=web; see "
				"vhost-pci.link(5)\n",
				words[i]);
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
