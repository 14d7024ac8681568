/* SPDX-License-Identifier: BSD-3-Clause */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* "64M", "0x4000000" and the like, up to end. */
static bool number(const char *s, uint64_t *n, const char **end)
{
	static const char unit[] = "KMG";
	const char *u;
	char *e;

	errno = 0;
	*n = isdigit((unsigned char)*s) ? strtoull(s, &e, 0) : 0;
	if (!isdigit((unsigned char)*s) || errno)
		return false;
	u = *e ? strchr(unit, *e) : NULL;
	if (u && *n >> (64 - 10 * (u - unit + 1)))
		return false;
	if (u)
		*n <<= 10 * (u - unit + 1);
	*end = u ? e + 1 : e;
	return true;
}

/* ADDRESS+SIZE */
static bool range(const char *s, uint64_t *addr, uint64_t *size)
{
	const char *end;

	return number(s, addr, &end) && *end == '+' && number(end + 1, size, &end) && !*end && *size &&
	       *addr <= INT64_MAX && *size <= INT64_MAX;
}

static void show(const char *link, json_t *g)
{
	const char *message = json_string_value(json_object_get(g, "message"));
	json_t *r, *age = json_object_get(g, "age_s");
	size_t i;

	printf("link %s: source %s, %s, %lld bytes", link, cli_str(g, "source"), cli_str(g, "state"),
	       cli_int(g, "bytes"));
	if (json_is_integer(age))
		printf(", for %lld s, by %s", cli_int(g, "age_s"), cli_str(g, "by"));
	printf("\n");
	json_array_foreach(json_object_get(g, "ranges"), i, r)
		printf("  0x%llx+0x%llx  %s\n", (unsigned long long)cli_int(r, "address"),
		       (unsigned long long)cli_int(r, "size"), cli_str(r, "what"));
	if (message && *message)
		printf("  %s\n", message);
}

static int run(struct cli *c, int argc, char **argv)
{
	uint64_t addr, size;
	bool drop = false;
	json_t *p, *result;
	int n, r;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--drop"))
			continue;
		drop = true;
		memmove(&argv[i], &argv[i + 1], (size_t)(argc - i) * sizeof(argv[0]));
		argc--;
		i--;
	}
	r = cli_operands(c, &cmd_grant, argc, argv, 1, drop ? 1 : 2, &n);
	if (r >= 0)
		return r;
	p = json_pack("{s:s,s:b}", "name", argv[1], "drop", drop);
	if (n == 2) {
		if (!range(argv[2], &addr, &size)) {
			json_decref(p);
			fprintf(stderr, "vhost-pcictl: %s is not a range; give address and size like 0x3a000000+64M\n",
				argv[2]);
			return 2;
		}
		json_object_set_new(p, "address", json_integer((json_int_t)addr));
		json_object_set_new(p, "size", json_integer((json_int_t)size));
	}
	r = cli_call(c, "link.grant", p, &result);
	if (r)
		return r;
	if (c->json)
		cli_print_json(result);
	else
		show(argv[1], result);
	json_decref(result);
	return 0;
}

const struct cli_command cmd_grant = {
	"grant",
	"LINK [ADDRESS+SIZE | --drop] [--json]",
	"Show, give or drop what a link's driver VM grants",
	"For links of Mode=grant. With ADDRESS+SIZE (guest physical, like 0x3a000000+64M) the range is\n"
	"granted in the driver VM's name until its driver stops; usually vhost-pci-grant in that VM\n"
	"does so. --drop: nothing is granted any more.\n",
	run,
};
