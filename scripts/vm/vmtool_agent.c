/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vmtool: init and the command agent of a test guest.
 *
 * The agent speaks frames over a serial port: 0x02, payload, 0x03; inside the payload the bytes 0x01 to 0x03 are sent
 * as 0x01, byte ^ 0x40. So a frame cut short by a reset can never swallow the next one. guest to host:  "H boot_id
 * uptime\n"            the agent started; the same again for each 0x05 outside a frame "R id status length\n" + output
 * of a command (stdout and stderr together) host to guest:  "C id timeout_s\n" + shell text Commands run concurrently.
 * A command is over when its shell has ended, whatever it left in the background.
 */
#include "vmtool.h"

#include <dirent.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>

#define MAX_CMDS 32
#define MAX_OUT (1 << 20)

struct cmd {
	int used;
	unsigned long id;
	pid_t pid;
	int fd;
	double deadline;
	int timed_out;
	char *out;
	size_t len;
};

static struct cmd cmds[MAX_CMDS];

static void write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t r = write(fd, p, n);

		if (r < 0) {
			struct pollfd pf = { .fd = fd, .events = POLLOUT };

			if (errno != EAGAIN && errno != EINTR)
				return;
			poll(&pf, 1, 1000);
			continue;
		}
		p += r;
		n -= (size_t)r;
	}
}

static void send_frame(int fd, const char *head, const char *body, size_t len)
{
	size_t hl = strlen(head);
	char *buf = malloc(2 * (hl + len) + 2);
	size_t n = 0;

	if (!buf)
		return;
	buf[n++] = 2;
	for (size_t i = 0; i < hl + len; i++) {
		char c = i < hl ? head[i] : body[i - hl];

		if (c >= 1 && c <= 3) {
			buf[n++] = 1;
			c ^= 0x40;
		}
		buf[n++] = c;
	}
	buf[n++] = 3;
	write_all(fd, buf, n);
	free(buf);
}

static void start_cmd(int ser, char *frame)
{
	sigset_t none;
	char *nl = strchr(frame, '\n');
	unsigned long id;
	double tmo;
	struct cmd *c = NULL;
	int p[2];

	if (!nl || sscanf(frame, "C %lu %lf", &id, &tmo) != 2)
		return;
	for (int i = 0; i < MAX_CMDS && !c; i++)
		if (!cmds[i].used)
			c = &cmds[i];
	if (!c || pipe2(p, O_CLOEXEC) < 0) {
		char head[64];

		snprintf(head, sizeof(head), "R %lu 125 0\n", id);
		send_frame(ser, head, "", 0);
		return;
	}
	memset(c, 0, sizeof(*c));
	c->used = 1;
	c->id = id;
	c->deadline = now() + tmo;
	c->fd = p[0];
	fcntl(c->fd, F_SETFL, O_NONBLOCK);
	c->pid = fork();
	if (c->pid == 0) {
		int nul = open("/dev/null", O_RDWR);

		setsid();
		dup2(nul, 0);
		dup2(p[1], 1);
		dup2(p[1], 2);
		signal(SIGCHLD, SIG_DFL);
		signal(SIGPIPE, SIG_DFL);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execl("/bin/sh", "sh", "-c", nl + 1, (char *)NULL);
		_exit(127);
	}
	close(p[1]);
}

static void drain(struct cmd *c)
{
	char b[4096];
	ssize_t r;

	while ((r = read(c->fd, b, sizeof(b))) > 0) {
		if (c->len + (size_t)r > MAX_OUT)
			continue;
		char *n = realloc(c->out, c->len + (size_t)r);

		if (!n)
			continue;
		c->out = n;
		memcpy(c->out + c->len, b, (size_t)r);
		c->len += (size_t)r;
	}
}

static void finish(int ser, struct cmd *c, int status)
{
	char head[96];
	int rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);

	drain(c);
	if (c->timed_out)
		rc = 124;
	snprintf(head, sizeof(head), "R %lu %d %zu\n", c->id, rc, c->len);
	send_frame(ser, head, c->out ? c->out : "", c->len);
	close(c->fd);
	free(c->out);
	c->used = 0;
}

static void on_child(int sig)
{
	(void)sig;
}

int agent(const char *dev)
{
	static char frame[1 << 16];
	size_t n = 0;
	int in = 0, esc = 0;
	struct termios t;
	sigset_t block, orig;
	struct sigaction sa = { .sa_handler = on_child };
	int ser = open(dev, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	char head[128], boot_id[64] = "";
	int f = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	if (f >= 0 && read(f, boot_id, sizeof(boot_id) - 1) < 0)
		return die("boot_id");
	close(f);
	boot_id[strcspn(boot_id, "\n")] = 0;
	if (ser < 0)
		return die(dev);
	if (tcgetattr(ser, &t) == 0) {
		cfmakeraw(&t);
		t.c_cflag |= CLOCAL | CREAD;
		cfsetspeed(&t, B115200);
		tcsetattr(ser, TCSANOW, &t);
	}
	/* SIGCHLD is let in only while ppoll waits: a child that ends in between is not missed. */
	sigemptyset(&block);
	sigaddset(&block, SIGCHLD);
	sigprocmask(SIG_BLOCK, &block, &orig);
	sigdelset(&orig, SIGCHLD);
	sigaction(SIGCHLD, &sa, NULL);

	snprintf(head, sizeof(head), "H %s %.2f\n", boot_id, now());
	send_frame(ser, head, "", 0);
	for (;;) {
		struct pollfd pf[1 + MAX_CMDS];
		struct timespec ts = { .tv_sec = 1 };
		int np = 0, status;
		char b[512];
		ssize_t r;
		pid_t pid;

		pf[np].fd = ser;
		pf[np++].events = POLLIN;
		for (int i = 0; i < MAX_CMDS; i++) {
			if (!cmds[i].used || cmds[i].fd < 0)
				continue;
			pf[np].fd = cmds[i].fd;
			pf[np++].events = POLLIN;
		}
		ppoll(pf, (nfds_t)np, &ts, &orig);
		while ((r = read(ser, b, sizeof(b))) > 0) {
			for (ssize_t i = 0; i < r; i++) {
				char ch = b[i];

				if (ch == 2) {
					in = 1;
					esc = 0;
					n = 0;
				} else if (ch == 3 && in) {
					frame[n] = 0;
					in = 0;
					start_cmd(ser, frame);
				} else if (ch == 1 && in) {
					esc = 1;
				} else if (ch == 5 && !in) {
					send_frame(ser, head, "", 0);
				} else if (in && n < sizeof(frame) - 1) {
					frame[n++] = esc ? ch ^ 0x40 : ch;
					esc = 0;
				}
			}
		}
		for (int i = 0; i < MAX_CMDS; i++) {
			if (!cmds[i].used)
				continue;
			drain(&cmds[i]);
			if (!cmds[i].timed_out && now() > cmds[i].deadline) {
				cmds[i].timed_out = 1;
				kill(-cmds[i].pid, SIGKILL);
			}
		}
		/* As init it also reaps what commands left behind. */
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			for (int i = 0; i < MAX_CMDS; i++)
				if (cmds[i].used && cmds[i].pid == pid)
					finish(ser, &cmds[i], status);
	}
}

static int load(const char *path, const char *params)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int r;

	if (fd < 0)
		return -1;
	r = (int)syscall(SYS_finit_module, fd, params, 0);
	close(fd);
	return r;
}

int init_guest(void)
{
	char line[512];
	FILE *f;
	int fd;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mkdir("/dev/hugepages", 0755);
	mount("tmpfs", "/tmp", "tmpfs", 0, "size=90%");
	mount("tmpfs", "/run", "tmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	if (fd >= 0) {
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
		if (fd > 2)
			close(fd);
	}
	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/", 1);
	f = fopen("/etc/boot-modules", "re");
	while (f && fgets(line, sizeof(line), f)) {
		char *params = "";
		char *sp;

		line[strcspn(line, "\n")] = 0;
		sp = strchr(line, ' ');
		if (sp) {
			*sp = 0;
			params = sp + 1;
		}
		if (line[0] && load(line, params) < 0 && errno != EEXIST)
			fprintf(stderr, "vmtool: %s: %s\n", line, strerror(errno));
	}
	if (f)
		fclose(f);
	if (access("/etc/rc", X_OK) == 0 && system("/etc/rc") != 0)
		fprintf(stderr, "vmtool: /etc/rc failed\n");
	return agent("/dev/ttyS1");
}
