/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The one program of the test guests besides busybox: init, command agent and traffic tools.
 * Linked statically, so that an initramfs needs no libraries. Runs only inside test VMs and trusts its host.
 *
 * The agent speaks frames over a serial port: 0x02, payload, 0x03; inside the payload the bytes 0x01 to 0x03 are sent as
 * 0x01, byte ^ 0x40. So a frame cut short by a reset can never swallow the next one.
 *   guest to host:  "H boot_id uptime\n"            the agent started; the same again for each 0x05 outside a frame
 *                   "R id status length\n" + output of a command (stdout and stderr together)
 *   host to guest:  "C id timeout_s\n" + shell text
 * Commands run concurrently. A command is over when its shell has ended, whatever it left in the background.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_CMDS 32
#define MAX_OUT (1 << 20)

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int die(const char *what)
{
	fprintf(stderr, "vmtool: %s: %s\n", what, strerror(errno));
	return 1;
}

/* ---- agent ---------------------------------------------------------------------------------------------- */

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

static int agent(const char *dev)
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

static int init_guest(void)
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

/* ---- traffic -------------------------------------------------------------------------------------------- */

#define BLK 65536
static unsigned char blk[BLK];

/* Every block of the stream is the same noise with the block's number in front: loss, repetition and change all show. */
static void make_block(void)
{
	uint64_t x = 0x9e3779b97f4a7c15ull;

	for (size_t i = 0; i < BLK; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(blk + i, &x, 8);
	}
}

static int tcp_listen(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(s, (void *)&a, sizeof(a)) < 0 || listen(s, 4) < 0)
		return -1;
	return s;
}

static int tcp_connect(const char *host, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	double end = now() + 60;
	int s;

	inet_pton(AF_INET, host, &a.sin_addr);
	do {
		s = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(s, (void *)&a, sizeof(a)) == 0)
			return s;
		close(s);
		usleep(50000);
	} while (now() < end);
	return -1;
}

static int rx(int port)
{
	static unsigned char buf[BLK];
	uint64_t total = 0, bad = 0, num = 0;
	size_t have = 0;
	double start, secs;
	ssize_t r;
	int l = tcp_listen(port), s;

	if (l < 0)
		return die("listen");
	s = accept(l, NULL, NULL);
	if (s < 0)
		return die("accept");
	make_block();
	start = now();
	while ((r = read(s, buf + have, BLK - have)) > 0) {
		total += (uint64_t)r;
		have += (size_t)r;
		if (have < BLK)
			continue;
		if (memcmp(buf, &num, 8) || memcmp(buf + 8, blk + 8, BLK - 8))
			bad++;
		num++;
		have = 0;
	}
	secs = now() - start;
	if (have > 8 && (memcmp(buf, &num, 8) || memcmp(buf + 8, blk + 8, have - 8)))
		bad++;
	printf("bytes=%llu secs=%.3f mbps=%.1f bad=%llu err=%d\n", (unsigned long long)total, secs,
	       (double)total * 8 / 1e6 / (secs > 0 ? secs : 1e-9), (unsigned long long)bad, r < 0 ? errno : 0);
	return bad || r < 0;
}

static int tx(const char *host, int port, const char *amount)
{
	double secs = 0, start;
	uint64_t limit = UINT64_MAX, total = 0, num = 0;
	int s = tcp_connect(host, port);

	if (s < 0)
		return die("connect");
	if (!strncmp(amount, "secs=", 5))
		secs = atof(amount + 5);
	else if (!strncmp(amount, "mib=", 4))
		limit = (uint64_t)(atof(amount + 4) * 1048576);
	else
		return 2;
	make_block();
	start = now();
	while (total < limit && (secs == 0 || now() - start < secs)) {
		size_t off = 0;

		memcpy(blk, &num, 8);
		num++;
		while (off < BLK) {
			ssize_t r = write(s, blk + off, BLK - off);

			if (r < 0)
				return die("write");
			off += (size_t)r;
		}
		total += BLK;
	}
	shutdown(s, SHUT_WR);
	/* The receiver closes when it has read everything. */
	if (read(s, blk, 1) < 0)
		return die("close");
	secs = now() - start;
	printf("bytes=%llu secs=%.3f mbps=%.1f\n", (unsigned long long)total, secs, (double)total * 8 / 1e6 / secs);
	return 0;
}

/* A file of noise, another one each time. (Reading as much from /dev/urandom takes an emulated guest a quarter of a minute.) */
static int fill(const char *path, unsigned long mib)
{
	int f = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644), u = open("/dev/urandom", O_RDONLY);
	uint64_t x;

	if (f < 0 || u < 0 || read(u, &x, 8) != 8)
		return die(path);
	x |= 1;
	for (unsigned long n = 0; n < mib * 16; n++) {
		for (size_t i = 0; i < BLK; i += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memcpy(blk + i, &x, 8);
		}
		if (write(f, blk, BLK) != BLK)
			return die("write");
	}
	return 0;
}

static int recvfile(int port, const char *path)
{
	static char buf[1 << 18];
	int l = tcp_listen(port), s, f = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	ssize_t r;

	if (l < 0 || f < 0)
		return die("recvfile");
	s = accept(l, NULL, NULL);
	while ((r = read(s, buf, sizeof(buf))) > 0)
		if (write(f, buf, (size_t)r) != r)
			return die("write");
	return r < 0 ? die("read") : 0;
}

/* The file's own pages go into the packets: what the device reads is wherever the file lies. */
static int sendfile_(const char *host, int port, const char *path)
{
	int s = tcp_connect(host, port), f = open(path, O_RDONLY);
	ssize_t r;
	char c;

	if (s < 0 || f < 0)
		return die("sendfile");
	while ((r = sendfile(s, f, NULL, 1 << 20)) > 0)
		;
	if (r < 0)
		return die("sendfile");
	shutdown(s, SHUT_WR);
	return read(s, &c, 1) < 0 ? die("close") : 0;
}

/* UDP: every datagram carries its number and a checksum over the rest of itself. */
static uint32_t sum32(const unsigned char *p, size_t n)
{
	uint32_t a = 1, b = 0;

	for (size_t i = 0; i < n; i++) {
		a = (a + p[i]) % 65521;
		b = (b + a) % 65521;
	}
	return b << 16 | a;
}

static int utx(const char *host, int port, unsigned long count, size_t size, double pps)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	static unsigned char p[65536];
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	double start = now();

	if (size < 16 || size > 65000)
		return 2;
	inet_pton(AF_INET, host, &a.sin_addr);
	make_block();
	memcpy(p, blk, size);
	for (unsigned long i = 0; i < count; i++) {
		uint32_t seq = (uint32_t)i, c;

		memcpy(p + 4, &seq, 4);
		c = sum32(p + 4, size - 4);
		memcpy(p, &c, 4);
		if (sendto(s, p, size, 0, (void *)&a, sizeof(a)) < 0 && errno != ENOBUFS)
			return die("sendto");
		while (pps > 0 && now() < start + (double)(i + 1) / pps)
			usleep(200);
	}
	printf("sent=%lu secs=%.3f\n", count, now() - start);
	return 0;
}

/* Ends after @count datagrams or @secs seconds. */
static int urx(int port, unsigned long count, double secs)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	static unsigned char p[65536];
	unsigned long got = 0, bad = 0, reord = 0;
	int64_t last = -1;
	int s = socket(AF_INET, SOCK_DGRAM, 0), big = 8 << 20;
	double end = now() + secs;

	setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof(big));
	if (bind(s, (void *)&a, sizeof(a)) < 0)
		return die("bind");
	while (got < count && now() < end) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		uint32_t seq, c;
		ssize_t r;

		if (poll(&pf, 1, 100) <= 0)
			continue;
		r = recv(s, p, sizeof(p), 0);
		if (r < 16)
			continue;
		got++;
		memcpy(&c, p, 4);
		memcpy(&seq, p + 4, 4);
		if (c != sum32(p + 4, (size_t)r - 4)) {
			bad++;
			continue;
		}
		if ((int64_t)seq <= last)
			reord++;
		else
			last = seq;
	}
	printf("got=%lu lost=%lu reordered=%lu bad=%lu\n", got, count > got ? count - got : 0, reord, bad);
	return bad != 0;
}

/* ---- looking at interfaces ------------------------------------------------------------------------------ */

/* What crosses @dev in @secs seconds: frames in and out and the longest of each. */
static int sniff(const char *dev, double secs)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	unsigned long n[2] = { 0, 0 }, big[2] = { 0, 0 };
	ssize_t max[2] = { 0, 0 };
	static char buf[131072];
	int s = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	double end = now() + secs;

	a.sll_ifindex = (int)if_nametoindex(dev);
	if (s < 0 || bind(s, (void *)&a, sizeof(a)) < 0)
		return die(dev);
	while (now() < end) {
		struct pollfd pf = { .fd = s, .events = POLLIN };
		struct sockaddr_ll from;
		socklen_t fl = sizeof(from);
		ssize_t r;
		int d;

		if (poll(&pf, 1, 100) <= 0)
			continue;
		r = recvfrom(s, buf, sizeof(buf), MSG_TRUNC, (void *)&from, &fl);
		if (r <= 0)
			continue;
		d = from.sll_pkttype == PACKET_OUTGOING;
		n[d]++;
		if (r > 1600)
			big[d]++;
		if (r > max[d])
			max[d] = r;
	}
	printf("in=%lu in_big=%lu in_max=%zd out=%lu out_big=%lu out_max=%zd\n", n[0], big[0], max[0], n[1], big[1], max[1]);
	return 0;
}

static int ethtool_val(const char *dev, uint32_t cmd, uint32_t val)
{
	struct ethtool_value v = { .cmd = cmd, .data = val };
	struct ifreq ifr = { .ifr_data = (void *)&v };
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", dev);
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	printf("%u\n", v.data);
	return 0;
}

static int channels(const char *dev, unsigned int want)
{
	struct ethtool_channels c = { .cmd = ETHTOOL_GCHANNELS };
	struct ifreq ifr = { .ifr_data = (void *)&c };
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", dev);
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	if (want) {
		c.cmd = ETHTOOL_SCHANNELS;
		c.combined_count = want;
		if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
			return die(dev);
	}
	printf("max=%u now=%u\n", c.max_combined, c.combined_count);
	return 0;
}

static int stats(const char *dev)
{
	struct ethtool_drvinfo di = { .cmd = ETHTOOL_GDRVINFO };
	struct ifreq ifr = { .ifr_data = (void *)&di };
	struct ethtool_gstrings *gs;
	struct ethtool_stats *st;
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	snprintf(ifr.ifr_name, IFNAMSIZ, "%s", dev);
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	gs = calloc(1, sizeof(*gs) + (size_t)di.n_stats * ETH_GSTRING_LEN);
	st = calloc(1, sizeof(*st) + (size_t)di.n_stats * 8);
	gs->cmd = ETHTOOL_GSTRINGS;
	gs->string_set = ETH_SS_STATS;
	gs->len = di.n_stats;
	ifr.ifr_data = (void *)gs;
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	st->cmd = ETHTOOL_GSTATS;
	st->n_stats = di.n_stats;
	ifr.ifr_data = (void *)st;
	if (ioctl(s, SIOCETHTOOL, &ifr) < 0)
		return die(dev);
	for (uint32_t i = 0; i < di.n_stats; i++)
		printf("%.32s=%llu\n", (char *)gs->data + i * ETH_GSTRING_LEN, (unsigned long long)st->data[i]);
	return 0;
}

int main(int argc, char **argv)
{
	const char *c = argc > 1 ? argv[1] : getpid() == 1 ? "init" : "";

	signal(SIGPIPE, SIG_IGN);
	if (getpid() == 1)
		return init_guest();
	if (!strcmp(c, "agent") && argc == 3)
		return agent(argv[2]);
	if (!strcmp(c, "rx") && argc == 3)
		return rx(atoi(argv[2]));
	if (!strcmp(c, "tx") && argc == 5)
		return tx(argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(c, "fill") && argc == 4)
		return fill(argv[2], strtoul(argv[3], NULL, 0));
	if (!strcmp(c, "recvfile") && argc == 4)
		return recvfile(atoi(argv[2]), argv[3]);
	if (!strcmp(c, "sendfile") && argc == 5)
		return sendfile_(argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(c, "urx") && argc == 5)
		return urx(atoi(argv[2]), strtoul(argv[3], NULL, 0), atof(argv[4]));
	if (!strcmp(c, "utx") && argc == 7)
		return utx(argv[2], atoi(argv[3]), strtoul(argv[4], NULL, 0), strtoul(argv[5], NULL, 0), atof(argv[6]));
	if (!strcmp(c, "sniff") && argc == 4)
		return sniff(argv[2], atof(argv[3]));
	if (!strcmp(c, "gro") && argc == 4)
		return ethtool_val(argv[2], ETHTOOL_SGRO, (uint32_t)atoi(argv[3]));
	if (!strcmp(c, "tso") && (argc == 3 || argc == 4))
		return ethtool_val(argv[2], argc == 4 ? ETHTOOL_STSO : ETHTOOL_GTSO, argc == 4 ? (uint32_t)atoi(argv[3]) : 0);
	if (!strcmp(c, "channels") && (argc == 3 || argc == 4))
		return channels(argv[2], argc == 4 ? (unsigned int)atoi(argv[3]) : 0);
	if (!strcmp(c, "stats") && argc == 3)
		return stats(argv[2]);
	fprintf(stderr, "usage: vmtool rx PORT | tx HOST PORT secs=N|mib=N | fill FILE MIB | recvfile PORT FILE | sendfile HOST PORT FILE |\n"
			"  urx PORT COUNT SECS | utx HOST PORT COUNT SIZE PPS | sniff DEV SECS | gro DEV 0|1 | tso DEV [0|1] |\n"
			"  channels DEV [N] | stats DEV | agent TTY\n");
	return 2;
}
