// SPDX-License-Identifier: BSD-3-Clause
/*
 * A program for a guest with a shared file system: what copying files does not touch.
 *
 *   fsops ops DIR       mmap, locks, rename, unlinked files. Says what is wrong and ends with 1.
 *   fsops fill DIR N    ten directories of N files each, of 1.5 to 20 KB
 *   fsops hold FILE     opens FILE, says "open", and reads it again and again until that fails: says the error
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (256u << 10)

#define MUST(x)                                                                                    \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			printf("line %d: %s: %s\n", __LINE__, #x, strerror(errno));                \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static void maps(void)
{
	static char buf[SIZE];
	int fd = open("map", O_RDWR | O_CREAT | O_TRUNC, 0644);
	char *p, *r;

	MUST(fd >= 0 && !ftruncate(fd, SIZE));
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	r = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
	MUST(p != MAP_FAILED && r != MAP_FAILED);
	for (unsigned i = 0; i < SIZE; i++)
		p[i] = (char)(i * 7 + (i >> 11));
	MUST(!msync(p, SIZE, MS_SYNC) && !memcmp(p, r, SIZE));
	munmap(p, SIZE);
	munmap(r, SIZE);
	MUST(pread(fd, buf, SIZE, 0) == SIZE);
	for (unsigned i = 0; i < SIZE; i++)
		MUST(buf[i] == (char)(i * 7 + (i >> 11)));
	close(fd);
}

/* A child tries: 0 it got the lock, 1 it did not. */
static int child_gets(int posix)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 10 };
	int status;
	pid_t pid = fork();

	MUST(pid >= 0);
	if (!pid) {
		int fd = open("lock", O_RDWR);

		if (fd < 0)
			_exit(2);
		_exit((posix ? fcntl(fd, F_SETLK, &l) : flock(fd, LOCK_EX | LOCK_NB)) ? 1 : 0);
	}
	MUST(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void locks(void)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 10 };
	int fd = open("lock", O_RDWR | O_CREAT, 0644);

	MUST(fd >= 0 && !flock(fd, LOCK_EX));
	MUST(child_gets(0) == 1);
	MUST(!flock(fd, LOCK_UN) && child_gets(0) == 0);
	MUST(!fcntl(fd, F_SETLK, &l));
	MUST(child_gets(1) == 1);
	close(fd);
	MUST(child_gets(1) == 0);
}

static void names(void)
{
	struct stat st;
	char c = 'x';
	int fd = open("one", O_RDWR | O_CREAT | O_TRUNC, 0600);

	MUST(fd >= 0 && write(fd, &c, 1) == 1);
	MUST(!mkdir("d", 0755) && !rename("one", "d/two") && access("one", F_OK));
	MUST(!link("d/two", "three") && !stat("three", &st) && st.st_nlink == 2 && st.st_size == 1);
	MUST(!symlink("d/two", "four") && !lstat("four", &st) && S_ISLNK(st.st_mode));
	MUST(!rename("three", "d/two") && !rename("d/two", "three") && !rename("d", "e"));
	/* Open and gone, yet there. */
	MUST(!unlink("three") && pwrite(fd, &c, 1, 4096) == 1 && !fstat(fd, &st) && st.st_size == 4097);
	MUST(pread(fd, &c, 1, 0) == 1 && c == 'x');
	close(fd);
	MUST(!unlink("four") && rmdir("e") == (access("e/two", F_OK) ? 0 : -1));
}

static int hold(const char *path)
{
	char c;
	int fd = open(path, O_RDONLY | O_DIRECT);

	MUST(fd >= 0);
	puts("open");
	fflush(stdout);
	while (pread(fd, &c, 1, 0) >= 0)
		usleep(100000);
	printf("ended: %s\n", strerror(errno));
	return 0;
}

static void fill(unsigned each)
{
	static unsigned buf[8192];
	unsigned x = 2463534242u;
	char path[40];

	for (unsigned i = 0; i < 10 * each; i++) {
		size_t len = 1500 + i * 13 % 18500;
		int fd;

		for (size_t k = 0; k * 4 < len; k++) {
			x ^= x << 13;
			x ^= x >> 17;
			buf[k] = x ^= x << 5;
		}
		snprintf(path, sizeof(path), "d%u", i % 10);
		MUST(!mkdir(path, 0755) || errno == EEXIST);
		snprintf(path, sizeof(path), "d%u/f%u", i % 10, i);
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
		MUST(fd >= 0 && write(fd, buf, len) == (ssize_t)len && !close(fd));
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "hold"))
		return hold(argv[2]);
	if (argc < 3)
		return 2;
	MUST(!chdir(argv[2]));
	if (argc == 4 && !strcmp(argv[1], "fill")) {
		fill((unsigned)atoi(argv[3]));
		return 0;
	}
	maps();
	locks();
	names();
	puts("right");
	return 0;
}
