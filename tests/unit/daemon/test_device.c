/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of device types, and profiles of back-ends. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_net.h>

#include "conf/types.h"
#include "device/device.h"

static struct vp_conf_link l;
static struct vp_err e;

static void link_of(const char *type, unsigned queues)
{
	assert_int_equal(vp_conf_link_init(&l, "x", &e), 0);
	l.device_type = vp_type_parse(type);
	l.endpoint = VP_ENDPOINT_PORT;
	l.pairs = queues;
}

static void test_types(void **state)
{
	static const struct {
		const char *word, *name;
		uint32_t id;
		unsigned pairs, queues;
	} t[] = {
		{ "net", "net", 1, 2, 4 },   { "1", "net", 1, 1, 2 },	     { "blk", "blk", 2, 3, 3 },
		{ "scsi", "scsi", 8, 2, 4 }, { "vsock", "vsock", 19, 1, 2 }, { "fs", "fs", 26, 1, 2 },
		{ "26", "fs", 26, 3, 4 },    { "25", "25", 25, 5, 5 },
	};

	for (size_t i = 0; i < VP_ARRAY_SIZE(t); i++) {
		link_of(t[i].word, t[i].pairs);
		assert_int_equal(l.device_type, t[i].id);
		assert_string_equal(vp_type_name(l.device_type), t[i].name);
		assert_int_equal(vp_type_queues(&l), t[i].queues);
		assert_int_equal(vp_device_of(&l)->waits, t[i].id != 1);
	}
	assert_int_equal(vp_type_parse("0"), 0);
	assert_int_equal(vp_type_parse("64"), 0);
	assert_int_equal(vp_type_parse("2x"), 0);
	assert_int_equal(vp_type_parse(""), 0);
	assert_int_equal(vp_type_parse("disk"), 0);
}

static void test_queue_roles(void **state)
{
	assert_int_equal(vp_device_net.use(0), VP_QUEUE_RECEIVES);
	assert_int_equal(vp_device_net.use(3), VP_QUEUE_SENDS);
	assert_int_equal(vp_device_blk.use(1), VP_QUEUE_ASKS);
	assert_int_equal(vp_device_scsi.use(1), VP_QUEUE_RECEIVES);
	/* QEMU's own, which it acknowledges whatever is offered. */
	link_of("scsi", 1);
	assert_true(vp_device_scsi.offered(&l, 0, &(struct vp_profile){ .known = true }) & VP_BIT(2));
	assert_int_equal(vp_device_vsock.use(1), VP_QUEUE_SENDS);
}

static void test_written_disk(void **state)
{
	uint8_t buf[VP_DEVICE_CONFIG_MAX];
	struct vp_profile p;

	link_of("blk", 4);
	vp_profile_written(&l, &p);
	assert_false(p.known);
	l.capacity = UINT64_C(10) << 30;
	l.block_size = 4096;
	vp_profile_written(&l, &p);
	assert_true(p.known && p.written);
	assert_true(vp_device_of(&l)->offered(&l, 0, &p) & VP_BIT(VIRTIO_BLK_F_MQ));
	assert_int_equal(vp_device_of(&l)->config(&l, 0, &p, false, buf), 60);
	assert_int_equal(vp_config_get(buf, offsetof(struct virtio_blk_config, capacity), 8), 20971520);
	assert_int_equal(vp_config_get(buf, offsetof(struct virtio_blk_config, blk_size), 4), 4096);
	assert_int_equal(vp_config_get(buf, offsetof(struct virtio_blk_config, num_queues), 2), 4);
	assert_true(vp_device_blk.writable(32, 1));
	assert_false(vp_device_blk.writable(32, 2) || vp_device_blk.writable(0, 8));
	/* A learned one would change, this one does not. */
	{
		struct vp_profile come = { .config_size = 60 };

		assert_false(vp_profile_refresh(&p, &come));
		p.written = false;
		assert_true(vp_profile_refresh(&p, &come));
		assert_false(vp_profile_refresh(&p, &come));
	}
}

static void test_profile_is_kept_as_text(void **state)
{
	struct vp_profile p = { .known = true, .features = 0x7e46, .queues = 4, .config_size = 60 }, q;
	char text[1024];
	unsigned n;

	link_of("blk", 1);
	for (unsigned i = 0; i < 60; i++)
		p.config[i] = (uint8_t)(i * 5);
	n = vp_profile_write(&l, &p, text, sizeof(text));
	assert_int_equal(strlen(text), n);
	assert_int_equal(vp_profile_read(&l, text, &q), 0);
	assert_memory_equal(&p, &q, sizeof(p));
	/* Of another type, cut off, or not a profile at all. */
	l.device_type = 26;
	assert_int_equal(vp_profile_read(&l, text, &q), -EINVAL);
	l.device_type = 2;
	for (unsigned cut = 0; cut < n; cut++) {
		char part[1024];

		snprintf(part, sizeof(part), "%.*s", (int)cut, text);
		assert_int_equal(vp_profile_read(&l, part, &q), -EINVAL);
	}
	assert_int_equal(vp_profile_read(&l, "type=2\nfeatures=0x1\nqueues=999\nconfig=\n", &q), -EINVAL);
}

static void test_fits(void **state)
{
	struct vp_profile p = { .known = true, .features = VP_BIT(9) | VP_BIT(6), .queues = 2, .config_size = 60 };
	struct vp_profile come = p;
	uint64_t missing;

	link_of("blk", 2);
	vp_config_put(p.config, 20, 4, 512);
	vp_config_put(come.config, 20, 4, 512);
	assert_int_equal(vp_profile_fits(&l, &p, &come, &missing, &e), 0);
	come.features = VP_BIT(6);
	assert_int_equal(vp_profile_fits(&l, &p, &come, &missing, &e), -EPERM);
	assert_true(missing == VP_BIT(9));
	assert_non_null(strstr(e.msg, "FLUSH"));
	come.features = p.features;
	come.queues = 1;
	assert_int_equal(vp_profile_fits(&l, &p, &come, &missing, &e), -EINVAL);
	come.queues = 0; /* it does not say */
	assert_int_equal(vp_profile_fits(&l, &p, &come, &missing, &e), 0);
	come.config_size = 59;
	assert_int_equal(vp_profile_fits(&l, &p, &come, &missing, &e), -EINVAL);
	come.config_size = 60;
	vp_config_put(come.config, 20, 4, 4096);
	assert_int_equal(vp_profile_fits(&l, &p, &come, &missing, &e), -EINVAL);
}

static void test_keys(void **state)
{
	link_of("blk", 1);
	assert_int_equal(vp_type_check(&l, &e), 0);
	l.mtu = 1500;
	assert_int_equal(vp_type_check(&l, &e), -EINVAL);
	link_of("blk", 1);
	l.endpoint = VP_ENDPOINT_VIRTIO_NET;
	assert_int_equal(vp_type_check(&l, &e), -EINVAL);
	link_of("net", 1);
	l.has_features = true;
	assert_int_equal(vp_type_check(&l, &e), -EINVAL);
	link_of("vsock", 2);
	assert_int_equal(vp_type_check(&l, &e), -EINVAL);
	link_of("fs", 2);
	memcpy(l.tag, "home", 4);
	assert_int_equal(vp_type_check(&l, &e), 0);
	l.cid = 5;
	assert_int_equal(vp_type_check(&l, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_types),	     cmocka_unit_test(test_queue_roles),
		cmocka_unit_test(test_written_disk), cmocka_unit_test(test_profile_is_kept_as_text),
		cmocka_unit_test(test_fits),	     cmocka_unit_test(test_keys),
	};

	return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
