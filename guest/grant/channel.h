/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The grant channel: lines of text between the daemon and the driver VM's helper, through a virtio-serial port.
 *
 * Daemon to guest: "grant?", "ok", "error TEXT". Guest to daemon: "grant swiotlb 0xADDRESS 0xBYTES", "refuse TEXT".
 * What is none of these, or longer than a line may be, is ignored.
 */
#ifndef VP_GRANT_CHANNEL_H
#define VP_GRANT_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>

#include "pool.h"

#define CHANNEL_LINE_MAX 256 /* with the newline */

struct channel {
	char in[CHANNEL_LINE_MAX];
	size_t in_len;
	bool skip; /* the line is too long: until its end */
	char answer[CHANNEL_LINE_MAX + 1];
	size_t sent; /* of the answer */
	bool owed;   /* the answer, or the rest of it, is to be sent */
};

/* What came, for the log. */
struct channel_heard {
	bool asked, ok;
	char error[CHANNEL_LINE_MAX]; /* the last one, printable; "" = none */
};

/* What is said of p from now on. */
void channel_set_answer(struct channel *c, const struct pool *p);
/* len bytes have come. Several questions at once get one answer. */
void channel_input(struct channel *c, const char *data, size_t len, struct channel_heard *heard);
/* The other end has gone: neither half a line nor half an answer is worth anything. */
void channel_gone(struct channel *c);
/* Send what is owed as far as fd, which does not block, takes it. 0, or -errno. */
int channel_output(struct channel *c, int fd);

#endif
