/* SPDX-License-Identifier: BSD-3-Clause */
/* Records of another daemon that say what this one's own state never is: they are refused. */
#include <errno.h>
#include <linux/virtio_config.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "attach/shmem_priv.h"
#include "base/util.h"
#include "front/vdev_priv.h"

/* All of it, with duplicates of its fds. */
static struct vp_rec_in reader(const struct vp_rec *r, struct vp_rec_fds *f)
{
	f->n = r->n_fds;
	f->fd = calloc(f->n + 1, sizeof(int));
	assert_non_null(f->fd);
	for (unsigned i = 0; i < f->n; i++)
		f->fd[i] = dup(r->fd[i]);
	return (struct vp_rec_in){ .p = r->p, .n = r->n, .fds = f };
}

/* Where a packed ring is lies in it, also while its translation is still to come. */
static void test_packed_ring_that_waits(void **state)
{
	static const enum vp_vdev_wait waits[] = { VP_VDEV_WAIT_NONE, VP_VDEV_WAIT_REBIND };

	for (unsigned i = 0; i < 2 * VP_ARRAY_SIZE(waits); i++) {
		struct vp_vdev *v = calloc(1, sizeof(*v) + sizeof(v->ring[0]));
		struct vp_virtq *vq = &v->ring[0].rq.vq;
		struct vp_rec_fds fds;
		struct vp_rec r = { 0 };
		struct vp_err e = { 0 };
		struct vp_rec_in in;

		v->n = 1;
		v->features = VP_BIT(VIRTIO_F_RING_PACKED);
		v->ring[0].wait = waits[i / 2];
		v->ring[0].usable = !v->ring[0].wait;
		*vq = (struct vp_virtq){ .size = 256, .packed = true };
		*(i & 1 ? &vq->last_avail : &vq->used_idx) = 256;
		vp_vdev_save_hot(v, &r);
		in = reader(&r, &fds);
		assert_int_equal(vp_vdev_restore_hot(v, &in, &e), -EPROTO);
		vp_rec_fds_close(&fds);
		free(fds.fd);
		vp_rec_free(&r);
		free(v);
	}
}

static int shmem(const struct extent *x, uint64_t aperture)
{
	struct vp_conf_link link = { .aperture = aperture };
	struct shmem from = { .sig0 = eventfd(0, 0) }, to = { .sig0 = -1 };
	struct vp_rec_fds fds;
	struct vp_rec r = { 0 };
	struct vp_err e = { 0 };
	struct vp_rec_in in;
	int ret;

	from.c.link = to.c.link = &link;
	from.ext[3] = *x;
	vp_shmem_save_hot(&from.a, &r);
	in = reader(&r, &fds);
	ret = vp_shmem_restore_hot(&to.a, &in, &e);
	vp_rec_fds_close(&fds);
	free(fds.fd);
	vp_rec_free(&r);
	close(from.sig0);
	vp_close(&to.sig0);
	return ret;
}

/* What the VMM has mapped lies in the aperture: who looks for a place among all of it comes to an end. */
static void test_extents(void **state)
{
	const uint64_t aperture = UINT64_C(1) << 30, size = aperture - VHP_CTRL_SIZE;

	assert_int_equal(shmem(&(struct extent){ 0 }, aperture), 0);
	assert_int_equal(shmem(&(struct extent){ .off = 4096, .len = size - 4096 }, aperture), 0);
	assert_int_equal(shmem(&(struct extent){ .off = 4096, .len = size }, aperture), -EPROTO);
	assert_int_equal(shmem(&(struct extent){ .off = 4096, .len = UINT64_MAX }, aperture), -EPROTO);
	assert_int_equal(shmem(&(struct extent){ .off = size, .len = 1 }, aperture), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_packed_ring_that_waits),
		cmocka_unit_test(test_extents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
