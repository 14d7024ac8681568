/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threat model: the VMM is trusted as the host's kernel is, but what it says is checked as any message is (codec.h); it
 * may never answer, and the caller waits for a bounded time.
 */
#include "handover/unmap.h"

#include <errno.h>
#include <stdlib.h>

#include "port/record.h"
#include "vhostuser/codec.h"

/* A guest that is reset meanwhile leaves requests behind that its VMM does not expect then: few at a time. */
#define AT_ONCE 8u
/* Messages of one connection in one look: its VMM may send without an end, and others wait for the guard, too. */
#define TURN    64u

struct vp_unmap {
	struct vu_conn      req, conn;
	struct port_record *record;
	unsigned            next;      /* slot */
	unsigned            asked;
	unsigned            open;      /* answers that are to come */
};

int vp_unmap_new(struct vp_unmap **out, int req, int conn, int recordfd)
{
	struct vp_unmap *u = calloc(1, sizeof(*u));

	if (!u)
		return -ENOMEM;
	vu_conn_init(&u->req, req, VU_FROM_BACKEND, true);
	vu_conn_init(&u->conn, conn, VU_FROM_FRONTEND, false);
	u->record = port_record_map(recordfd);
	if (!u->record || u->record->version != PORT_RECORD_VERSION) {
		vp_unmap_free(u);
		return -EINVAL;
	}
	/* Of these the daemon has seen no answer. They are asked for once more, which is refused then. */
	for (unsigned i = 0; i < VHP_MAX_WINDOWS; i++)
		u->open += u->record->map[i].len && u->record->map[i].unmapping;
	*out = u;
	return 0;
}

/* seccomp guard: recvmsg sendmsg close fcntl */

/* What the VMM says on its own. False: it asks for something that nobody here has. */
static bool listen_to_vmm(struct vp_unmap *u)
{
	struct vu_msg m = { .hdr = { .flags = VU_FLAG_VERSION | VU_FLAG_REPLY, .size = sizeof(m.p.u64) } };
	int r = 0;

	for (unsigned i = 0; i < TURN && (r = vu_conn_recv(&u->conn, NULL)) > 0; i++) {
		m.hdr.request = u->conn.rx.hdr.request;
		switch (m.hdr.request) {
		case VU_SET_MEM_TABLE:
		case VU_SET_VRING_CALL:
		case VU_SET_VRING_ERR:
			break;
		default:
			return false;
		}
		if (u->conn.rx.hdr.flags & VU_FLAG_NEED_REPLY && vu_conn_send(&u->conn, &m, NULL, 0, NULL))
			return false;
		vu_conn_next(&u->conn);
	}
	return r >= 0 && !vu_conn_flush(&u->conn, NULL);
}

static bool take_answers(struct vp_unmap *u)
{
	int r = 0;

	for (unsigned i = 0; i < TURN && (r = vu_conn_recv(&u->req, NULL)) > 0; i++) {
		u->open -= u->open && u->req.rx.hdr.request == VU_BE_SHMEM_UNMAP;
		vu_conn_next(&u->req);
	}
	return r >= 0 && !vu_conn_flush(&u->req, NULL);
}

static bool ask(struct vp_unmap *u)
{
	struct vu_msg m = { .hdr = { .request = VU_BE_SHMEM_UNMAP, .flags = VU_FLAG_VERSION | VU_FLAG_NEED_REPLY,
				     .size = sizeof(m.p.map) } };

	for (; u->next < VHP_MAX_WINDOWS && u->open < AT_ONCE; u->next++) {
		const struct port_record_map *w = &u->record->map[u->next];

		if (!w->len)
			continue;
		m.p.map = (struct vu_shmem_map){
			.shmid = VHP_SHMEM_REGION_APERTURE, .shm_offset = w->off, .len = w->len
		};
		if (vu_conn_send(&u->req, &m, NULL, 0, NULL))
			return false;
		u->open++;
		u->asked++;
	}
	return true;
}

enum vp_unmap_state vp_unmap_look(struct vp_unmap *u)
{
	if (!listen_to_vmm(u) || !take_answers(u) || !ask(u))
		return VP_UNMAP_LOST;
	return u->open || u->next < VHP_MAX_WINDOWS ? VP_UNMAP_WAITS : VP_UNMAP_DONE;
}

unsigned vp_unmap_count(const struct vp_unmap *u)
{
	return u->asked;
}

void vp_unmap_free(struct vp_unmap *u)
{
	if (!u)
		return;
	u->req.fd = u->conn.fd = -1;
	vu_conn_close(&u->req);
	vu_conn_close(&u->conn);
	port_record_unmap(u->record);
	free(u);
}
