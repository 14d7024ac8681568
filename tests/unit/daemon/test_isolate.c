/* SPDX-License-Identifier: BSD-3-Clause */
/* The stages of isolation, each entered by a child process that then tries what it may not do. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "sandbox/isolate.h"

#ifdef VP_INSTRUMENTED
#define NO_FILTERS 1
#else
#define NO_FILTERS 0
#endif

#ifdef VP_SECCOMP_TRAP
#define DIES(status) (WIFEXITED(status) && WEXITSTATUS(status) == 159)
#else
#define DIES(status) (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
#endif

static char top[32], inside[48], outside[48];
static struct vp_conf conf;
static struct vp_conf_paths paths;

/* Run fn in a child; its wait status. fn's value is the exit status. */
static int child(int (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(fn());
	waitpid(pid, &status, 0);
	return status;
}

static int enter_calls(void)
{
	struct vp_err e;
	bool on = false;

	if (vp_isolate_process(&e) || vp_isolate_calls(&conf.daemon, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		return 90;
	}
	vp_isolate_state(VP_STAGE_CALLS, &on);
	return on ? 0 : 91;
}

/* ---- stage 1 ---- */

static int process_stage(void)
{
	struct rlimit rl;
	struct vp_err e;
	void *p;

	if (vp_isolate_process(&e))
		return 1;
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
		return 2;
	if (!NO_FILTERS && prctl(PR_GET_DUMPABLE))
		return 3;
	if (getrlimit(RLIMIT_CORE, &rl) || rl.rlim_max)
		return 4;
	p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (strstr(vp_isolate_state(VP_STAGE_PROCESS, NULL), "executable") && !mprotect(p, 4096, PROT_READ | PROT_EXEC))
		return 5;
	return 0;
}

static void test_process(void **state)
{
	assert_int_equal(child(process_stage), 0);
}

/* ---- stage 4 ---- */

static int can_open(const char *path, int flags)
{
	int fd = open(path, flags, 0600);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static int can_listen(const char *dir, const char *name)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), r;

	snprintf(a.sun_path, sizeof(a.sun_path), "%s/%s", dir, name);
	r = bind(fd, (struct sockaddr *)&a, sizeof(a));
	if (!r)
		unlink(a.sun_path);
	close(fd);
	return !r;
}

static int files_stage(void)
{
	char path[128];
	struct vp_err e;
	bool on = false;
	int fd;

	if (vp_isolate_process(&e) || vp_isolate_files(&conf, &paths, &e))
		return 1;
	vp_isolate_state(VP_STAGE_FILES, &on);
	if (!on)
		return 77;
	snprintf(path, sizeof(path), "%s/secret", outside);
	if (can_open(path, O_RDONLY) || can_open("/proc/self/maps", O_RDONLY) || can_open(top, O_RDONLY | O_DIRECTORY))
		return 2;
	if (can_open("/etc/vhost-pci-test", O_WRONLY | O_CREAT))
		return 3;
	if (!can_open("/etc/passwd", O_RDONLY) || !can_open("/dev/null", O_RDONLY))
		return 4;
	if (!can_listen(inside, "s") || can_listen(outside, "s"))
		return 5;
	snprintf(path, sizeof(path), "%s/file", inside);
	if (can_open(path, O_WRONLY | O_CREAT))
		return 6;  /* sockets, not files */
	/* Memory that came as an fd is used as before. */
	fd = memfd_create("x", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 8192) || mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED)
		return 7;
	return 0;
}

static void test_files(void **state)
{
	int status = child(files_stage);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

/* ---- stage 5 ---- */

static int calls_allowed(void)
{
	int r = enter_calls(), fd, sv[2];
	void *p;

	if (r)
		return r;
	fd = memfd_create("x", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, 8192))
		return 1;
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED || madvise(p, 8192, MADV_REMOVE))
		return 2;
	if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED || errno != EPERM)
		return 3;
	if (!mprotect(p, 4096, PROT_EXEC))
		return 4;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv))
		return 5;
	if (socket(AF_INET, SOCK_STREAM, 0) >= 0 || errno != EAFNOSUPPORT)
		return 6;
	return 0;
}

static int call_execve(void)
{
	char *const none[] = { NULL };
	int r = enter_calls();

	return r ? r : execve("/bin/true", none, none);
}

static int call_fork(void)
{
	int r = enter_calls();

	return r ? r : (int)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static int call_ptrace(void)
{
	int r = enter_calls();

	return r ? r : (int)ptrace(PTRACE_TRACEME, 0, 0, 0);
}

static int call_unshare(void)
{
	int r = enter_calls();

	return r ? r : (int)syscall(SYS_unshare, 0);
}

static void *data_thread(void *arg)
{
	int (*fn)(void) = (int (*)(void))arg;

	vp_thread_begin(VP_THREAD_DATA, "data");
	return (void *)(intptr_t)fn();
}

static int in_data_thread(int (*fn)(void))
{
	int r = enter_calls();
	pthread_t t;
	void *value = NULL;

	if (r)
		return r;
	if (pthread_create(&t, NULL, data_thread, (void *)fn))
		return 92;
	pthread_join(t, &value);
	return (int)(intptr_t)value;
}

static int data_work(void)
{
	void *p = malloc(1 << 20);
	int r = p ? 0 : 1;

	free(p);
	r |= write(STDERR_FILENO, "", 0) ? 2 : 0;
	/* Not on the list, but malloc may try. */
	r |= open("/dev/null", O_RDONLY) < 0 && errno == EACCES ? 0 : 4;
	return r;
}

static int data_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0) < 0;
}

static int data_recvmsg(void)
{
	struct msghdr m = { 0 };

	return recvmsg(0, &m, 0) < 0;
}

static int data_close(void)
{
	return close(0);
}

static int data_ok(void)      { return in_data_thread(data_work); }
static int data_bad_1(void)   { return in_data_thread(data_socket); }
static int data_bad_2(void)   { return in_data_thread(data_recvmsg); }
static int data_bad_3(void)   { return in_data_thread(data_close); }

/* The same calls from the control thread, which may. */
static int control_ok(void)
{
	int r = enter_calls();

	return r ? r : data_socket() || !data_recvmsg() || data_close();
}

static void test_calls(void **state)
{
	static int (*const deadly[])(void) = { call_execve, call_fork,	call_ptrace, call_unshare,
					       data_bad_1,  data_bad_2, data_bad_3 };

	if (NO_FILTERS)
		skip();
	assert_int_equal(child(calls_allowed), 0);
	assert_int_equal(child(control_ok), 0);
	assert_int_equal(child(data_ok), 0);
	for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++) {
		int status = child(deadly[i]);

		if (!DIES(status))
			fail_msg("forbidden call %zu: wait status 0x%x", i, status);
	}
}

static bool listed(enum vp_thread_kind kind, const char *call)
{
	const char *name;

	for (unsigned i = 0; (name = vp_isolate_list_call(kind, i, NULL)); i++)
		if (!strcmp(name, call))
			return true;
	return false;
}

static void test_lists(void **state)
{
	static const char *const not_for_data[] = { "socket",	    "connect",	 "recvmsg", "sendmsg",	"accept4",
						    "close",	    "fcntl",	 "clone",   "bind",	"unlink",
						    "memfd_create", "ftruncate", "seccomp", "epoll_ctl" };
	static const char *const for_nobody[] = {
		"execve",	    "execveat", "fork",		  "ptrace",	 "mount",	"setuid",  "kill",
		"process_vm_readv", "bpf",	"io_uring_setup", "userfaultfd", "init_module", "unshare", "setns",
		"open_by_handle_at"
	};
	unsigned n = vp_isolate_list_size(VP_THREAD_CONTROL);

	assert_in_range(vp_isolate_list_size(VP_THREAD_DATA), 10, n / 2);
	assert_in_range(vp_isolate_list_size(VP_THREAD_SIGNAL), 10, n / 2);
	for (size_t i = 0; i < sizeof(not_for_data) / sizeof(not_for_data[0]); i++) {
		assert_true(listed(VP_THREAD_CONTROL, not_for_data[i]));
		assert_false(listed(VP_THREAD_DATA, not_for_data[i]));
	}
	for (unsigned k = 0; k < VP_THREADS; k++) {
		const char *name, *where;

		for (size_t i = 0; i < sizeof(for_nobody) / sizeof(for_nobody[0]); i++)
			assert_false(listed(k, for_nobody[i]));
		for (unsigned i = 0; (name = vp_isolate_list_call(k, i, &where)); i++)
			if (seccomp_syscall_resolve_name(name) == __NR_SCMP_ERROR)
				fail_msg("%s: there is no system call %s", where, name);
	}
}

static int required_is_refused(void)
{
	struct vp_conf_daemon c = { .no_filter = true, .require = 1u << VP_STAGE_CALLS };
	struct vp_err e = { 0 };

	if (vp_isolate_calls(&c, &e) != -EPERM || !strstr(e.msg, "RequireIsolation="))
		return 1;
	c.require = 0;
	return vp_isolate_calls(&c, &e);
}

static void test_required(void **state)
{
	assert_int_equal(child(required_is_refused), 0);
}

static int setup(void **state)
{
	char path[128];
	FILE *f;

	snprintf(top, sizeof(top), "/tmp/vpiXXXXXX");
	if (!mkdtemp(top))
		return -1;
	snprintf(inside, sizeof(inside), "%s/in", top);
	snprintf(outside, sizeof(outside), "%s/out", top);
	snprintf(path, sizeof(path), "%s/secret", outside);
	mkdir(inside, 0700);
	mkdir(outside, 0700);
	f = fopen(path, "w");
	if (!f)
		return -1;
	fclose(f);
	snprintf(conf.daemon.runtime_dir, sizeof(conf.daemon.runtime_dir), "%s", inside);
	snprintf(conf.daemon.control_socket, sizeof(conf.daemon.control_socket), "%s/control.sock", inside);
	return 0;
}

static int teardown(void **state)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/secret", outside);
	unlink(path);
	rmdir(outside);
	rmdir(inside);
	return rmdir(top);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_process), cmocka_unit_test(test_files), cmocka_unit_test(test_calls),
		cmocka_unit_test(test_lists), cmocka_unit_test(test_required),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
