/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who may be joined to whom, and how. This is the one place where the daemon decides: nothing else
 * looks at trust groups. The default is deny. `fast` exposes all memory of the driver VM and needs both
 * VMs in one trust group, whatever a link asks for.
 *
 * Pure functions of the configuration. Main thread.
 */
#ifndef VP_DAEMON_POLICY_H
#define VP_DAEMON_POLICY_H

#include "conf/conf.h"
#include "guestmem/map.h"

struct vp_policy_decision {
	bool        allowed;
	uint32_t    mode;      /* enum vp_mode in effect (never auto when allowed) */
	const char *rule;      /* short, stable identifier of the rule that decided */
	char        why[240];  /* one sentence; when refused, with the way out */
};

/* Decide about one link. c supplies its VMs; a VM that is not in c shares no trust group with anyone. */
void vp_policy_decide(const struct vp_conf *c, const struct vp_conf_link *l, struct vp_policy_decision *d);

/*
 * Every rule that has a say about a link, in the order in which they are asked: the mode, then the
 * limits that are set. The first rule that does not allow the link refuses it.
 */
#define VP_POLICY_STEPS 11
struct vp_policy_step {
	bool        allowed;
	const char *rule;
	char        why[240];
	unsigned    n_by;  /* the settings that it looked at, as for vp_conf_where(), whether set or not */
	struct {
		enum vp_conf_kind kind;
		const char       *name, *section, *key;  /* belong to c and l */
	} by[4];
};

/*
 * Decide about l next to links[0..n); those with l's own name do not count. Returns the number of steps
 * filled in.
 */
unsigned vp_policy_steps(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n,
			 const struct vp_conf_link *l, struct vp_policy_step steps[VP_POLICY_STEPS]);

/* May a process with this uid be the VMM of vm? self = the daemon's own uid. */
bool vp_policy_user_ok(const struct vp_conf_vm *vm, uid_t uid, uid_t self);

/* Check every link of c, and the limits of each VM. Problems go to rep. */
void vp_policy_check(const struct vp_conf *c, struct vp_conf_report *rep);

/*
 * Check the limits among vp_policy_steps(). -EDQUOT with a message that names the rule, and the rule in
 * *rule.
 */
int vp_policy_limits(const struct vp_conf *c, const struct vp_conf_link *const *links, unsigned n,
		     const struct vp_conf_link *l, const char **rule, struct vp_err *e);

/*
 * Map what vm's VMM sent, as vp_map_new() does, if that VM may have it mapped (policy_memory.c):
 *  - The file: memory whose pages nobody can keep waiting, or what MemoryFrom= names. -EMEDIUMTYPE.
 *  - MaxMemory=, over all its links. -EDQUOT.
 *  - What all VMs have in common: mappings (each with its fd) and address space. Each VM has a share,
 *    which the others leave to it. Beyond its share it gets what is to spare. -ENOSPC.
 * instead: what is about to be unmapped for it (a table that replaces another) and is not counted; NULL
 * = nothing. e says the way out.
 */
int vp_memory_map(struct vp_map **out, const char *vm, int fd, uint64_t offset, uint64_t size,
		  const struct vp_map_use *instead, struct vp_err *e);
/*
 * The same for the daemon that goes on with what another one had mapped. A VMM may have made the file shorter
 * meanwhile: as there, that shows when a page is touched.
 */
int vp_memory_map_again(struct vp_map **out, const char *vm, int fd, uint64_t offset, uint64_t size, struct vp_err *e);
/*
 * Put MaxMemory= and MemoryFrom= of c in force, for what is mapped from now on. Keep a share for each
 * of its VMs.
 */
void vp_memory_apply(const struct vp_conf *c);
/* The most that the VM may have mapped, in bytes. */
uint64_t vp_memory_limit(const char *vm);
/* What it has mapped. */
struct vp_map_use vp_memory_used(const char *vm);
/* For tests: other totals than this process's; 0, 0 = its own again. Forgets all VMs. */
void vp_memory_totals(unsigned maps, uint64_t bytes);

#endif
