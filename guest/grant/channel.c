/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "channel.h"

void channel_set_answer(struct channel *c, const struct pool *p)
{
	int n;

	if (p->found)
		n = snprintf(c->answer, sizeof(c->answer), "grant swiotlb 0x%" PRIx64 " 0x%" PRIx64 "\n", p->address,
			     p->size);
	else
		n = snprintf(c->answer, sizeof(c->answer), "refuse %s\n", p->why);
	if (n >= (int)sizeof(c->answer))
		c->answer[sizeof(c->answer) - 2] = '\n';
}

static void line(const char *text, struct channel_heard *heard)
{
	if (!strcmp(text, "grant?")) {
		heard->asked = true;
	} else if (!strcmp(text, "ok")) {
		heard->ok = true;
		heard->error[0] = 0;
	} else if (!strncmp(text, "error ", 6)) {
		heard->ok = false;
		snprintf(heard->error, sizeof(heard->error), "%s", text + 6);
		/* It goes into the log. */
		for (char *p = heard->error; *p; p++)
			if ((unsigned char)*p < ' ' || (unsigned char)*p > '~')
				*p = '?';
	}
}

void channel_input(struct channel *c, const char *data, size_t len, struct channel_heard *heard)
{
	memset(heard, 0, sizeof(*heard));
	for (; len; data++, len--) {
		if (*data == '\n') {
			c->in[c->in_len] = 0;
			if (!c->skip)
				line(c->in, heard);
			c->in_len = 0;
			c->skip = false;
		} else if (c->in_len < CHANNEL_LINE_MAX - 1) {
			c->in[c->in_len++] = *data;
		} else {
			c->skip = true;
		}
	}
	c->owed |= heard->asked;
}

void channel_gone(struct channel *c)
{
	c->in_len = 0;
	c->skip = false;
	if (c->sent) {
		c->sent = 0;
		c->owed = false;
	}
}

int channel_output(struct channel *c, int fd)
{
	size_t len = strlen(c->answer);

	while (c->owed) {
		ssize_t n = write(fd, c->answer + c->sent, len - c->sent);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		c->sent += (size_t)n;
		if (c->sent == len) {
			c->sent = 0;
			c->owed = false;
		}
	}
	return 0;
}
