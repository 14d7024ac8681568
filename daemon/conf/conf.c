/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Find the configuration's files, merge drop-ins and check the whole.
 *
 * As with networkd: a file in a directory of higher precedence hides the file
 * of the same name in lower ones; an empty file or a link to /dev/null hides
 * without configuring anything. NAME.link.d/X.conf and NAME.vm.d/X.conf (from
 * all directories, same rule for X.conf) are applied on top, in the order of
 * their names.
 */
#include "conf/conf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "conf/keys.h"
#include "conf/policy.h"
#include "conf/strays.h"
#include "conf/types.h"

#define FILE_MAX_BYTES 65536
#define DEFAULT_RUNTIME "/run/vhost-pci"
#define DEFAULT_STATE "/var/lib/vhost-pci"

/* ---- file names --------------------------------------------------------- */

struct entry {
	char name[256];
	unsigned dir;  /* index into the directory list */
};

struct listing {
	struct entry *e;
	unsigned n, cap;
};

static int cmp_entry(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	int r = strcmp(x->name, y->name);

	return r ? r : (int)x->dir - (int)y->dir;
}

/* As the objects are called, for they are searched by name: a.link comes before a-b.link. */
static int cmp_stem(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	size_t m = (size_t)(strrchr(x->name, '.') - x->name), n = (size_t)(strrchr(y->name, '.') - y->name);
	int r = memcmp(x->name, y->name, VP_MIN(m, n));

	return r ? r : (m > n) - (m < n);
}

/* Add dir's files that end in suffix. A directory that is not there is empty. */
static int list_dir(struct listing *l, const char *path, unsigned dir, const char *suffix, struct vp_conf_report *rep)
{
	struct dirent *de;
	DIR *d = opendir(path);
	int r = 0;

	if (!d) {
		if (errno == ENOENT || errno == ENOTDIR)
			return 0;
		r = -errno;
		vp_conf_error(rep, "%s: %s; make it readable for the daemon's user", path, strerror(-r));
		return r;
	}
	while ((de = readdir(d))) {
		if (de->d_name[0] == '.' || !vp_conf_has_suffix(de->d_name, suffix))
			continue;
		if (l->n == l->cap) {
			unsigned cap = l->cap ? l->cap * 2 : 64;
			struct entry *e = realloc(l->e, cap * sizeof(*e));

			if (!e) {
				r = -ENOMEM;
				break;
			}
			l->e = e;
			l->cap = cap;
		}
		snprintf(l->e[l->n].name, sizeof(l->e[0].name), "%s", de->d_name);
		l->e[l->n++].dir = dir;
	}
	closedir(d);
	return r;
}

/* Sort and keep, of equal names, the one of the highest precedence. */
static void settle(struct listing *l)
{
	unsigned out = 0;

	if (!l->n)
		return;
	qsort(l->e, l->n, sizeof(*l->e), cmp_entry);
	for (unsigned i = 0; i < l->n; i++)
		if (!out || strcmp(l->e[out - 1].name, l->e[i].name))
			l->e[out++] = l->e[i];
	l->n = out;
}

/* The file's text (caller frees) and length; NULL with a report otherwise. */
static char *read_text(const char *path, size_t *len, struct vp_conf_report *rep)
{
	char *buf = NULL;
	struct stat st;
	ssize_t n;
	size_t got = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	if (fd < 0) {
		vp_conf_error(rep, "%s: %s", path, strerror(errno));
		return NULL;
	}
	if (fstat(fd, &st) || (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode))) {
		vp_conf_error(rep, "%s: not a regular file", path);
		goto out;
	}
	buf = malloc(FILE_MAX_BYTES + 1);
	if (!buf) {
		vp_conf_error(rep, "%s: out of memory", path);
		goto out;
	}
	while (got <= FILE_MAX_BYTES && (n = read(fd, buf + got, FILE_MAX_BYTES + 1 - got)) > 0)
		got += n;
	if (got > FILE_MAX_BYTES) {
		vp_conf_error(rep, "%s: larger than %d bytes", path, FILE_MAX_BYTES);
		free(buf);
		buf = NULL;
	}
	*len = got;
out:
	close(fd);
	return buf;
}

/* Parse one file into object. Returns whether it holds anything (an empty one hides). */
static bool parse_file(enum vp_conf_kind kind, void *object, const char *path, struct vp_conf_report *rep)
{
	size_t len = 0;
	char *text = read_text(path, &len, rep);

	if (!text)
		return false;
	if (len)
		vp_conf_parse_text(kind, object, path, text, len, rep);
	free(text);
	return len > 0;
}

static int apply_dropins(enum vp_conf_kind kind, void *object, const struct vp_conf_paths *paths, const char *file,
			 struct vp_conf_report *rep)
{
	struct listing l = { 0 };
	char path[1024];
	int r = 0;

	for (unsigned i = 0; i < paths->n && !r; i++) {
		snprintf(path, sizeof(path), "%s/%s.d", paths->dir[i], file);
		r = list_dir(&l, path, i, ".conf", rep);
	}
	settle(&l);
	for (unsigned i = 0; i < l.n; i++) {
		snprintf(path, sizeof(path), "%s/%s.d/%s", paths->dir[l.e[i].dir], file, l.e[i].name);
		parse_file(kind, object, path, rep);
	}
	free(l.e);
	return r;
}

/* ---- objects ------------------------------------------------------------ */

static int cmp_name(const void *a, const void *b)
{
	return strcmp(a, b);  /* name is the first member of both structures */
}

const struct vp_conf_vm *vp_conf_vm_find(const struct vp_conf *c, const char *name)
{
	return c->n_vms ? bsearch(name, c->vms, c->n_vms, sizeof(*c->vms), cmp_name) : NULL;
}

mode_t vp_conf_socket_file_mode(const struct vp_conf *c, const char *name)
{
	const struct vp_conf_vm *vm = vp_conf_vm_find(c, name);

	return vm && vm->n_users ? 0666 : 0600;
}

const struct vp_conf_link *vp_conf_link_find(const struct vp_conf *c, const char *name)
{
	return c->n_links ? bsearch(name, c->links, c->n_links, sizeof(*c->links), cmp_name) : NULL;
}

int vp_conf_link_init(struct vp_conf_link *l, const char *name, struct vp_err *e)
{
	memset(l, 0, sizeof(*l));
	if (!vp_conf_name_ok(name))
		return vp_err_set(e, -EINVAL,
				  "'%.70s' is not a name: use 1 to %d of A-Z a-z 0-9 _ . -, not starting with . or -",
				  name, VP_CONF_NAME_MAX - 1);
	memcpy(l->name, name, strlen(name));
	l->mode = VP_MODE_AUTO;
	l->device_type = 1;
	l->pairs = 1;
	l->offloads = VP_OFFLOAD_ALL;
	l->driver_qmp_mode = l->qmp_mode = VP_SOCKET_CLIENT;
	return 0;
}

int vp_conf_link_set(struct vp_conf_link *l, const char *section, const char *key, const char *value,
		     struct vp_err *e)
{
	int r = vp_conf_key_set(VP_CONF_LINK, l, section, key, value, e);

	return r < 0 ? r : 0;
}

static int finish_socket(struct vp_conf_link *l, unsigned s, const struct vp_conf *c, struct vp_err *e)
{
	char path[2 * VP_CONF_SOCKET_MAX + VP_CONF_NAME_MAX];
	char *sock = l->side[s].socket;

	if (!*sock) {
		if (l->side[s].socket_mode == VP_SOCKET_CLIENT)
			return vp_err_set(
				e, -EINVAL,
				"the %s side is SocketMode=client but has no Socket=; say where the %s listens",
				vp_side_name(s),
				s == VP_SIDE_DEVICE && l->endpoint == VP_ENDPOINT_VHOST_USER ? "back-end" : "VMM");
		snprintf(path, sizeof(path), "%s/%s.%s.sock", c->daemon.runtime_dir, l->name, vp_side_name(s));
	} else if (*sock != '/') {
		snprintf(path, sizeof(path), "%s/%s", c->daemon.runtime_dir, sock);
	} else {
		return 0;
	}
	if (strlen(path) >= VP_CONF_SOCKET_MAX)
		return vp_err_set(e, -EINVAL,
				  "the %s side's socket %.60s... has %zu bytes, a UNIX socket's path has at most %d; "
				  "set a shorter Socket=",
				  vp_side_name(s), path, strlen(path), VP_CONF_SOCKET_MAX - 1);
	memset(sock, 0, VP_CONF_SOCKET_MAX);
	memcpy(sock, path, strlen(path));
	return 0;
}

static int finish_grant(struct vp_conf_link *l, const struct vp_conf *c, struct vp_err *e)
{
	char path[2 * VP_CONF_SOCKET_MAX + VP_CONF_NAME_MAX];

	if (l->mode != VP_MODE_GRANT) {
		if (l->grant || l->grant_size || l->grant_socket[0])
			return vp_err_set(e, -EINVAL, "Grant=, GrantSize= and GrantSocket= are for Mode=grant");
		return 0;
	}
	if (l->attachment == VP_ATTACH_IVSHMEM && l->grant != VP_GRANT_MEMORY)
		return vp_err_set(e, -EINVAL,
				  "Grant=%s needs Attachment=shmem: an ivshmem device shows a whole file, and with it "
				  "all of the driver VM's memory",
				  vp_grant_name(l->grant));
	if ((l->grant == VP_GRANT_MEMORY) != (l->grant_size != 0))
		return vp_err_set(e, -EINVAL,
				  "GrantSize= and Grant=memory go together: the size of the driver VM's memory device");
	if (l->grant_socket[0] && l->grant != VP_GRANT_SWIOTLB)
		return vp_err_set(e, -EINVAL, "GrantSocket= is for Grant=swiotlb");
	if (l->grant != VP_GRANT_SWIOTLB || l->grant_socket[0] == '/')
		return 0;
	if (l->grant_socket[0])
		snprintf(path, sizeof(path), "%s/%s", c->daemon.runtime_dir, l->grant_socket);
	else
		snprintf(path, sizeof(path), "%s/%s.grant.sock", c->daemon.runtime_dir, l->name);
	if (strlen(path) >= VP_CONF_SOCKET_MAX)
		return vp_err_set(e, -EINVAL,
				  "the socket for grants %.60s... has %zu bytes, a UNIX socket's path has at most %d; "
				  "set a shorter GrantSocket=",
				  path, strlen(path), VP_CONF_SOCKET_MAX - 1);
	memset(l->grant_socket, 0, sizeof(l->grant_socket));
	memcpy(l->grant_socket, path, strlen(path));
	return 0;
}

/* A QMP socket that the daemon makes lies where its others do; one that a VMM makes has a whole path. */
static int finish_qmp(char *path, uint32_t mode, const struct vp_conf *c, struct vp_err *e)
{
	char full[2 * VP_CONF_SOCKET_MAX];

	if (!*path || *path == '/')
		return 0;
	if (mode != VP_SOCKET_SERVER)
		return vp_err_set(e, -EINVAL, "QMP=%.80s is not an absolute path", path);
	snprintf(full, sizeof(full), "%s/%s", c->daemon.runtime_dir, path);
	if (strlen(full) >= VP_CONF_SOCKET_MAX)
		return vp_err_set(e, -EINVAL,
				  "the QMP socket %.60s... has %zu bytes, a UNIX socket's path has at most %d", full,
				  strlen(full), VP_CONF_SOCKET_MAX - 1);
	memset(path, 0, VP_CONF_SOCKET_MAX);
	memcpy(path, full, strlen(full));
	return 0;
}

static int finish_qmps(struct vp_conf_link *l, const struct vp_conf *c, struct vp_err *e)
{
	int r;

	if ((l->qmp_mode == VP_SOCKET_SERVER && !l->qmp[0]) ||
	    (l->driver_qmp_mode == VP_SOCKET_SERVER && !l->driver_qmp[0]))
		return vp_err_set(e, -EINVAL, "QMPMode=server makes the socket of QMP=, which is not set; set it");
	r = finish_qmp(l->driver_qmp, l->driver_qmp_mode, c, e);
	return r ? r : finish_qmp(l->qmp, l->qmp_mode, c, e);
}

static int finish_port(struct vp_conf_link *l, const struct vp_conf *c, struct vp_err *e)
{
	int r = finish_qmps(l, c, e);

	if (r)
		return r;
	if (!l->driver_qmp[0] != !l->nic[0])
		return vp_err_set(e, -EINVAL,
				  "[Driver] QMP= and NIC= go together: the driver VM's QMP socket, and the id of its "
				  "network device there");
	if (l->endpoint == VP_ENDPOINT_VHOST_USER) {
		if (l->attachment || l->qmp[0] || l->hotplug_bus[0] || l->aperture)
			return vp_err_set(e, -EINVAL,
					  "Attachment=, QMP=, HotplugBus= and ApertureSize= are for Endpoint=port");
		l->attachment = VP_ATTACH_HOSTDEV;
		return 0;
	}
	if (l->endpoint != VP_ENDPOINT_PORT) {
		if (l->driver_qmp[0])
			return vp_err_set(e, -EINVAL, "[Driver] QMP= and NIC= are for Endpoint=port");
		if (l->attachment || l->qmp[0] || l->hotplug_bus[0] || l->aperture || l->packed || l->plain || l->pool)
			return vp_err_set(e, -EINVAL,
					  "Attachment=, QMP=, HotplugBus=, ApertureSize=, PoolSize=, PackedRings= and "
					  "PlainRings= are for Endpoint=port");
		return 0;
	}
	if (l->attachment == VP_ATTACH_AUTO)
		l->attachment = l->qmp[0] || l->hotplug_bus[0] ? VP_ATTACH_IVSHMEM : VP_ATTACH_SHMEM;
	if (l->attachment != VP_ATTACH_IVSHMEM && (l->qmp[0] || l->hotplug_bus[0]))
		return vp_err_set(e, -EINVAL, "QMP= and HotplugBus= are for Attachment=ivshmem");
	if (l->attachment != VP_ATTACH_SHMEM && l->aperture)
		return vp_err_set(e, -EINVAL, "ApertureSize= is for Attachment=shmem");
	if (!l->aperture && l->attachment == VP_ATTACH_SHMEM)
		l->aperture = UINT64_C(64) << 30;
	return 0;
}

uint64_t vp_conf_link_pool(const struct vp_conf_link *l)
{
	uint64_t want = (UINT64_C(8) << 20) * l->pairs, size = UINT64_C(8) << 20;

	while (size < want)
		size *= 2;
	return l->pool ? l->pool : size;
}

bool vp_conf_link_migrates(const struct vp_conf_link *l, unsigned mode)
{
	if (mode == VP_MODE_GRANT)
		return false;
	return mode == VP_MODE_FAST ? l->migration == VP_MIGRATION_YES : l->migration != VP_MIGRATION_NO;
}

int vp_conf_finish_link(struct vp_conf_link *l, const struct vp_conf *c, struct vp_err *e)
{
	int r;

	for (unsigned s = 0; s < VP_SIDES; s++) {
		const char *vm = l->side[s].vm;
		const char *section = s == VP_SIDE_DRIVER ? "Driver" : "Device";

		if (!*vm)
			return vp_err_set(e, -EINVAL, "[%s] VM= is missing; name the %s VM", section, vp_side_name(s));
		if (!vp_conf_vm_find(c, vm))
			return vp_err_set(e, -EINVAL, "[%s] VM=%s is not configured; write a file %s.vm", section, vm,
					  vm);
		r = finish_socket(l, s, c, e);
		if (r)
			return r;
	}
	if (!strcmp(l->side[0].socket, l->side[1].socket))
		return vp_err_set(e, -EINVAL, "both sides use the socket %s; give each its own", l->side[0].socket);
	r = finish_port(l, c, e);
	if (!r)
		r = finish_grant(l, c, e);
	if (!r)
		r = vp_type_check(l, e);
	if (r)
		return r;
	if (l->endpoint != VP_ENDPOINT_VIRTIO_NET && l->side[VP_SIDE_DEVICE].has_mac)
		return vp_err_set(e, -EINVAL, "DeviceMAC= is for Endpoint=virtio-net; a port has no MAC of its own");
	return 0;
}

/* Sockets that are this link's alone: of its sides, and those for QMP that the daemon makes. "" = there is none. */
#define CLAIMS (2 * VP_SIDES)

static const char *claimed(const struct vp_conf_link *l, unsigned n)
{
	if (n < VP_SIDES)
		return l->side[n].socket;
	if (n == VP_SIDES + VP_SIDE_DRIVER)
		return l->driver_qmp_mode == VP_SOCKET_SERVER ? l->driver_qmp : "";
	return l->qmp_mode == VP_SOCKET_SERVER ? l->qmp : "";
}

static const char *claim_key(unsigned n)
{
	return n < VP_SIDES ? "Socket" : "QMP";
}

int vp_conf_links_clash(const struct vp_conf_link *a, const struct vp_conf_link *b, struct vp_err *e)
{
	if (!strcmp(a->name, b->name))
		return vp_err_set(e, -EEXIST, "there is already a link %s; remove it first or choose another name",
				  a->name);
	for (unsigned i = 0; i < CLAIMS; i++)
		for (unsigned j = 0; j < CLAIMS; j++)
			if (*claimed(a, i) && !strcmp(claimed(a, i), claimed(b, j)))
				return vp_err_set(
					e, -EEXIST,
					"the socket %s already belongs to the %s side of link %s; set another %s=",
					claimed(a, i), vp_side_name(i % VP_SIDES), a->name, claim_key(j));
	return 0;
}

/* ---- loading ------------------------------------------------------------ */

typedef int (*add_fn)(struct vp_conf *c, const char *name, const char *file, const char *path,
		      const struct vp_conf_paths *paths, struct vp_conf_report *rep);

/* Grow an array of n objects by one zeroed object. */
static void *grow(void *array, unsigned n, size_t size)
{
	char *p = array;

	if (!(n & (n - 1)))
		p = realloc(array, (n ? 2 * (size_t)n : 1) * size);
	if (p)
		memset(p + n * size, 0, size);
	return p;
}

static int add_vm(struct vp_conf *c, const char *name, const char *file, const char *path,
		  const struct vp_conf_paths *paths, struct vp_conf_report *rep)
{
	struct vp_conf_vm *vm = grow(c->vms, c->n_vms, sizeof(*vm));

	if (!vm)
		return -ENOMEM;
	c->vms = vm;
	vm += c->n_vms;
	memcpy(vm->name, name, strlen(name));
	if (!parse_file(VP_CONF_VM, vm, path, rep))
		return 0;
	c->n_vms++;
	return apply_dropins(VP_CONF_VM, vm, paths, file, rep);
}

static int add_link(struct vp_conf *c, const char *name, const char *file, const char *path,
		    const struct vp_conf_paths *paths, struct vp_conf_report *rep)
{
	struct vp_conf_link *l = grow(c->links, c->n_links, sizeof(*l));
	struct vp_err e = { 0 };
	unsigned before = rep->errors;
	int r;

	if (!l)
		return -ENOMEM;
	c->links = l;
	l += c->n_links;
	vp_conf_link_init(l, name, &e);  /* the name was checked */
	if (!parse_file(VP_CONF_LINK, l, path, rep))
		return 0;
	r = apply_dropins(VP_CONF_LINK, l, paths, file, rep);
	if (r)
		return r;
	if (rep->errors == before && vp_conf_finish_link(l, c, &e))
		vp_conf_error(rep, "%s: %s", path, e.msg);
	c->n_links++;
	return 0;
}

static int load_kind(struct vp_conf *c, const struct vp_conf_paths *paths, const char *suffix, add_fn add,
		     struct vp_conf_report *rep)
{
	struct listing l = { 0 };
	char path[1024], name[256];
	int r = 0;

	for (unsigned i = 0; i < paths->n && !r; i++)
		r = list_dir(&l, paths->dir[i], i, suffix, rep);
	settle(&l);
	if (l.n)
		qsort(l.e, l.n, sizeof(*l.e), cmp_stem);
	for (unsigned i = 0; i < l.n && !r; i++) {
		snprintf(path, sizeof(path), "%s/%s", paths->dir[l.e[i].dir], l.e[i].name);
		snprintf(name, sizeof(name), "%.*s", (int)(strlen(l.e[i].name) - strlen(suffix)), l.e[i].name);
		if (!vp_conf_name_ok(name)) {
			vp_conf_error(rep,
				      "%s: '%s' is not a name: use 1 to %d of A-Z a-z 0-9 _ . -, not starting with . "
				      "or -; rename the file",
				      path, name, VP_CONF_NAME_MAX - 1);
			continue;
		}
		r = add(c, name, l.e[i].name, path, paths, rep);
	}
	free(l.e);
	return r;
}

static int load_daemon(struct vp_conf *c, const struct vp_conf_paths *paths, struct vp_conf_report *rep)
{
	struct vp_conf_daemon *d = &c->daemon;
	char path[1024];
	int r;

	*d = (struct vp_conf_daemon){
		.threads = 1, .busy_poll_us = 50, .max_links = 4096, .runtime_dir = DEFAULT_RUNTIME,
	};
	for (unsigned i = 0; i < paths->n; i++) {
		snprintf(path, sizeof(path), "%s/vhost-pci.conf", paths->dir[i]);
		if (access(path, F_OK) == 0) {
			parse_file(VP_CONF_DAEMON, d, path, rep);
			break;
		}
	}
	r = apply_dropins(VP_CONF_DAEMON, d, paths, "vhost-pci.conf", rep);
	if (paths->runtime_dir)
		snprintf(d->runtime_dir, sizeof(d->runtime_dir), "%s", paths->runtime_dir);
	if (d->runtime_dir[0] != '/')
		vp_conf_error(rep, "the runtime directory %s is not an absolute path", d->runtime_dir);
	/* A daemon beside the usual one keeps its own. */
	if (!*d->state_dir &&
	    snprintf(d->state_dir, sizeof(d->state_dir), "%s",
		     !strcmp(d->runtime_dir, DEFAULT_RUNTIME) ? DEFAULT_STATE : "") == 0 &&
	    snprintf(d->state_dir, sizeof(d->state_dir), "%s/state", d->runtime_dir) >= (int)sizeof(d->state_dir))
		vp_conf_error(rep, "the runtime directory %s is too long; set StateDirectory=", d->runtime_dir);
	if (d->state_dir[0] != '/')
		vp_conf_error(rep, "the state directory %s is not an absolute path", d->state_dir);
	if (paths->control_socket)
		snprintf(d->control_socket, sizeof(d->control_socket), "%s", paths->control_socket);
	if (!*d->control_socket &&
	    snprintf(d->control_socket, sizeof(d->control_socket), "%s/control.sock", d->runtime_dir) >=
	    (int)sizeof(d->control_socket))
		vp_conf_error(rep, "the runtime directory %s is too long for a socket in it; choose a shorter one",
			      d->runtime_dir);
	if (!*d->metrics_socket && snprintf(d->metrics_socket, sizeof(d->metrics_socket), "%s/metrics.sock",
					    d->runtime_dir) >= (int)sizeof(d->metrics_socket))
		*d->metrics_socket = 0;  /* said above: control.sock is as long */
	if (d->metrics_socket[0] != '/' && d->metrics_socket[0])
		vp_conf_error(rep, "[Metrics] Socket=%s is not an absolute path", d->metrics_socket);
	if (!strcmp(d->metrics_socket, d->control_socket))
		vp_conf_error(rep, "[Metrics] Socket=%s is the control socket; set another one", d->metrics_socket);
	return r;
}

struct claim {
	const char *socket;
	const struct vp_conf_link *link;
	unsigned side;
};

static int cmp_claim(const void *a, const void *b)
{
	const struct claim *x = a, *y = b;
	int r = strcmp(x->socket, y->socket);

	return r ? r : (x->link > y->link) - (x->link < y->link);
}

/* Sorted, not pairwise: thousands of links are normal. */
static int check_sockets(const struct vp_conf *c, struct vp_conf_report *rep)
{
	struct claim *claims = calloc(c->n_links * CLAIMS + 1, sizeof(*claims));
	unsigned n = 0;

	if (!claims)
		return -ENOMEM;
	for (unsigned i = 0; i < c->n_links; i++)
		for (unsigned s = 0; s < CLAIMS; s++)
			if (*claimed(&c->links[i], s))
				claims[n++] = (struct claim){ claimed(&c->links[i], s), &c->links[i], s };
	qsort(claims, n, sizeof(*claims), cmp_claim);
	for (unsigned i = 0; i < n; i++) {
		const struct claim *a = &claims[i], *b = i ? &claims[i - 1] : NULL;

		if (!strcmp(a->socket, c->daemon.control_socket))
			vp_conf_error(rep,
				      "%s.link: the %s side's socket %s is the control socket; set another %s=",
				      a->link->name, vp_side_name(a->side % VP_SIDES), a->socket, claim_key(a->side));
		if (!strcmp(a->socket, c->daemon.metrics_socket))
			vp_conf_error(
				rep,
				"%s.link: the %s side's socket %s is the socket of the metrics; set another %s=",
				a->link->name, vp_side_name(a->side % VP_SIDES), a->socket, claim_key(a->side));
		/* Both sides' of one link have been looked at. */
		if (b && (b->link != a->link || a->side >= VP_SIDES || b->side >= VP_SIDES) &&
		    !strcmp(a->socket, b->socket))
			vp_conf_error(
				rep,
				"%s.link: the socket %s already belongs to the %s side of link %s; set another %s=",
				a->link->name, a->socket, vp_side_name(b->side % VP_SIDES), b->link->name,
				claim_key(a->side));
	}
	free(claims);
	return 0;
}

/* errno is set if not. */
static bool is_dir(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		return false;
	errno = ENOTDIR;
	return S_ISDIR(st.st_mode);
}

int vp_conf_load(struct vp_conf **out, const struct vp_conf_paths *paths, struct vp_conf_report *rep)
{
	struct vp_conf *c = calloc(1, sizeof(*c));
	unsigned before = rep->errors;
	int r;

	if (!c)
		return -ENOMEM;
	rep->into = c;
	for (unsigned i = 0; paths->named && i < paths->n; i++)
		if (!is_dir(paths->dir[i]))
			vp_conf_error(rep,
				      "--config %s: %s; name a directory with vhost-pci.conf, *.vm and *.link files",
				      paths->dir[i], strerror(errno));
	r = load_daemon(c, paths, rep);
	if (!r)
		r = load_kind(c, paths, ".vm", add_vm, rep);
	if (!r)
		r = load_kind(c, paths, ".link", add_link, rep);
	rep->into = NULL;
	vp_conf_strays(paths, c->daemon.runtime_dir, rep);
	if (!r && c->n_links > c->daemon.max_links)
		vp_conf_error(rep, "%u links are configured but MaxLinks=%u; raise it in vhost-pci.conf", c->n_links,
			      c->daemon.max_links);
	if (!r)
		r = check_sockets(c, rep);
	if (!r && rep->errors == before)
		vp_policy_check(c, rep);
	if (!r && rep->errors != before)
		r = -EINVAL;
	if (r) {
		vp_conf_free(c);
		return r;
	}
	*out = c;
	return 0;
}

void vp_conf_free(struct vp_conf *c)
{
	if (!c)
		return;
	vp_conf_origins_free(c);
	free(c->vms);
	free(c->links);
	free(c);
}
