// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "selftest.h"

/* Which numbers carry the kicks is the host's choice, and it may change while the queues run. */
void t_wiring(int rounds)
{
	const struct vhp_abi_control *c;
	struct vhp_abi_state s;
	struct vhp_ioc_info info;
	int fd = open_port(O_RDWR), kick[VHP_MAX_QUEUES], call[VHP_MAX_QUEUES], i;
	uint64_t one = 1;
	uint32_t q, map;

	CHECK(!ioctl(fd, VHP_IOC_INFO, &info));
	c = map_control(fd);
	attach(fd);
	wait_state(fd, c, &s, is_up, 20);
	set_all_eventfds(fd, info.max_queues, kick, call);
	for (map = 0; map < 4; map++) {
		CHECK(command(fd, VHP_CMD_QUEUE_STOPPED, 0xcafe, map, 0, 0, NULL) == VHP_ST_OK);
		for (i = 0; i < rounds; i++) {
			q = i % info.max_queues;
			/* others' kicks may come here, too; not later than ours */
			wait_eventfd(kick[q], 0);
			CHECK(write(call[q], &one, 8) == 8);
			if (!wait_eventfd(kick[q], 2000))
				fail("wiring %u: no kick on queue %u in round %d", map, q, i);
		}
	}
	/* the usual one again: each queue's alone */
	usleep(20000);
	for (q = 0; q < info.max_queues; q++)
		wait_eventfd(kick[q], 0);
	CHECK(write(call[0], &one, 8) == 8 && wait_eventfd(kick[0], 2000));
	for (q = 1; q < info.max_queues; q++)
		CHECK(!wait_eventfd(kick[q], 0));
	printf("ok wiring %u maps, %d rounds each\n", map, rounds);
}
