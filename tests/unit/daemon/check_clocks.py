#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Nothing that waits looks at the wall clock, which an administrator or NTP may set by hours: check_clocks.py SOURCE-ROOT

Fails for each use of the wall clock, or of a wait that takes its limit from there, that is not listed in STAMPS with what for.
"""

import os
import re
import sys

DIRS = ['cli', 'daemon', 'examples', 'fwd', 'guest', 'include', 'lib']

WALL = re.compile(r'''
    \bCLOCK_(?:REALTIME|TAI)\w*
  | \b(?:time|ftime|gettimeofday|timespec_get|clock_settime)\s*\(
  | \bktime_get_(?:real|clocktai)\w*
  | \b(?:pthread_(?:cond|mutex|rwlock)_timed\w+ | pthread_timedjoin_np | sem_timedwait | (?:mtx|cnd|thrd)_timed\w+ | mq_timed\w+)\b
''', re.X)

# For people and names, never for how long something takes: (file, what) -> why
STAMPS = {
    ('daemon/context/audit.c', 'CLOCK_REALTIME'): 'when a decision was made',
    ('daemon/control/control.c', 'CLOCK_REALTIME'): 'when an event was',
    ('cli/cmd_capture.c', 'CLOCK_REALTIME'): 'which of the records are old enough to be put in order: they have the time of day',
    ('guest/agent/capture.c', 'CLOCK_REALTIME'): 'when a capture was begun',
    ('lib/engine/tap.c', 'CLOCK_REALTIME'): 'when a packet was there',
    ('fwd/pcap.c', 'gettimeofday('): 'when a packet came',
}


def code(text):
    """C without comments and strings, lines kept."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', lambda m: re.sub(r'[^\n]', ' ', m.group(0)), text, flags=re.S)


def uses(root):
    for d in DIRS:
        for where, _, names in os.walk(os.path.join(root, d)):
            for n in sorted(names):
                if n.endswith(('.c', '.h')):
                    path = os.path.join(where, n)
                    with open(path) as f:
                        for i, line in enumerate(code(f.read()).splitlines(), 1):
                            for m in WALL.finditer(line):
                                yield os.path.relpath(path, root), i, m.group(0)


def main(root):
    found = list(uses(root))
    bad = ['%s:%d: %s' % (p, i, what) for p, i, what in found if (p, what) not in STAMPS]
    for line in bad:
        print(line)
    if bad:
        print('Take CLOCK_MONOTONIC, vp_cond_wait_ms() or vp_thread_join_ms() (lib/base/thread.h); or, if it is only to be shown, say so in STAMPS here.')
    # A look that finds nothing at all proves nothing.
    if not found:
        print('not one use found, not even those of STAMPS: is %s the source?' % root)
    return 1 if bad or not found else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
