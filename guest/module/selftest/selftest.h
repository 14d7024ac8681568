/* SPDX-License-Identifier: GPL-2.0-only */
/* What the tests share: a port, its state and commands. What goes wrong ends the program with "FAIL TEST: why". */
#ifndef SELFTEST_H
#define SELFTEST_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <vhost-pci/abi.h>
#include <vhost-pci/uapi.h>

void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *fmt, ...);
#define CHECK(c) do { if (!(c)) fail("line %d: %s (%s)", __LINE__, #c, strerror(errno)); } while (0)

/* Seconds. */
double now(void);
int open_port(int flags);
const struct vhp_abi_control *map_control(int fd);
void read_state(const struct vhp_abi_control *c, struct vhp_abi_state *s);
/* Wait until the state satisfies `ok`, woken by the port's fd alone. */
void wait_state(int fd, const struct vhp_abi_control *c, struct vhp_abi_state *s,
		bool (*ok)(const struct vhp_abi_state *), double secs);
bool is_up(const struct vhp_abi_state *s);
bool is_down(const struct vhp_abi_state *s);
/* Its status. */
uint32_t command(int fd, uint32_t op, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		 uint64_t *value);
void attach(int fd);
/* The window's fd; waits while the device that carries it is being plugged. */
int window(int fd, uint32_t slot, uint32_t serial, struct vhp_ioc_window *out);
/* 0 or -errno. */
int set_eventfd(int fd, unsigned long req, uint32_t signal, int efd);
/* New ones for the kick and the call of n queues. */
void set_all_eventfds(int fd, uint32_t n, int *kick, int *call);
/* Its count, 0 when none came within ms milliseconds. */
uint64_t wait_eventfd(int efd, int ms);

void t_key(void);
void t_wiring(int rounds);
void t_vfio(const char *addr);

#endif
