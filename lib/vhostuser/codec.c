/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table of messages and the checks that follow from it. Threat model: see
 * codec.h; this file decides what is let through to the handlers.
 *
 * Source for each row: QEMU, docs/interop/vhost-user.rst, "Front-end message types" and
 * "Back-end message types".
 */
#include "vhostuser/codec.h"

#include <errno.h>
#include <stdio.h>

#include "base/util.h"

#define NO_PF (-1)

#define MSG(id, msg, lo, hi, fdlo, fdhi, feature, st, fl) \
	[id] = { .name = msg, .min = lo, .max = hi, .fd_min = fdlo, .fd_max = fdhi, .reply = VU_REPLY_ACK, \
		 .pf = feature, .states = st, .flags = fl, .rmin = 8, .rmax = 8 }
#define CALL(id, msg, lo, hi, fdlo, fdhi, feature, st, fl, rlo, rhi, rfds) \
	[id] = { .name = msg, .min = lo, .max = hi, .fd_min = fdlo, .fd_max = fdhi, .reply = VU_REPLY_ALWAYS, \
		 .pf = feature, .states = st, .flags = fl, .rmin = rlo, .rmax = rhi, .rfd_max = rfds }

#define ANY   VU_ST_ANY
#define OWNED VU_ST_OWNED
#define SOFT  VU_MI_SOFT
#define NEVER VU_MI_NEVER
#define CONFIG_MAX (VU_CONFIG_HDR_SIZE + VU_MAX_CONFIG)

static const struct vu_msg_info frontend_msgs[VU_FE_MSG_END] = {
	/*
	 *   id                        name                   payload      fds   feature    state  flags  [reply, fds]
	 */
	CALL(VU_GET_FEATURES, "GET_FEATURES", 0, 0, 0, 0, NO_PF, ANY, 0, 8, 8, 0),
	MSG(VU_SET_FEATURES, "SET_FEATURES", 8, 8, 0, 0, NO_PF, ANY, 0),
	MSG(VU_SET_OWNER, "SET_OWNER", 0, 0, 0, 0, NO_PF, ANY, 0),
	MSG(VU_RESET_OWNER, "RESET_OWNER", 0, 0, 0, 0, NO_PF, ANY, SOFT),
	MSG(VU_SET_MEM_TABLE, "SET_MEM_TABLE", 8, 264, 0, 8, NO_PF, OWNED, 0),
	CALL(VU_SET_LOG_BASE, "SET_LOG_BASE", 16, 16, 1, 1, VU_PF_LOG_SHMFD, OWNED, 0, 0, 16, 0),
	MSG(VU_SET_LOG_FD, "SET_LOG_FD", 0, 8, 1, 1, NO_PF, OWNED, SOFT),
	MSG(VU_SET_VRING_NUM, "SET_VRING_NUM", 8, 8, 0, 0, NO_PF, OWNED, 0),
	MSG(VU_SET_VRING_ADDR, "SET_VRING_ADDR", 40, 40, 0, 0, NO_PF, OWNED, 0),
	MSG(VU_SET_VRING_BASE, "SET_VRING_BASE", 8, 8, 0, 0, NO_PF, OWNED, 0),
	CALL(VU_GET_VRING_BASE, "GET_VRING_BASE", 8, 8, 0, 0, NO_PF, OWNED, 0, 8, 8, 0),
	MSG(VU_SET_VRING_KICK, "SET_VRING_KICK", 8, 8, 0, 1, NO_PF, OWNED, 0),
	MSG(VU_SET_VRING_CALL, "SET_VRING_CALL", 8, 8, 0, 1, NO_PF, OWNED, 0),
	MSG(VU_SET_VRING_ERR, "SET_VRING_ERR", 8, 8, 0, 1, NO_PF, OWNED, 0),
	CALL(VU_GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", 0, 0, 0, 0, NO_PF, ANY, 0, 8, 8, 0),
	MSG(VU_SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", 8, 8, 0, 0, NO_PF, ANY, 0),
	CALL(VU_GET_QUEUE_NUM, "GET_QUEUE_NUM", 0, 0, 0, 0, NO_PF, ANY, 0, 8, 8, 0),
	MSG(VU_SET_VRING_ENABLE, "SET_VRING_ENABLE", 8, 8, 0, 0, NO_PF, OWNED, 0),
	MSG(VU_SEND_RARP, "SEND_RARP", 8, 8, 0, 0, VU_PF_RARP, OWNED, SOFT),
	MSG(VU_NET_SET_MTU, "NET_SET_MTU", 8, 8, 0, 0, VU_PF_MTU, ANY, SOFT),
	MSG(VU_SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", 0, 0, 1, 1, VU_PF_BACKEND_REQ, ANY, 0),
	CALL(VU_IOTLB_MSG, "IOTLB_MSG", 32, 32, 0, 0, NO_PF, OWNED, 0, 8, 8, 0),
	MSG(VU_SET_VRING_ENDIAN, "SET_VRING_ENDIAN", 8, 8, 0, 0, VU_PF_CROSS_ENDIAN, OWNED, NEVER),
	CALL(VU_GET_CONFIG, "GET_CONFIG", 12, CONFIG_MAX, 0, 0, VU_PF_CONFIG, ANY, 0, 0, CONFIG_MAX, 0),
	MSG(VU_SET_CONFIG, "SET_CONFIG", 12, CONFIG_MAX, 0, 0, VU_PF_CONFIG, OWNED, SOFT),
	CALL(VU_CREATE_CRYPTO_SESSION, "CREATE_CRYPTO_SESSION", 0, VU_MAX_PAYLOAD, 0, 0, VU_PF_CRYPTO_SESSION, OWNED,
	     NEVER, 0, VU_MAX_PAYLOAD, 0),
	MSG(VU_CLOSE_CRYPTO_SESSION, "CLOSE_CRYPTO_SESSION", 8, 8, 0, 0, VU_PF_CRYPTO_SESSION, OWNED, NEVER),
	CALL(VU_POSTCOPY_ADVISE, "POSTCOPY_ADVISE", 0, 0, 0, 0, VU_PF_PAGEFAULT, OWNED, NEVER, 0, 0, 1),
	MSG(VU_POSTCOPY_LISTEN, "POSTCOPY_LISTEN", 0, 0, 0, 0, VU_PF_PAGEFAULT, OWNED, NEVER),
	CALL(VU_POSTCOPY_END, "POSTCOPY_END", 0, 0, 0, 0, VU_PF_PAGEFAULT, OWNED, NEVER, 8, 8, 0),
	CALL(VU_GET_INFLIGHT_FD, "GET_INFLIGHT_FD", 20, 24, 0, 0, VU_PF_INFLIGHT_SHMFD, OWNED, 0, 20, 24, 1),
	MSG(VU_SET_INFLIGHT_FD, "SET_INFLIGHT_FD", 20, 24, 1, 1, VU_PF_INFLIGHT_SHMFD, OWNED, 0),
	MSG(VU_GPU_SET_SOCKET, "GPU_SET_SOCKET", 0, 8, 0, 1, NO_PF, ANY, NEVER),
	MSG(VU_RESET_DEVICE, "RESET_DEVICE", 0, 0, 0, 0, VU_PF_RESET_DEVICE, OWNED, 0),
	MSG(VU_VRING_KICK, "VRING_KICK", 8, 8, 0, 0, VU_PF_INBAND_NOTIFICATIONS, OWNED, NEVER),
	CALL(VU_GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS", 0, 0, 0, 0, VU_PF_CONFIGURE_MEM_SLOTS, ANY, 0, 8, 8, 0),
	MSG(VU_ADD_MEM_REG, "ADD_MEM_REG", 40, 40, 1, 1, VU_PF_CONFIGURE_MEM_SLOTS, OWNED, 0),
	/* One fd is tolerated: "existing incorrect implementations" send it. */
	MSG(VU_REM_MEM_REG, "REM_MEM_REG", 40, 40, 0, 1, VU_PF_CONFIGURE_MEM_SLOTS, OWNED, 0),
	MSG(VU_SET_STATUS, "SET_STATUS", 8, 8, 0, 0, VU_PF_STATUS, ANY, SOFT),
	CALL(VU_GET_STATUS, "GET_STATUS", 0, 0, 0, 0, VU_PF_STATUS, ANY, 0, 8, 8, 0),
	CALL(VU_GET_SHARED_OBJECT, "GET_SHARED_OBJECT", 16, 16, 0, 0, VU_PF_SHARED_OBJECT, ANY, NEVER, 0, 16, 1),
	CALL(VU_SET_DEVICE_STATE_FD, "SET_DEVICE_STATE_FD", 8, 8, 1, 1, VU_PF_DEVICE_STATE, OWNED, NEVER, 8, 8, 1),
	CALL(VU_CHECK_DEVICE_STATE, "CHECK_DEVICE_STATE", 0, 0, 0, 0, VU_PF_DEVICE_STATE, OWNED, NEVER, 8, 8, 0),
	CALL(VU_GET_SHMEM_CONFIG, "GET_SHMEM_CONFIG", 0, 0, 0, 0, VU_PF_SHMEM, ANY, 0, 8, 8 + 8 * VU_MAX_SHMEM, 0),
};

/* Seen from the front-end all are acknowledged like any message: u64 if asked for. */
static const struct vu_msg_info backend_msgs[VU_BE_MSG_END] = {
	MSG(VU_BE_IOTLB_MSG, "BACKEND_IOTLB_MSG", 32, 32, 0, 0, VU_PF_BACKEND_REQ, ANY, SOFT),
	MSG(VU_BE_CONFIG_CHANGE, "BACKEND_CONFIG_CHANGE_MSG", 0, 0, 0, 0, VU_PF_CONFIG, ANY, SOFT),
	MSG(VU_BE_VRING_HOST_NOTIFIER, "BACKEND_VRING_HOST_NOTIFIER_MSG", 24, 24, 0, 1, VU_PF_HOST_NOTIFIER, ANY, SOFT),
	MSG(VU_BE_VRING_CALL, "BACKEND_VRING_CALL", 8, 8, 0, 0, VU_PF_INBAND_NOTIFICATIONS, ANY, SOFT),
	MSG(VU_BE_VRING_ERR, "BACKEND_VRING_ERR", 8, 8, 0, 0, VU_PF_INBAND_NOTIFICATIONS, ANY, SOFT),
	MSG(VU_BE_SHARED_OBJECT_ADD, "BACKEND_SHARED_OBJECT_ADD", 16, 16, 0, 0, VU_PF_SHARED_OBJECT, ANY, SOFT),
	MSG(VU_BE_SHARED_OBJECT_REMOVE, "BACKEND_SHARED_OBJECT_REMOVE", 16, 16, 0, 0, VU_PF_SHARED_OBJECT, ANY, SOFT),
	CALL(VU_BE_SHARED_OBJECT_LOOKUP, "BACKEND_SHARED_OBJECT_LOOKUP", 16, 16, 0, 0, VU_PF_SHARED_OBJECT, ANY, SOFT,
	     0, 16, 1),
	MSG(VU_BE_SHMEM_MAP, "BACKEND_SHMEM_MAP", 40, 40, 1, 1, VU_PF_SHMEM, ANY, SOFT),
	MSG(VU_BE_SHMEM_UNMAP, "BACKEND_SHMEM_UNMAP", 40, 40, 0, 0, VU_PF_SHMEM, ANY, SOFT),
};

const struct vu_msg_info *vu_msg_info(enum vu_dir dir, uint32_t request)
{
	const struct vu_msg_info *t = dir == VU_FROM_FRONTEND ? frontend_msgs : backend_msgs;
	uint32_t end = dir == VU_FROM_FRONTEND ? VU_FE_MSG_END : VU_BE_MSG_END;

	if (request >= end || !t[request].name)
		return NULL;
	return &t[request];
}

const char *vu_msg_name(enum vu_dir dir, uint32_t request, char *buf, size_t len)
{
	const struct vu_msg_info *info = vu_msg_info(dir, request);

	if (info)
		return info->name;
	snprintf(buf, len, "message %u", request);
	return buf;
}

static int check_range(const char *name, const char *what, const char *unit, unsigned int have,
		       unsigned int lo, unsigned int hi, int code, struct vp_err *e)
{
	if (have >= lo && have <= hi)
		return 0;
	if (lo == hi)
		return vp_err_set(e, code, "%s%s has %u %s, expected %u", name, what, have, unit, lo);
	return vp_err_set(e, code, "%s%s has %u %s, expected %u to %u", name, what, have, unit, lo, hi);
}

/* SET_MEM_TABLE and the config messages carry a count that fixes their exact size. */
static int check_counted(const struct vu_msg *m, const char *name, struct vp_err *e)
{
	uint32_t want;

	switch (m->hdr.request) {
	case VU_SET_MEM_TABLE:
		if (m->p.mem.nregions > VU_MAX_TABLE_REGIONS)
			return vp_err_set(e, -EBADMSG, "%s announces %u regions, at most %u are possible",
					  name, m->p.mem.nregions, VU_MAX_TABLE_REGIONS);
		want = 8 + m->p.mem.nregions * (uint32_t)sizeof(struct vu_mem_region);
		break;
	case VU_GET_CONFIG:
	case VU_SET_CONFIG:
		if (m->p.config.size > VU_MAX_CONFIG)
			return vp_err_set(e, -EBADMSG, "%s is about %u bytes, at most %u are possible",
					  name, m->p.config.size, VU_MAX_CONFIG);
		want = VU_CONFIG_HDR_SIZE + m->p.config.size;
		break;
	default:
		return 0;
	}
	if (m->hdr.size != want)
		return vp_err_set(e, -EBADMSG, "%s has a payload of %u bytes, its own count makes it %u",
				  name, m->hdr.size, want);
	return 0;
}

int vu_msg_check(enum vu_dir dir, const struct vu_msg *m, unsigned int nfds, uint64_t pf,
		 unsigned int state, struct vp_err *e)
{
	const struct vu_msg_info *info = vu_msg_info(dir, m->hdr.request);
	int rc;

	if ((m->hdr.flags & VU_FLAG_VERSION_MASK) != VU_FLAG_VERSION)
		return vp_err_set(e, -EBADMSG, "message %u has protocol version %u, expected %u",
				  m->hdr.request, m->hdr.flags & VU_FLAG_VERSION_MASK, VU_FLAG_VERSION);
	if (!info)
		return vp_err_set(e, -ENOSYS, "message %u is unknown, expected 1 to %u", m->hdr.request,
				  (dir == VU_FROM_FRONTEND ? VU_FE_MSG_END : VU_BE_MSG_END) - 1);
	if (m->hdr.flags & VU_FLAG_REPLY)
		return vp_err_set(e, -EBADMSG, "%s is flagged as a reply, expected a request", info->name);
	rc = check_range(info->name, "", "bytes of payload", m->hdr.size, info->min, info->max, -EBADMSG, e);
	if (rc)
		return rc;
	if (dir == VU_FROM_FRONTEND) {
		rc = check_counted(m, info->name, e);
		if (rc)
			return rc;
	}
	rc = check_range(info->name, "", "file descriptors", nfds, info->fd_min, info->fd_max, -EBADF, e);
	if (rc)
		return rc;
	if (dir == VU_FROM_FRONTEND && m->hdr.request == VU_SET_MEM_TABLE && nfds != m->p.mem.nregions)
		return vp_err_set(e, -EBADF,
				  "SET_MEM_TABLE has %u file descriptors for %u regions, expected one for each", nfds,
				  m->p.mem.nregions);
	if (info->pf != NO_PF && !(pf & VP_BIT(info->pf)))
		return vp_err_set(e, -EOPNOTSUPP, "%s needs protocol feature %s, which was not negotiated",
				  info->name, vu_pf_name(info->pf));
	if (info->flags & VU_MI_NEVER)
		return vp_err_set(e, -EOPNOTSUPP, "%s is not supported", info->name);
	if (!(info->states & state))
		return vp_err_set(e, -EPROTO, "%s came before SET_OWNER", info->name);
	return 0;
}

int vu_reply_check(enum vu_dir dir, uint32_t request, const struct vu_msg *m, unsigned int nfds,
		   struct vp_err *e)
{
	const struct vu_msg_info *info = vu_msg_info(dir, request);
	char nb[24], rb[24];
	const char *name = vu_msg_name(dir, request, nb, sizeof(nb));
	int rc;

	if ((m->hdr.flags & VU_FLAG_VERSION_MASK) != VU_FLAG_VERSION)
		return vp_err_set(e, -EBADMSG, "the reply to %s has protocol version %u, expected %u", name,
				  m->hdr.flags & VU_FLAG_VERSION_MASK, VU_FLAG_VERSION);
	if (!(m->hdr.flags & VU_FLAG_REPLY))
		return vp_err_set(e, -EBADMSG, "%s came as a request where the reply to %s was expected",
				  vu_msg_name(dir, m->hdr.request, rb, sizeof(rb)), name);
	if (m->hdr.request != request)
		return vp_err_set(e, -EBADMSG, "a reply to %s came where the one to %s was expected",
				  vu_msg_name(dir, m->hdr.request, rb, sizeof(rb)), name);
	if (!info)
		return 0;
	rc = check_range(name, "'s reply", "bytes of payload", m->hdr.size, info->rmin, info->rmax, -EBADMSG, e);
	if (rc)
		return rc;
	return check_range(name, "'s reply", "file descriptors", nfds, 0, info->rfd_max, -EBADF, e);
}
