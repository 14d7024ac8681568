/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where a ring is, in memory that outlives the process (docs/handover.md): one line for each ring, written by the data
 * thread that has it, and read by the next daemon when that thread is no more. No other VM has this memory.
 *
 * The reader comes when the writer has ended, so what the writer stored is there in the order of its program. It is the
 * compiler alone that must keep that order: VP_PLACE_ORDER().
 *
 * A burst that gives buffers back in two rings: vp_vq_note() and vp_vq_write() of the receiver's, vp_vq_note() of the
 * sender's, the intent, vp_vq_write() and vp_vq_show() of the sender's, vp_vq_show() of the receiver's, no intent.
 */
#ifndef VP_VIRTQ_PLACE_H
#define VP_VIRTQ_PLACE_H

#include <stdbool.h>
#include <stdint.h>

struct vp_used;
struct vp_virtq;

#define VP_PLACE_ORDER() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#define VP_PLACE_SLOTS   42  /* chains of a packed ring that may take several slots each */
#define VP_PLACE_SINGLE  64  /* chains of one slot each */

/* What is being given back in a packed ring, while that can be seen in part only. */
enum vp_place_how {
	VP_PLACE_NONE,
	VP_PLACE_ONES,     /* n chains of one slot */
	VP_PLACE_MANY,     /* n chains, slots[] of each */
	VP_PLACE_UNKNOWN,  /* more than there is room for: who is killed now leaves a ring that cannot go on */
	VP_PLACE_HOWS
};

/* A position: index of a split ring; slot and, in bit 15, the wrap counter of a packed one. */
struct vp_place {
	/*
	 * Of a ring that sends: from, to (its own), from, to (the receiver's; the same: nothing), 16 bits each; 0 =
	 * none.
	 */
	uint64_t intent;
	uint64_t head;      /* packed: the first descriptor's second word, when all others are written */
	uint16_t pos;       /* packed: both places, between bursts */
	uint16_t receiver;  /* of a ring that sends: number of the ring that intent is about */
	uint8_t  n, how;
	uint8_t  slots[VP_PLACE_SLOTS];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct vp_place) == 64, "one line a ring");

static inline uint64_t vp_place_intent(uint16_t from, uint16_t to, uint16_t rx_from, uint16_t rx_to)
{
	return (uint64_t)from << 48 | (uint64_t)to << 32 | (uint64_t)rx_from << 16 | rx_to;
}

/* The ring has just been set up, and is between bursts. */
void vp_place_reset(struct vp_place *p, const struct vp_virtq *vq);

/*
 * A ring that was just set up goes on where its line says, and all that was not finished is finished. own: its line.
 * as_receiver: the line of the ring that sends to it and has an intent about it, or NULL. runt: bytes that a buffer
 * which goes back unused is said to have. -EPROTO: the lines contradict each other, or the ring; -ENODATA: it was in
 * the middle of what is not written down.
 */
int vp_place_recover(struct vp_virtq *vq, const struct vp_place *own, const struct vp_place *as_receiver,
		     uint32_t runt);

/*
 * The same where it is not the line that says what was to be given back: the ring stood at `from`, and these n chains
 * are given back from there on, up to `to`, unless its driver has them already: then u may be anything. Nothing was
 * written before that was decided. The next chain that is taken stands at `avail`. Whether the driver was notified is
 * not known. -EPROTO.
 */
int vp_place_finish(struct vp_virtq *vq, uint16_t from, uint16_t to, uint16_t avail, const struct vp_used *u,
		    unsigned n);

/* For tests: the process is killed when it passes that point for the nth time (VHOST_PCI_CRASH_AT). */
enum vp_place_point {
	VP_POINT_NOTED = 1,  /* packed: the line says what is given back */
	VP_POINT_HALF,       /* packed: half of the descriptors are written */
	VP_POINT_WRITTEN,    /* the receiver's are written, none is seen */
	VP_POINT_INTENT,     /* the intent is stored */
	VP_POINT_SENT,       /* the sender's buffers are given back */
	VP_POINT_DONE,       /* the receiver's, too */
	VP_POINT_OVER,       /* and the intent is over */
	VP_POINT_EARLY,      /* a packet that takes more than a burst: it counts as sent */
	VP_POINT_PLACED,     /* packed: the line has the place behind it, and says still what was given back */
	/* a copy engine (engine/copyq_kept.c) */
	VP_POINT_COPY_TOOK,  /* it has taken what its device side returned */
	VP_POINT_COPY_ALL,   /* all is written, but where the queue is */
	VP_POINT_COPY_NOTED, /* that too, and it does not count yet */
	VP_POINT_COPY_COUNTS,/* it counts */
	VP_POINT_COPY_SHOWN, /* the device side has what is its */
	VP_POINT_COPY_GIVEN, /* the driver has, too */
	/* of requests (engine/request_keep.h) */
	VP_POINT_TAKEN,      /* requests are written down, and in the shadow ring, which does not show them */
	VP_POINT_KEPT,       /* they count as given to the device side */
	VP_POINT_GIVEN,      /* the shadow ring shows them */
	VP_POINT_RETURNED,   /* what the device side returned is written down */
	VP_POINT_NOTED_BACK, /* it counts as returned */
	VP_POINT_ANSWER,     /* the intent to give one back to the driver is stored */
	VP_POINT_ANSWERED,   /* the driver sees it */
	VP_POINT_FREED,      /* the request is over, the intent is not */
	VP_POINTS,
	VP_POINT_JOURNAL = 100, /* and on: those of vhostuser/journal.h */
	/* of a link's box (daemon/link/keep.c) */
	VP_POINT_MARKED = 200,  /* the mark is set, what it announces has not happened */
	VP_POINT_BOXED,      /* the keeper has a new one, and the mark is still set */
	VP_POINT_UNMARKED,
};
extern unsigned vp_place_crash_at, vp_place_crash_n;
/* It is that time: the caller calls vp_place_crash(). */
bool vp_place_crash_due(void);
void vp_place_crash(void);

static inline void vp_place_point(enum vp_place_point p)
{
	if (__builtin_expect(vp_place_crash_at == (unsigned)p, 0) && vp_place_crash_due())
		vp_place_crash();
}

#endif
