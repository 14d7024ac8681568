/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the administrator asked for: VMs, links and the daemon's own settings. They come from drop-in
 * files or, for links added at run time, from the control socket. The structures are plain values,
 * zeroed before they are filled: two links are configured alike exactly when their vp_conf_link compare
 * equal byte by byte.
 *
 * Main thread only.
 */
#ifndef VP_DAEMON_CONF_H
#define VP_DAEMON_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define VP_CONF_NAME_MAX   64   /* with the terminating zero */
#define VP_CONF_SOCKET_MAX 108  /* sizeof(sun_path) */
#define VP_CONF_MAX_USERS  8
#define VP_CONF_MAX_CPUS   64
#define VP_CONF_MAX_DIRS   4
#define VP_CONF_BUS_MAX    256  /* HotplugBus=, all names together */
#define VP_CONF_MAX_PAIRS  64   /* queue pairs of one link */
#define VP_CONF_DIRS_MAX   512  /* SocketDirectories=, and MemoryFrom=, all together */
#define VP_CONF_TEXT_MAX   128
#define VP_CONF_MAX_MEMORY (UINT64_C(1) << 40)  /* MaxMemory= of a VM that has none */

enum vp_mode { VP_MODE_AUTO, VP_MODE_RELAY, VP_MODE_FAST, VP_MODE_COPY, VP_MODE_GRANT, VP_MODE_COUNT };
/* Where a driver VM's grants come from (link/grant.h). */
enum vp_grant_source { VP_GRANT_SWIOTLB, VP_GRANT_VIOMMU, VP_GRANT_MEMORY, VP_GRANT_SOURCES };
/* May the driver VM be migrated? auto: yes, but for a fast link. */
enum vp_migration { VP_MIGRATION_AUTO, VP_MIGRATION_NO, VP_MIGRATION_YES };
enum vp_endpoint { VP_ENDPOINT_VIRTIO_NET, VP_ENDPOINT_PORT, VP_ENDPOINT_VHOST_USER };
/* VP_ATTACH_HOSTDEV belongs to VP_ENDPOINT_VHOST_USER; Attachment= has no word for it. */
enum vp_attachment { VP_ATTACH_AUTO, VP_ATTACH_IVSHMEM, VP_ATTACH_SHMEM, VP_ATTACH_LOCAL, VP_ATTACH_HOSTDEV };
enum vp_socket_mode { VP_SOCKET_SERVER, VP_SOCKET_CLIENT };
enum vp_side_id { VP_SIDE_DRIVER, VP_SIDE_DEVICE, VP_SIDES };
enum vp_conf_kind { VP_CONF_DAEMON, VP_CONF_VM, VP_CONF_LINK };

/*
 * What a reload does where the value of a key has changed. The tables of keys have one for each, and the man pages say
 * it of each key; a unit test (reload-keys) holds the two together.
 */
enum vp_conf_effect {
	VP_EFFECT_LIVE,    /* it holds at once; links run on */
	VP_EFFECT_OWNER,   /* it holds at once, for who connects from now on, and for the sockets' files */
	VP_EFFECT_POLICY,  /* it holds at once; a link whose mode is another one with it is made anew */
	VP_EFFECT_AGAIN,   /* front-ends have to connect again; a port stays plugged */
	VP_EFFECT_ANEW,    /* the link is made anew: all connect again, and a port that is a PCI device dies */
	VP_EFFECT_START,   /* nothing: another start, or an upgrade, is needed */
};

/* Offloads that a link may offer; the bits are ours, the link translates them to virtio features. */
enum {
	VP_OFFLOAD_CSUM   = 1 << 0,
	VP_OFFLOAD_TSO4   = 1 << 1,
	VP_OFFLOAD_TSO6   = 1 << 2,
	VP_OFFLOAD_ECN    = 1 << 3,
	VP_OFFLOAD_MRGBUF = 1 << 4,
	VP_OFFLOAD_ALL    = (1 << 5) - 1,
};

#define VP_EFFECTS_IN_PLACE ((1u << VP_EFFECT_ANEW) - 1) /* those that do not make a link anew */

struct vp_conf_vm {
	char     name[VP_CONF_NAME_MAX];
	char     trust_group[VP_CONF_NAME_MAX];  /* "" = trusts nobody */
	uid_t    users[VP_CONF_MAX_USERS];       /* besides root and the daemon's own user */
	uint32_t n_users;
	uint32_t max_links;   /* 0 = no limit */
	uint32_t max_queues;  /* queue pairs over all links of the VM; 0 = no limit */
	uint64_t max_pool;    /* bytes of pools of all its links in copy mode; 0 = no limit */
	uint32_t pps;         /* packets per second that it may send over all its links; 0 = no limit */
	uint64_t max_memory;  /* bytes of its memory mapped at a time, over all its links; 0 = VP_CONF_MAX_MEMORY */
	char     memory_from[VP_CONF_DIRS_MAX];  /* MemoryFrom=: paths, one blank between them */
	bool     allow_grant; /* across trust groups, too */
};

struct vp_conf_side {
	char     vm[VP_CONF_NAME_MAX];
	char     socket[VP_CONF_SOCKET_MAX];  /* absolute after vp_conf_finish_link() */
	uint32_t socket_mode;                 /* enum vp_socket_mode */
	bool     has_mac;
	uint8_t  mac[6];
};

struct vp_conf_link {
	char     name[VP_CONF_NAME_MAX];
	uint32_t mode;         /* enum vp_mode as asked for; policy decides */
	uint32_t device_type;  /* virtio ID */
	uint32_t pairs;        /* queue pairs of net, request queues of others, >= 1; see vp_type_queues() */
	uint32_t endpoint;     /* enum vp_endpoint */
	uint32_t offloads;     /* VP_OFFLOAD_* */
	uint32_t mtu;          /* 0 = not announced */
	uint32_t pps;          /* packets per second in each direction, 0 = no limit */
	uint64_t bps;          /* bits per second in each direction, 0 = no limit */
	bool     start_down;   /* administrative state at creation */
	uint32_t migration;    /* enum vp_migration */
	/* of a port; attachment is never VP_ATTACH_AUTO after vp_conf_finish_link() */
	uint32_t attachment;   /* enum vp_attachment */
	bool     packed;       /* the driver VM is offered packed rings */
	bool     plain;        /* fast mode: it is offered neither indirect descriptors nor event indices */
	uint64_t pool;         /* copy mode: bytes, a power of two; 0 = vp_conf_link_pool()'s default */
	uint64_t aperture;     /* shmem: bytes of both regions together, a power of two */
	uint32_t grant;        /* grant mode: enum vp_grant_source */
	uint64_t grant_size;   /* of VP_GRANT_MEMORY: bytes of the memory device */
	char     grant_socket[VP_CONF_SOCKET_MAX]; /* of VP_GRANT_SWIOTLB; absolute after vp_conf_finish_link() */
	char     driver_qmp[VP_CONF_SOCKET_MAX]; /* the driver VM's QMP socket, "" = none */
	uint32_t driver_qmp_mode;                /* enum vp_socket_mode: server = its VMM connects to the daemon */
	/* the network device there whose carrier follows the link; set if driver_qmp is */
	char     nic[VP_CONF_NAME_MAX];
	char     qmp[VP_CONF_SOCKET_MAX];       /* ivshmem: the device VM's QMP socket, "" = none */
	uint32_t qmp_mode;                      /* as driver_qmp_mode */
	char     hotplug_bus[VP_CONF_BUS_MAX];  /* ivshmem: ids of free pcie-root-ports, one blank between them */
	/* of a back-end, as far as it is written here and not learned (device/device.h) */
	uint64_t capacity;     /* blk: bytes, 0 = not written */
	uint32_t block_size;   /* blk: bytes, 0 = 512 */
	bool     read_only;    /* blk */
	bool     has_features; /* the driver VM is offered no others of the device type */
	uint64_t features;
	char     tag[37];      /* fs */
	uint64_t cid;          /* vsock: the driver VM's */
	uint32_t config_size;  /* of a type that is only known by its ID */
	struct vp_conf_side side[VP_SIDES];
	char     description[VP_CONF_TEXT_MAX];  /* for people; UTF-8 */
};

struct vp_conf_daemon {
	uint32_t threads;       /* data threads, >= 1 */
	uint32_t busy_poll_us;  /* how long a data thread polls before it sleeps */
	uint32_t cpus[VP_CONF_MAX_CPUS];
	uint32_t n_cpus;
	uint32_t max_links;
	char     control_group[VP_CONF_NAME_MAX];  /* "" = root and the daemon's user only */
	char     control_socket[VP_CONF_SOCKET_MAX];
	/* may read the metrics, besides those who may use the control socket */
	char     metrics_group[VP_CONF_NAME_MAX];
	char     metrics_socket[VP_CONF_SOCKET_MAX];
	char     runtime_dir[VP_CONF_SOCKET_MAX];
	char     socket_dirs[VP_CONF_DIRS_MAX];    /* further ones for sockets, one blank between them */
	char     user[VP_CONF_NAME_MAX];           /* to become when started as root; "" = stay */
	char     audit_log[VP_CONF_SOCKET_MAX];    /* file; "" = the daemon's log */
	char     state_dir[VP_CONF_SOCKET_MAX];    /* where learned profiles are kept */
	char     upgrade_binaries[VP_CONF_DIRS_MAX]; /* programs that an upgrade may start, besides our own file */
	/* isolation stages that must be in force (bit = enum vp_isolate_stage) */
	uint32_t require;
	bool     no_filter;                        /* no system call filter */
};

/* Where a setting was made: the last place of those that count. */
struct vp_conf_origin;

struct vp_conf {
	struct vp_conf_daemon daemon;
	struct vp_conf_vm   *vms;    /* sorted by name */
	struct vp_conf_link *links;  /* sorted by name */
	unsigned             n_vms, n_links;
	struct vp_conf_origin *origins;
	unsigned             n_origins, cap_origins;
};

struct vp_conf_paths {
	const char *dir[VP_CONF_MAX_DIRS];  /* highest precedence first */
	unsigned    n;
	bool        named;          /* by --config: each has to exist */
	const char *runtime_dir;    /* NULL: from the file, or the default */
	const char *control_socket; /* likewise */
};

/* Problems go here, one call for each. Loading counts them and goes on, so that one run shows all. */
struct vp_conf_report {
	void   (*fn)(void *arg, const char *msg);
	void   (*warn)(void *arg, const char *msg);  /* what is odd, and no error; NULL = not wanted */
	void    *arg;
	unsigned errors;
	struct vp_conf *into;  /* where vp_conf_load() keeps the origins of settings; NULL = nowhere */
};

/*
 * Read and check everything. 0 and *out (free with vp_conf_free()), or -EINVAL with every problem
 * reported, -ENOMEM, or the error of a directory that cannot be read. A directory that does not exist
 * is empty.
 */
int vp_conf_load(struct vp_conf **out, const struct vp_conf_paths *paths, struct vp_conf_report *rep);
void vp_conf_free(struct vp_conf *c);

/*
 * The place where [section] key of an object (a VM's or link's name; "" for the daemon) was set: true,
 * and "path:line" in buf. False when no file sets it.
 */
bool vp_conf_where(const struct vp_conf *c, enum vp_conf_kind kind, const char *name, const char *section,
		   const char *key, char *buf, size_t size);
/* For the parser: note a place. Running out of memory is no error; the answer is only less precise. */
void vp_conf_note(struct vp_conf *c, enum vp_conf_kind kind, const char *name, const char *section, const char *key,
		  const char *path, unsigned line);

const struct vp_conf_vm *vp_conf_vm_find(const struct vp_conf *c, const char *name);
/*
 * Mode of a socket's file that VMMs of the VM connect to. Other users must be able to connect to be checked; who they
 * are is what decides.
 */
mode_t vp_conf_socket_file_mode(const struct vp_conf *c, const char *vm);
const struct vp_conf_link *vp_conf_link_find(const struct vp_conf *c, const char *name);

/*
 * The next key by which two objects of a kind differ (of two names of one key the first), its section and effect; NULL
 * = there is no further one. *i: 0 at first.
 */
const char *vp_conf_changed(enum vp_conf_kind kind, const void *a, const void *b, unsigned *i,
			    enum vp_conf_effect *effect, const char **section);
/* The values of all keys with one of these effects (1 << enum vp_conf_effect). */
void vp_conf_take(enum vp_conf_kind kind, void *to, const void *from, unsigned effects);

/* Defaults for a link called name. -EINVAL when it cannot be a name. */
int vp_conf_link_init(struct vp_conf_link *l, const char *name, struct vp_err *e);

/*
 * One setting, as if it stood in a .link file. -ENOENT: there is no such section or key. -EINVAL: a bad
 * value. The message names the way out, not the place.
 */
int vp_conf_link_set(struct vp_conf_link *l, const char *section, const char *key, const char *value,
		     struct vp_err *e);

/*
 * Resolve default and relative socket paths against d->runtime_dir. Then check what can be checked of
 * one link by itself, and that its VMs exist in c. -EINVAL with a message.
 */
int vp_conf_finish_link(struct vp_conf_link *l, const struct vp_conf *c, struct vp_err *e);

/* Bytes of the link's pool in copy mode: PoolSize=, or 8 MiB for each queue pair. */
uint64_t vp_conf_link_pool(const struct vp_conf_link *l);

/* Of a pool each queue takes this much for its ring, and has to be left at least this much for data. */
#define VP_POOL_RING     (28u << 10)
#define VP_POOL_DATA_MIN (128u << 10) /* a packet of 64 KiB and some more */

/* May the driver VM of a link that policy gives this mode be migrated live? */
bool vp_conf_link_migrates(const struct vp_conf_link *l, unsigned mode);

/* Two links that cannot both exist (same name, same socket). -EEXIST with a message, else 0. */
int vp_conf_links_clash(const struct vp_conf_link *a, const struct vp_conf_link *b, struct vp_err *e);

/*
 * Parse one file's text into the object that its kind says. The fuzz target enters here, too. path is
 * only used in messages.
 */
void vp_conf_parse_text(enum vp_conf_kind kind, void *object, const char *path, const char *text, size_t len,
			struct vp_conf_report *rep);

/* [A-Za-z0-9_][A-Za-z0-9_.-]*, at most 63 characters. */
bool vp_conf_name_ok(const char *name);

const char *vp_mode_name(unsigned mode);
const char *vp_endpoint_name(unsigned endpoint);
const char *vp_grant_name(unsigned source);
const char *vp_side_name(unsigned side);
/* "csum,tso4,..." or "none"; buf of at least 64 bytes. */
const char *vp_offloads_str(unsigned offloads, char *buf, size_t size);
void vp_mac_str(const uint8_t mac[6], char out[18]);

void vp_conf_error(struct vp_conf_report *rep, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void vp_conf_warning(struct vp_conf_report *rep, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
