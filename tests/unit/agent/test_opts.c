// SPDX-License-Identifier: BSD-3-Clause
/* The command line, sd_notify, and the status as JSON. */
#include "double.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "notify.h"
#include "opts.h"
#include "status.h"

static struct opts o;

static int parse(const char *line)
{
	static char buf[256];
	char *argv[32] = { (char *)(uintptr_t)"agent" }, *t;
	int argc = 1;

	snprintf(buf, sizeof(buf), "%s", line);
	for (t = strtok(buf, " "); t; t = strtok(NULL, " "))
		argv[argc++] = t;
	return opts_parse(&o, argc, argv);
}

static void test_good(void **state)
{
	assert_int_equal(parse("--tap lan0"), 0);
	assert_string_equal(o.tap, "lan0");
	assert_string_equal(o.port, "auto");
	assert_int_equal(parse("-t /dev/tap5 -p /dev/vhost-pci3 -q 4 --mac 02:00:00:00:00:0a --mtu 9000 --keep -w "
			       "--busy-poll 50"),
			 0);
	assert_int_equal(o.pairs, 4);
	assert_int_equal(o.mac[5], 10);
	assert_int_equal(o.mtu, 9000);
	assert_true(o.keep && o.wait && o.has_mac);
	assert_int_equal(parse("--vhost-user-server /run/x -p fw-lan"), 0);
	assert_true(o.server);
	assert_int_equal(parse("--vsock 42 --wait"), 0);
	assert_int_equal(o.cid, 42);
	assert_null(o.vhost_user);
	assert_int_equal(parse("--scsi naa.5001405000000001 --port disks"), 0);
	assert_string_equal(o.wwpn, "naa.5001405000000001");
	assert_false(o.cid || o.tap || o.vhost_user);
	assert_int_equal(parse("--status --json"), 0);
	assert_true(o.status && o.json);
}

static void test_bad(void **state)
{
	static const char *const lines[] = {
		"",
		"--tap",
		"--tap a --vhost-user b",
		"--vhost-user a --vhost-user-server b", "--tap x --state /run/s",
		"--tap a extra",
		"--frobnicate",
		"--tap a -q 0",
		"--tap a -q 65",
		"--tap a -q x",
		"--tap a -q -1",
		"--tap a --mtu 67",
		"--tap a --mtu 65536",
		"--tap a --mac 02:00:00:00:00",
		"--tap a --mac 01:00:00:00:00:01",
		"--tap a --mac 02:00:00:00:00:01x",
		"--vhost-user a --bridge br0",
		"--vhost-user a -q 2",
		"--tap a --json",
		"--status --tap a",
		"--tap a -p",
		"--vsock 2",
		"--vsock 4294967295",
		"--vsock x",
		"--vsock 3 --tap a",
		"--vsock 3 --vhost-user a",
		"--vsock 3 --keep",
		"--status --vsock 3",
		"--scsi",
		"--scsi a/b",
		"--scsi naa.1 --vsock 3",
		"--scsi naa.1 --tap a",
		"--status --scsi naa.1",
		"--scsi naa.1 --vhost-user a",
		"--scsi naa.1 --mtu 1500",
	};

	int keep = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY), rc;

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		dup2(null, STDERR_FILENO);
		rc = parse(lines[i]);
		dup2(keep, STDERR_FILENO);
		if (rc != -EINVAL)
			fail_msg("accepted: %s", lines[i]);
	}
	close(keep);
	close(null);
}

static void test_notify(void **state)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char buf[64] = "";
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);

	snprintf(sa.sun_path + 1, sizeof(sa.sun_path) - 1, "vhp-agent-test-%d", (int)getpid());
	assert_int_equal(bind(s, (struct sockaddr *)&sa, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
								      strlen(sa.sun_path + 1))), 0);
	sa.sun_path[0] = '@';
	setenv("NOTIFY_SOCKET", sa.sun_path, 1);
	notify("READY=1\nSTATUS=%s", "up");
	assert_int_equal(recv(s, buf, sizeof(buf) - 1, MSG_DONTWAIT), 17);
	assert_string_equal(buf, "READY=1\nSTATUS=up");
	close(s);
	/* nobody there, or nonsense: nothing happens */
	notify("READY=1");
	setenv("NOTIFY_SOCKET", "vsock:1", 1);
	notify("READY=1");
	unsetenv("NOTIFY_SOCKET");
	notify("READY=1");
}

static void test_status(void **state)
{
	static struct vp_state s;
	struct fake_port f;
	struct vp_err e;
	char *text = NULL;
	size_t len;
	FILE *out;

	fake_init(&f, 4);
	fake_up(&f, 2);
	/* a name is the host's, but must not break the output */
	snprintf(f.port.info.name, sizeof(f.port.info.name), "a\"b\\\n\033");
	assert_int_equal(port_read_state(&f.port, &s, &e), 0);
	out = open_memstream(&text, &len);
	status_print(out, &f.port, &s, NULL, true);
	fclose(out);
	assert_non_null(strstr(text, "\"name\": \"a\\\"b\\\\\\u000a\\u001b\""));
	assert_non_null(strstr(text, "\"link\": \"up\""));
	assert_non_null(strstr(text, "\"names\": \"VERSION_1\""));
	assert_non_null(strstr(text, "\"queue\": 1, \"size\": 256, \"run\": 1, \"base\": 8, \"started\": true"));
	/* balanced, as far as that goes without a parser */
	assert_int_equal(text[len - 2], '}');
	free(text);
	out = open_memstream(&text, &len);
	status_print(out, &f.port, &s, NULL, false);
	fclose(out);
	assert_null(strchr(text, '\033'));
	assert_non_null(strstr(text, "queue 1   256 entries"));
	free(text);
	fake_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_notify),
		cmocka_unit_test(test_status),
		cmocka_unit_test(test_bad),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
