/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a fuzz target once over every file of the directories (or files) given: no fuzzer needed. */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int one(const char *path)
{
	FILE *f = fopen(path, "rb");
	uint8_t *buf = NULL, *p;
	size_t size = 0, n;

	if (!f) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return -1;
	}
	do {
		p = realloc(buf, size + 65536);
		if (!p)
			abort();
		buf = p;
		n = fread(buf + size, 1, 65536, f);
		size += n;
	} while (n);
	fclose(f);
	/* Its own size, so that a sanitizer sees one byte too far. */
	p = realloc(buf, size ? size : 1);
	LLVMFuzzerTestOneInput(p, size);
	free(p);
	return 0;
}

int main(int argc, char **argv)
{
	unsigned count = 0;
	int i, bad = 0;

	for (i = 1; i < argc; i++) {
		char path[4096];
		struct dirent *d;
		struct stat st;
		DIR *dir;

		if (stat(argv[i], &st) == 0 && !S_ISDIR(st.st_mode)) {
			bad |= one(argv[i]);
			count++;
			continue;
		}
		dir = opendir(argv[i]);
		if (!dir) {
			fprintf(stderr, "%s: %s\n", argv[i], strerror(errno));
			return 1;
		}
		while ((d = readdir(dir))) {
			if (d->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "%s/%s", argv[i], d->d_name);
			bad |= one(path);
			count++;
		}
		closedir(dir);
	}
	printf("%u inputs replayed\n", count);
	return bad || !count ? 1 : 0;
}
