// SPDX-License-Identifier: BSD-3-Clause
/*
 * What is said of an interface that cannot be the tap, and what is done about a tap that has the driver VM's address.
 * Each in a network namespace of its own.
 */
#include "double.h"

#include <errno.h>
#include <net/if_arp.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tap.h"

static const uint8_t driver[6] = { 0x52, 0x54, 0, 0x0d, 1, 1 };

static int alone(void **state)
{
	(void)state;
	return unshare(CLONE_NEWNET) || access("/dev/net/tun", R_OK | W_OK) ? 1 : 0;
}

static void test_loopback(void **state)
{
	struct vp_err e = { 0 };
	struct tap t;

	if (alone(state))
		skip();
	assert_int_equal(tap_open(&t, "lo", 1, &e), -EINVAL);
	assert_string_equal(e.msg, "interface lo exists and is not a tap: choose another name");
}

static void mac_of(struct tap *t, uint8_t mac[6])
{
	struct ifreq ifr = { 0 };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	memcpy(ifr.ifr_name, t->name, sizeof(t->name));
	assert_int_equal(ioctl(s, SIOCGIFHWADDR, &ifr), 0);
	close(s);
	memcpy(mac, ifr.ifr_hwaddr.sa_data, 6);
}

/* Packets to the driver VM would go to the tap itself. Another address is left as it is. */
static void test_mac_of_the_driver_vm(void **state)
{
	static const uint8_t own[6] = { 0x52, 0x54, 0, 0x0d, 1, 2 };
	struct vp_err e = { 0 };
	uint8_t mac[6];
	struct tap t;

	if (alone(state))
		skip();
	assert_int_equal(tap_open(&t, "vptest0", 1, &e), 0);
	assert_int_equal(tap_set_mac(&t, own, &e), 0);
	assert_int_equal(tap_avoid_mac(&t, driver, &e), 0);
	mac_of(&t, mac);
	assert_memory_equal(mac, own, 6);

	assert_int_equal(tap_set_mac(&t, driver, &e), 0);
	assert_int_equal(tap_avoid_mac(&t, driver, &e), 0);
	mac_of(&t, mac);
	assert_memory_not_equal(mac, driver, 6);
	assert_int_equal(mac[0] & 3, 2);
	tap_close(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loopback),
		cmocka_unit_test(test_mac_of_the_driver_vm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
