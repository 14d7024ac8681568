/* SPDX-License-Identifier: BSD-3-Clause */
/* The helper's end of the grant channel: what it answers, and that no line of the host's can confuse it. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel.h"

#define GRANT "grant swiotlb 0x13400000 0x4000000\n"

static struct channel c;
static struct channel_heard heard;
static int ends[2];

static int begin(void **state)
{
	struct pool p = { .found = true, .address = 0x13400000, .size = 64 << 20 };

	memset(&c, 0, sizeof(c));
	channel_set_answer(&c, &p);
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends);
}

static int end(void **state)
{
	close(ends[0]);
	close(ends[1]);
	return 0;
}

static void hear(const char *text)
{
	channel_input(&c, text, strlen(text), &heard);
}

static void expect_sent(const char *text)
{
	char got[1024];
	ssize_t n;

	assert_int_equal(channel_output(&c, ends[0]), 0);
	n = read(ends[1], got, sizeof(got) - 1);
	got[n > 0 ? n : 0] = 0;
	assert_string_equal(got, text);
}

static void test_question_and_answer(void **state)
{
	expect_sent("");
	hear("grant?\n");
	assert_true(heard.asked && !heard.ok && !heard.error[0]);
	expect_sent(GRANT);
	expect_sent("");
	/* in pieces; and many at once, which one answer serves */
	hear("gra");
	expect_sent("");
	hear("nt?\ngrant?\ngrant?\n");
	expect_sent(GRANT);
	hear("ok\n");
	assert_true(heard.ok && !heard.asked);
	hear("error outside the driver VM's memory\n");
	assert_string_equal(heard.error, "outside the driver VM's memory");
	expect_sent("");
}

static void test_refuses(void **state)
{
	struct pool p = { 0 };

	snprintf(p.why, sizeof(p.why), "boot it with swiotlb=force");
	channel_set_answer(&c, &p);
	hear("grant?\n");
	expect_sent("refuse boot it with swiotlb=force\n");
	memset(p.why, 'x', sizeof(p.why) - 1);
	channel_set_answer(&c, &p);
	assert_true(strlen(c.answer) <= CHANNEL_LINE_MAX && c.answer[strlen(c.answer) - 1] == '\n');
}

static void test_garbled(void **state)
{
	static const char *const lines[] = {
		"\n",
		"\n\n\n",
		"grant\n",
		"grant??\n",
		" grant?\n",
		"GRANT?\n",
		"grant?\r\n",
		"okay\n",
		"error\n",
		"\001\377\033[2J\n",
		"grant swiotlb 0x0 0x1000\n",
	};
	char big[4096];

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		hear(lines[i]);
		assert_false(heard.asked || heard.ok || heard.error[0]);
	}
	/* a 0 ends no line */
	channel_input(&c, "ok\0grant?\n", 10, &heard);
	assert_false(heard.asked);
	/* too long, whatever it ends in; the next line is heard */
	memset(big, 'a', sizeof(big));
	channel_input(&c, big, sizeof(big), &heard);
	hear("grant?\n");
	assert_false(heard.asked);
	hear("grant?\n");
	assert_true(heard.asked);
	expect_sent(GRANT);
	/* as long as may be, and what is written into the log */
	memcpy(big, "error ", 6);
	memset(big + 6, 0x1b, CHANNEL_LINE_MAX - 7);
	big[CHANNEL_LINE_MAX - 1] = '\n';
	channel_input(&c, big, CHANNEL_LINE_MAX, &heard);
	assert_int_equal(strspn(heard.error, "?"), CHANNEL_LINE_MAX - 7);
}

static void test_other_end_goes(void **state)
{
	hear("gra");
	channel_gone(&c);
	hear("nt?\n");
	assert_false(heard.asked);
	/* what was asked for and not begun is still owed; half an answer is not */
	hear("grant?\n");
	channel_gone(&c);
	expect_sent(GRANT);
	c.owed = true;
	c.sent = 5;
	channel_gone(&c);
	expect_sent("");
}

/* A full port takes the answer later, and as far as it has room. */
static void test_full(void **state)
{
	char junk[4096] = { 0 };
	int size = 2048;

	setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	while (write(ends[0], junk, sizeof(junk)) > 0)
		;
	hear("grant?\n");
	assert_int_equal(channel_output(&c, ends[0]), 0);
	assert_true(c.owed);
	while (read(ends[1], junk, sizeof(junk)) > 0)
		;
	expect_sent(GRANT);
	assert_false(c.owed);
	close(ends[1]);
	ends[1] = dup(ends[0]);
	hear("grant?\n");
	assert_int_equal(channel_output(&c, ends[0]), -EPIPE);
}

static int no_sigpipe(void **state)
{
	/* As main() has it. */
	return signal(SIGPIPE, SIG_IGN) == SIG_ERR;
}

int main(void)
{
#define TEST(t) cmocka_unit_test_setup_teardown(t, begin, end)
	const struct CMUnitTest tests[] = {
		TEST(test_question_and_answer), TEST(test_refuses), TEST(test_garbled),
		TEST(test_other_end_goes),	TEST(test_full),
	};

	return cmocka_run_group_tests(tests, no_sigpipe, NULL);
}
