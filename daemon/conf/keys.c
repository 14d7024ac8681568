/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The keys of the configuration, one table for each kind of file, and the
 * parsers of their values. Both the files and the control socket's link.add
 * pass through here, so both know the same words and give the same errors.
 *
 * Threat model: files are the administrator's; link.add comes from a local
 * client that has passed the credential check. Values are still bounded and
 * checked, for mistakes are as common as malice.
 */
#include "conf/keys.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/util.h"
#include "conf/types.h"

static const char *const mode_names[] = { "auto", "relay", "fast", "copy", "grant", NULL };
static const char *const grant_names[] = { "swiotlb", "viommu", "memory", NULL };
static const char *const endpoint_names[] = { "virtio-net", "port", "vhost-user", NULL };
static const char *const server_names[] = { "server", "client", NULL };
static const char *const attachment_names[] = { "auto", "ivshmem", "shmem", "local", NULL };
static const char *const migration_names[] = { "auto", "no", "yes", NULL };
static const char *const side_names[] = { "driver", "device", NULL };
static const char *const offload_names[] = { "csum", "tso4", "tso6", "ecn", "mrgbuf", NULL };
static const char *const state_names[] = { "up", "down", NULL };

const char *vp_mode_name(unsigned mode)
{
	return mode < VP_MODE_COUNT ? mode_names[mode] : "?";
}

const char *vp_endpoint_name(unsigned endpoint)
{
	return endpoint < 3 ? endpoint_names[endpoint] : "?";
}

const char *vp_grant_name(unsigned source)
{
	return source < VP_GRANT_SOURCES ? grant_names[source] : "?";
}

const char *vp_side_name(unsigned side)
{
	return side < VP_SIDES ? side_names[side] : "?";
}

const char *vp_offloads_str(unsigned offloads, char *buf, size_t size)
{
	size_t n = 0;

	snprintf(buf, size, "none");
	for (unsigned i = 0; offload_names[i]; i++)
		if (offloads & (1u << i) && n < size)
			n += snprintf(buf + n, size - n, "%s%s", n ? "," : "", offload_names[i]);
	return buf;
}

/* ---- values ------------------------------------------------------------- */

struct key;
typedef int (*parse_fn)(void *field, const struct key *k, const char *value, struct vp_err *e);

struct key {
	const char *section;
	const char *name;
	enum vp_conf_effect effect;
	parse_fn    parse;
	size_t      off, at, len;      /* for parse; and the bytes of the object that hold the value */
	uint32_t    min, max;          /* parse_u32 */
	const char *const *words;      /* parse_enum */
};

static int parse_u32(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	unsigned long long n;
	char *end;

	errno = 0;
	n = strtoull(v, &end, 10);
	if (!isdigit((unsigned char)v[0]) || *end || errno || n < k->min || n > k->max)
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a number from %u to %u", k->name, v, k->min, k->max);
	*(uint32_t *)field = (uint32_t)n;
	return 0;
}

static void list_words(char *buf, size_t size, const char *const *words)
{
	size_t n = 0;

	buf[0] = 0;
	for (unsigned i = 0; words[i] && n < size; i++)
		n += snprintf(buf + n, size - n, "%s%s", i ? ", " : "", words[i]);
}

static int parse_enum(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	char all[96];

	for (unsigned i = 0; k->words[i]; i++)
		if (!strcmp(k->words[i], v)) {
			*(uint32_t *)field = i;
			return 0;
		}
	list_words(all, sizeof(all), k->words);
	return vp_err_set(e, -EINVAL, "%s=%.40s is not known; use one of: %s", k->name, v, all);
}

static int parse_state(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	uint32_t i = 0;
	int r = parse_enum(&i, k, v, e);

	if (!r)
		*(bool *)field = i != 0;
	return r;
}

static int parse_name(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	if (!vp_conf_name_ok(v))
		return vp_err_set(e, -EINVAL,
				  "%s=%.70s is not a name: 1 to %d of A-Z a-z 0-9 _ . -, not starting with . or -",
				  k->name, v, VP_CONF_NAME_MAX - 1);
	memset(field, 0, VP_CONF_NAME_MAX);
	memcpy(field, v, strlen(v));
	return 0;
}

static int parse_path(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	size_t n = strlen(v);

	if (n >= VP_CONF_SOCKET_MAX)
		return vp_err_set(e, -EINVAL,
				  "%s= is %zu bytes long, a UNIX socket's path has at most %d; use a shorter one",
				  k->name, n, VP_CONF_SOCKET_MAX - 1);
	for (size_t i = 0; i < n; i++)
		if (iscntrl((unsigned char)v[i]))
			return vp_err_set(e, -EINVAL, "%s= contains a control character", k->name);
	if (!n || v[n - 1] == '/')
		return vp_err_set(e, -EINVAL, "%s= is empty or ends in /; give a full path or leave the line out",
				  k->name);
	memset(field, 0, VP_CONF_SOCKET_MAX);
	memcpy(field, v, n);
	return 0;
}

static int parse_device_type(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	uint32_t id = vp_type_parse(v);

	if (!id)
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a device type; use %s", k->name, v, vp_type_words());
	*(uint32_t *)field = id;
	return 0;
}

/* "10G", "512M" or bytes; any number. */
static int parse_capacity(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	static const char unit[] = "KMGT";
	uint64_t n, max = UINT64_MAX >> 1;
	const char *u;
	unsigned shift;
	char *end;

	errno = 0;
	n = strtoull(v, &end, 10);
	u = *end ? strchr(unit, *end) : NULL;
	shift = u ? 10 * (unsigned)(u - unit + 1) : 0;
	if (!isdigit((unsigned char)v[0]) || errno || (*end && (!u || end[1])) || !n || n > max >> shift)
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a number of bytes like 10G", k->name, v);
	*(uint64_t *)field = n << shift;
	return 0;
}

static int parse_u64(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	unsigned long long n;
	char *end;

	errno = 0;
	n = strtoull(v, &end, 0);
	if (!isdigit((unsigned char)v[0]) || *end || errno || n < k->min || (k->max && n > k->max))
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a number from %u on", k->name, v, k->min);
	*(uint64_t *)field = n;
	return 0;
}

/* "10G": with K, M, G, T as telecommunication counts them, by thousands. */
static int parse_bits(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	static const char unit[] = "KMGT";
	unsigned long long n, most = 1000000000000ull, by = 1;
	const char *u;
	char *end;

	errno = 0;
	n = strtoull(v, &end, 10);
	u = *end ? strchr(unit, *end) : NULL;
	for (int i = u ? (int)(u - unit) : -1; i >= 0; i--)
		by *= 1000;
	if (!isdigit((unsigned char)v[0]) || errno || (*end && (!u || end[1])) || n > most / by || n * by < 8000)
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a number of bits from 8K to 1T, like 2500M", k->name, v);
	*(uint64_t *)field = n * by;
	return 0;
}

/* Bytes of the UTF-8 character at s, 0 = none, or one that does not print. */
static unsigned utf8(const unsigned char *s)
{
	unsigned n = s[0] < 0x80 ? 1 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;

	if (s[0] < 0x20 || s[0] == 0x7f || (s[0] >= 0x80 && s[0] < 0xc2) || s[0] > 0xf4)
		return 0;
	for (unsigned i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
	    (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

static int parse_text(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	unsigned n;

	if (strlen(v) >= VP_CONF_TEXT_MAX)
		return vp_err_set(e, -EINVAL, "%s= is longer than %d bytes; shorten it", k->name, VP_CONF_TEXT_MAX - 1);
	for (const char *at = v; *at; at += n) {
		n = utf8((const unsigned char *)at);
		if (!n)
			return vp_err_set(e, -EINVAL, "%s=: byte %d is not UTF-8 text", k->name, (int)(at - v) + 1);
	}
	memset(field, 0, VP_CONF_TEXT_MAX);
	memcpy(field, v, strlen(v));
	return 0;
}

/* A mask, such as 0x246. */
static int parse_features(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	struct vp_conf_link *l = field;
	int r = parse_u64(&l->features, k, v, e);

	if (!r)
		l->has_features = true;
	return r;
}

static int parse_tag(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	size_t n = strlen(v);

	if (!n || n > 36)
		return vp_err_set(e, -EINVAL, "%s=%.60s is not a tag of 1 to 36 bytes", k->name, v);
	memset(field, 0, 37);
	memcpy(field, v, n);
	return 0;
}

static int parse_mac(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	unsigned b[6];
	struct vp_conf_side *side = field;
	int n = -1;

	if (strlen(v) != 17 ||
	    sscanf(v, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &n) != 6 || n != 17)
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a MAC address like 52:54:00:12:34:56", k->name, v);
	if (b[0] & 1)
		return vp_err_set(e, -EINVAL, "%s=%s is a group address; the first byte must be even", k->name, v);
	if (!(b[0] | b[1] | b[2] | b[3] | b[4] | b[5]))
		return vp_err_set(e, -EINVAL, "%s=%s is the null address; leave the line out for the VMM's own",
				  k->name, v);
	for (unsigned i = 0; i < 6; i++)
		side->mac[i] = (uint8_t)b[i];
	side->has_mac = true;
	return 0;
}

/* The next word of a list separated by commas or blanks; NULL at the end. Cuts into s. */
static char *next_word(char **s)
{
	char *w = *s + strspn(*s, ", \t");

	if (!*w)
		return NULL;
	*s = w + strcspn(w, ", \t");
	if (**s)
		*(*s)++ = 0;
	return w;
}

static int parse_offloads(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	char copy[256], all[64], *s = copy, *w;
	uint32_t set = 0;

	snprintf(copy, sizeof(copy), "%s", v);
	while ((w = next_word(&s))) {
		unsigned i = 0;

		if (!strcmp(w, "all")) {
			set |= VP_OFFLOAD_ALL;
			continue;
		}
		if (!strcmp(w, "none"))
			continue;
		while (offload_names[i] && strcmp(offload_names[i], w))
			i++;
		if (!offload_names[i]) {
			list_words(all, sizeof(all), offload_names);
			return vp_err_set(e, -EINVAL, "%s=: %.40s is not known; use all, none or some of: %s", k->name,
					  w, all);
		}
		set |= 1u << i;
	}
	if (set & (VP_OFFLOAD_TSO4 | VP_OFFLOAD_TSO6) && !(set & VP_OFFLOAD_CSUM))
		return vp_err_set(e, -EINVAL, "%s=: segmentation offloads need csum; add it", k->name);
	if (set & VP_OFFLOAD_ECN && !(set & (VP_OFFLOAD_TSO4 | VP_OFFLOAD_TSO6)))
		return vp_err_set(e, -EINVAL, "%s=: ecn needs tso4 or tso6; add one", k->name);
	*(uint32_t *)field = set;
	return 0;
}

static int parse_users(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	struct vp_conf_vm *vm = field;
	char copy[256], *s = copy, *w, *end;

	snprintf(copy, sizeof(copy), "%s", v);
	memset(vm->users, 0, sizeof(vm->users));
	vm->n_users = 0;
	while ((w = next_word(&s))) {
		unsigned long uid;

		if (vm->n_users == VP_CONF_MAX_USERS)
			return vp_err_set(e, -EINVAL, "%s= names more than %d users", k->name, VP_CONF_MAX_USERS);
		uid = strtoul(w, &end, 10);
		if (!isdigit((unsigned char)*w) || *end || uid >= (uid_t)-1) {
			struct passwd *pw = getpwnam(w);

			if (!pw)
				return vp_err_set(e, -EINVAL,
						  "%s=: there is no user %.60s; create it or give a numeric id",
						  k->name, w);
			uid = pw->pw_uid;
		}
		vm->users[vm->n_users++] = (uid_t)uid;
	}
	return 0;
}

static int parse_group(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	if (!vp_conf_name_ok(v) || !getgrnam(v))
		return vp_err_set(e, -EINVAL, "%s=: there is no group %.60s; create it or leave the line out", k->name,
				  v);
	return parse_name(field, k, v, e);
}

int vp_conf_parse_cpus(struct vp_conf_daemon *d, const char *v, struct vp_err *e)
{
	char copy[256], *s = copy, *w, *end;

	snprintf(copy, sizeof(copy), "%s", v);
	memset(d->cpus, 0, sizeof(d->cpus));
	d->n_cpus = 0;
	while ((w = next_word(&s))) {
		unsigned long a = strtoul(w, &end, 10), b = a;

		if (isdigit((unsigned char)*w) && *end == '-' && isdigit((unsigned char)end[1]))
			b = strtoul(end + 1, &end, 10);
		if (!isdigit((unsigned char)*w) || *end || b < a || b > 4095)
			return vp_err_set(e, -EINVAL, "CPU list: %.40s is not a CPU number or range like 2-5", w);
		for (; a <= b; a++) {
			if (d->n_cpus == VP_CONF_MAX_CPUS)
				return vp_err_set(e, -EINVAL, "CPU list: more than %d CPUs", VP_CONF_MAX_CPUS);
			d->cpus[d->n_cpus++] = (uint32_t)a;
		}
	}
	return 0;
}

/* "64G" and the like, at most most of a unit; 0 = that is none. */
static uint64_t bytes_of(const char *v, uint64_t most)
{
	static const char unit[] = "KMGT";
	uint64_t n;
	const char *u;
	char *end;

	errno = 0;
	n = strtoull(v, &end, 10);
	u = *end ? strchr(unit, *end) : NULL;
	return isdigit((unsigned char)v[0]) && u && !end[1] && !errno && n <= most ? n << (10 * (u - unit + 1)) : 0;
}

/* Any number of bytes between the megabytes of min and max. */
static int parse_bytes(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	uint64_t size = bytes_of(v, UINT64_C(1) << 20);

	if (size >> 20 < k->min || size > (uint64_t)k->max << 20)
		return vp_err_set(e, -EINVAL, "%s=%.40s is not a size from %uM to %uT, like 48G", k->name, v, k->min,
				  k->max >> 20);
	*(uint64_t *)field = size;
	return 0;
}

/* A power of two, between the megabytes of min and max. */
static int parse_size(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	uint64_t size = bytes_of(v, 1024);

	if (!vp_is_pow2(size) || size >> 20 < k->min || size >> 20 > k->max)
		return vp_err_set(e, -EINVAL,
				  "%s=%.40s is not a size that fits: a power of two from %uM to %uG, such as %uM",
				  k->name, v, k->min, k->max / 1024, VP_MIN(VP_MAX(k->min, 16u), k->max));
	*(uint64_t *)field = size;
	return 0;
}

/* Device ids as QEMU takes them, separated by blanks or commas. */
static int parse_ids(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	char copy[VP_CONF_BUS_MAX], *s = copy, *w, *out = field;
	size_t n = 0;

	if (strlen(v) >= sizeof(copy))
		return vp_err_set(e, -EINVAL, "%s= is longer than %d bytes; name fewer ports", k->name,
				  VP_CONF_BUS_MAX - 1);
	snprintf(copy, sizeof(copy), "%s", v);
	memset(out, 0, VP_CONF_BUS_MAX);
	while ((w = next_word(&s))) {
		if (!vp_conf_name_ok(w))
			return vp_err_set(e, -EINVAL, "%s=: %.60s is not the id of a device", k->name, w);
		n += snprintf(out + n, VP_CONF_BUS_MAX - n, "%s%s", n ? " " : "", w);
	}
	return 0;
}

static const char *const bool_names[] = { "no", "yes", NULL };
/* enum vp_isolate_stage, from 1 on */
static const char *const stage_names[] = { "process", "namespaces", "identity", "files", "calls", NULL };

static int parse_bool(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	const struct key words = { .name = k->name, .words = bool_names };

	return parse_state(field, &words, v, e);
}

/* "namespaces landlock" or "all" into a mask of enum vp_isolate_stage. */
static int parse_stages(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	char copy[256], all[96], *s = copy, *w;
	uint32_t set = 0;

	snprintf(copy, sizeof(copy), "%s", v);
	while ((w = next_word(&s))) {
		unsigned i = 0;

		while (stage_names[i] && strcmp(stage_names[i], w))
			i++;
		if (!stage_names[i] && strcmp(w, "all")) {
			list_words(all, sizeof(all), stage_names);
			return vp_err_set(e, -EINVAL, "%s=: %.40s is not known; use all or some of: %s", k->name, w,
					  all);
		}
		set |= stage_names[i] ? 2u << i : (2u << i) - 2;
	}
	*(uint32_t *)field = set;
	return 0;
}

/* Absolute paths, separated by blanks or commas. */
static int parse_dirs(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	char copy[VP_CONF_DIRS_MAX], *s = copy, *w, *out = field;
	size_t n = 0;

	if (strlen(v) >= sizeof(copy))
		return vp_err_set(e, -EINVAL, "%s= is longer than %d bytes; name fewer of them", k->name,
				  VP_CONF_DIRS_MAX - 1);
	snprintf(copy, sizeof(copy), "%s", v);
	memset(out, 0, VP_CONF_DIRS_MAX);
	while ((w = next_word(&s))) {
		if (*w != '/')
			return vp_err_set(e, -EINVAL, "%s=: %.80s is not an absolute path", k->name, w);
		n += (size_t)snprintf(out + n, VP_CONF_DIRS_MAX - n, "%s%s", n ? " " : "", w);
	}
	return 0;
}

static int parse_user(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	if (!vp_conf_name_ok(v) || !getpwnam(v))
		return vp_err_set(e, -EINVAL, "%s=: there is no user %.60s; create it or leave the line out", k->name,
				  v);
	return parse_name(field, k, v, e);
}

/* A file's absolute path, or "log". */
static int parse_audit(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	if (!strcmp(v, "log")) {
		memset(field, 0, VP_CONF_SOCKET_MAX);
		return 0;
	}
	if (*v != '/')
		return vp_err_set(e, -EINVAL, "%s=%.80s is neither log nor an absolute path", k->name, v);
	return parse_path(field, k, v, e);
}

static int parse_not(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	bool yes = false;
	int r = parse_bool(&yes, k, v, e);

	if (!r)
		*(bool *)field = !yes;
	return r;
}

static int parse_cpus(void *field, const struct key *k, const char *v, struct vp_err *e)
{
	return vp_conf_parse_cpus(field, v, e);
}

/* ---- tables ------------------------------------------------------------- */

#define SPAN(s, first, last) offsetof(s, first), offsetof(s, last) + sizeof(((s *)0)->last) - offsetof(s, first)
#define FIELD(s, f) offsetof(s, f), SPAN(s, f, f)
#define D(f) FIELD(struct vp_conf_daemon, f)
#define V(f) FIELD(struct vp_conf_vm, f)
#define L(f) FIELD(struct vp_conf_link, f)
#define E(name) VP_EFFECT_##name
#define MAC(s) offsetof(struct vp_conf_link, side[s]), SPAN(struct vp_conf_link, side[s].has_mac, side[s].mac)

static const struct key daemon_keys[] = {
	{ "Daemon", "Threads", E(START), parse_u32, D(threads), 1, VP_CONF_MAX_CPUS },
	{ "Daemon", "CPUs", E(START), parse_cpus, 0, SPAN(struct vp_conf_daemon, cpus, n_cpus) },
	{ "Daemon", "BusyPollMicroseconds", E(START), parse_u32, D(busy_poll_us), 0, 1000000 },
	{ "Daemon", "MaxLinks", E(LIVE), parse_u32, D(max_links), 1, 65536 },
	{ "Daemon", "RuntimeDirectory", E(START), parse_path, D(runtime_dir) },
	{ "Daemon", "SocketDirectories", E(START), parse_dirs, D(socket_dirs) },
	{ "Daemon", "User", E(START), parse_user, D(user) },
	{ "Daemon", "AuditLog", E(START), parse_audit, D(audit_log) },
	{ "Daemon", "StateDirectory", E(START), parse_path, D(state_dir) },
	{ "Daemon", "UpgradeBinaries", E(START), parse_dirs, D(upgrade_binaries) },
	{ "Daemon", "RequireIsolation", E(START), parse_stages, D(require) },
	{ "Daemon", "SystemCallFilter", E(START), parse_not, D(no_filter) },
	{ "Control", "Socket", E(START), parse_path, D(control_socket) },
	{ "Control", "Group", E(START), parse_group, D(control_group) },
	{ "Metrics", "Socket", E(START), parse_path, D(metrics_socket) },
	{ "Metrics", "Group", E(START), parse_group, D(metrics_group) },
	{ NULL }
};

static const struct key vm_keys[] = {
	{ "VM", "TrustGroup", E(POLICY), parse_name, V(trust_group) },
	{ "VM", "User", E(OWNER), parse_users, 0, SPAN(struct vp_conf_vm, users, n_users) },
	{ "VM", "MaxLinks", E(LIVE), parse_u32, V(max_links), 1, 65536 },
	{ "VM", "MaxQueues", E(LIVE), parse_u32, V(max_queues), 1, 65536 },
	{ "VM", "MaxPool", E(LIVE), parse_size, V(max_pool), 1, 1u << 23 },
	{ "VM", "PacketsPerSecond", E(POLICY), parse_u32, V(pps), 1, UINT32_MAX },
	{ "VM", "MaxMemory", E(LIVE), parse_bytes, V(max_memory), 1, 32u << 20 },
	{ "VM", "AllowGrant", E(POLICY), parse_bool, V(allow_grant) },
	{ "VM", "MemoryFrom", E(LIVE), parse_dirs, V(memory_from) },
	{ NULL }
};

static const struct key link_keys[] = {
	{ "Link", "Mode", E(ANEW), parse_enum, L(mode), .words = mode_names },
	{ "Link", "Type", E(ANEW), parse_device_type, L(device_type) },
	{ "Link", "DeviceType", E(ANEW), parse_device_type, L(device_type) },
	{ "Link", "Migration", E(ANEW), parse_enum, L(migration), .words = migration_names },
	{ "Link", "Queues", E(ANEW), parse_u32, L(pairs), 1, VP_CONF_MAX_PAIRS },
	{ "Link", "State", E(LIVE), parse_state, L(start_down), .words = state_names },
	{ "Link", "Description", E(LIVE), parse_text, L(description) },
	{ "Driver", "VM", E(ANEW), parse_name, L(side[VP_SIDE_DRIVER].vm) },
	{ "Driver", "Socket", E(ANEW), parse_path, L(side[VP_SIDE_DRIVER].socket) },
	{ "Driver", "SocketMode", E(ANEW), parse_enum, L(side[VP_SIDE_DRIVER].socket_mode), .words = server_names },
	{ "Driver", "Grant", E(ANEW), parse_enum, L(grant), .words = grant_names },
	{ "Driver", "GrantSize", E(ANEW), parse_bytes, L(grant_size), 1, 32u << 20 },
	{ "Driver", "GrantSocket", E(ANEW), parse_path, L(grant_socket) },
	{ "Driver", "QMP", E(LIVE), parse_path, L(driver_qmp) },
	{ "Driver", "QMPMode", E(LIVE), parse_enum, L(driver_qmp_mode), .words = server_names },
	{ "Driver", "NIC", E(LIVE), parse_name, L(nic) },
	{ "Device", "VM", E(ANEW), parse_name, L(side[VP_SIDE_DEVICE].vm) },
	{ "Device", "Endpoint", E(ANEW), parse_enum, L(endpoint), .words = endpoint_names },
	{ "Device", "Socket", E(ANEW), parse_path, L(side[VP_SIDE_DEVICE].socket) },
	{ "Device", "SocketMode", E(ANEW), parse_enum, L(side[VP_SIDE_DEVICE].socket_mode), .words = server_names },
	{ "Device", "Attachment", E(ANEW), parse_enum, L(attachment), .words = attachment_names },
	{ "Device", "QMP", E(LIVE), parse_path, L(qmp) },
	{ "Device", "QMPMode", E(LIVE), parse_enum, L(qmp_mode), .words = server_names },
	{ "Device", "HotplugBus", E(LIVE), parse_ids, L(hotplug_bus) },
	{ "Device", "ApertureSize", E(ANEW), parse_size, L(aperture), 512, 1u << 23 },
	{ "Device", "PoolSize", E(ANEW), parse_size, L(pool), 1, 4096 },
	{ "Device", "PackedRings", E(ANEW), parse_bool, L(packed) },
	{ "Device", "PlainRings", E(ANEW), parse_bool, L(plain) },
	{ "Profile", "Capacity", E(ANEW), parse_capacity, L(capacity) },
	{ "Profile", "BlockSize", E(ANEW), parse_u32, L(block_size), 512, 65536 },
	{ "Profile", "ReadOnly", E(ANEW), parse_bool, L(read_only) },
	{ "Profile", "Tag", E(ANEW), parse_tag, L(tag) },
	{ "Profile", "CID", E(ANEW), parse_u64, L(cid), 3, UINT32_MAX - 1 },
	{ "Profile", "ConfigSize", E(ANEW), parse_u32, L(config_size), 0, 256 },
	{ "Profile", "Features", E(ANEW), parse_features, 0, SPAN(struct vp_conf_link, has_features, features) },
	{ "Net", "DriverMAC", E(AGAIN), parse_mac, MAC(VP_SIDE_DRIVER) },
	{ "Net", "DeviceMAC", E(AGAIN), parse_mac, MAC(VP_SIDE_DEVICE) },
	{ "Net", "MTU", E(AGAIN), parse_u32, L(mtu), 68, 65535 },
	{ "Net", "PacketsPerSecond", E(POLICY), parse_u32, L(pps), 1, UINT32_MAX },
	{ "Net", "BitsPerSecond", E(POLICY), parse_bits, L(bps) },
	{ "Net", "Offloads", E(ANEW), parse_offloads, L(offloads) },
	{ NULL }
};

static const struct key *const tables[] = {
	[VP_CONF_DAEMON] = daemon_keys, [VP_CONF_VM] = vm_keys, [VP_CONF_LINK] = link_keys,
};

bool vp_conf_section_known(enum vp_conf_kind kind, const char *section)
{
	for (const struct key *k = tables[kind]; k->name; k++)
		if (!strcmp(k->section, section))
			return true;
	return false;
}

void vp_conf_sections(enum vp_conf_kind kind, char *buf, size_t size)
{
	const char *last = "";
	size_t n = 0;

	buf[0] = 0;
	for (const struct key *k = tables[kind]; k->name && n < size; k++) {
		if (strcmp(k->section, last))
			n += snprintf(buf + n, size - n, "%s[%s]", n ? ", " : "", k->section);
		last = k->section;
	}
}

int vp_conf_key_set(enum vp_conf_kind kind, void *object, const char *section, const char *key, const char *value,
		    struct vp_err *e)
{
	char known[160];
	size_t n = 0;

	for (const struct key *k = tables[kind]; k->name; k++) {
		int r;

		if (strcmp(k->section, section) || strcmp(k->name, key))
			continue;
		r = k->parse((char *)object + k->off, k, value, e);
		return r ? r : (int)(k - tables[kind]);
	}
	if (!vp_conf_section_known(kind, section)) {
		vp_conf_sections(kind, known, sizeof(known));
		return vp_err_set(e, -ENOENT, "unknown section [%.50s]; known: %s", section, known);
	}
	known[0] = 0;
	for (const struct key *k = tables[kind]; k->name && n < sizeof(known); k++)
		if (!strcmp(k->section, section))
			n += snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "", k->name);
	return vp_err_set(e, -ENOENT, "unknown key %.50s in [%s]; known: %s", key, section, known);
}

const char *vp_conf_changed(enum vp_conf_kind kind, const void *a, const void *b, unsigned *i,
			    enum vp_conf_effect *effect, const char **section)
{
	for (const struct key *k; (k = &tables[kind][*i])->name;) {
		++*i;
		if (!memcmp((const char *)a + k->at, (const char *)b + k->at, k->len))
			continue;
		*effect = k->effect;
		*section = k->section;
		return k->name;
	}
	return NULL;
}

void vp_conf_take(enum vp_conf_kind kind, void *to, const void *from, unsigned effects)
{
	for (const struct key *k = tables[kind]; k->name; k++)
		if (effects & 1u << k->effect)
			memcpy((char *)to + k->at, (const char *)from + k->at, k->len);
}
