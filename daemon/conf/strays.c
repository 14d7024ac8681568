/* SPDX-License-Identifier: BSD-3-Clause */
#include "conf/strays.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"

#define MAX_NAMED 20  /* of a directory; a log is no place for thousands */

bool vp_conf_has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n > m && !strcmp(s + n - m, suffix);
}

static bool ends_in_one_of(const char *s, const char *const *suffix, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (vp_conf_has_suffix(s, suffix[i]))
			return true;
	return false;
}

/* Copies that editors, patch and packages leave beside a file, notes, and what is disabled by its name. */
static bool leftover(const char *s)
{
	static const char *const suffix[] = {
		"~", "#", ".swp", ".bak", ".old", ".orig", ".rej", ".save", ".new", ".tmp", ".disabled", ".rpmnew",
		".rpmsave", ".rpmorig",
	};

	return s[0] == '.' || s[0] == '#' || strstr(s, ".dpkg-") || strstr(s, ".ucf-") || !strncmp(s, "README", 6) ||
	       ends_in_one_of(s, suffix, VP_ARRAY_SIZE(suffix));
}

/* In one of the directories themselves; a directory named NAME.d is for drop-ins. */
static bool known(const char *s, bool dir)
{
	static const char *const files[] = { ".vm", ".link" };
	static const char *const dirs[] = { ".vm.d", ".link.d" };

	if (dir)
		return !vp_conf_has_suffix(s, ".d") || !strcmp(s, "vhost-pci.conf.d") ||
		       ends_in_one_of(s, dirs, VP_ARRAY_SIZE(dirs));
	return !strcmp(s, "vhost-pci.conf") || ends_in_one_of(s, files, VP_ARRAY_SIZE(files));
}

static void look(const char *path, bool dropins, struct vp_conf_report *rep);

/* One entry of the directory d. True if it is a stray, which has been said unless enough have been. */
static bool entry(DIR *d, const char *path, const char *name, bool dropins, bool tell, struct vp_conf_report *rep)
{
	char sub[1024];
	struct stat st;
	bool dir;

	if (leftover(name) || fstatat(dirfd(d), name, &st, 0))
		return false;
	dir = S_ISDIR(st.st_mode);
	if (!dir && !S_ISREG(st.st_mode))
		return false;
	if (dropins ? dir || vp_conf_has_suffix(name, ".conf") : known(name, dir)) {
		if (!dropins && dir && vp_conf_has_suffix(name, ".d") &&
		    snprintf(sub, sizeof(sub), "%s/%s", path, name) < (int)sizeof(sub))
			look(sub, true, rep);
		return false;
	}
	if (tell)
		vp_conf_warning(rep, "%s/%s is not read: %s; rename it, or move it away", path, name,
				dropins ? "a drop-in is called NAME.conf"
				: dir ? "a directory of drop-ins is called NAME.link.d, NAME.vm.d or vhost-pci.conf.d"
				      : "a file here is called NAME.link, NAME.vm or vhost-pci.conf");
	return true;
}

/* A directory that cannot be read is an error for those who look for files there. */
static void look(const char *path, bool dropins, struct vp_conf_report *rep)
{
	DIR *d = opendir(path);
	struct dirent *de;
	unsigned n = 0;

	if (!d)
		return;
	while ((de = readdir(d)))
		n += entry(d, path, de->d_name, dropins, n < MAX_NAMED, rep);
	closedir(d);
	if (n > MAX_NAMED)
		vp_conf_warning(rep, "%s has %u more files that are not read", path, n - MAX_NAMED);
}

void vp_conf_strays(const struct vp_conf_paths *paths, const char *runtime_dir, struct vp_conf_report *rep)
{
	for (unsigned i = 0; i < paths->n; i++)
		if (strcmp(paths->dir[i], runtime_dir))
			look(paths->dir[i], false, rep);
}
