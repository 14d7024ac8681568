#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_sources.py ROOT: fds go into epoll sets and event loops in two files only, which see to it that they are taken out again
before they are closed (lib/base/watch.h, daemon/sys/source.h)."""
import pathlib
import re
import sys

HELPERS = {'lib/base/watch.c': 'epoll_ctl', 'daemon/sys/source.c': 'sd_event_add_io'}
CALL = re.compile(r'\b(epoll_ctl|sd_event_add_io|sd_event_source_set_io_fd\w*)\s*\(')

root = pathlib.Path(sys.argv[1])
bad, found = 0, set()
for top in ('daemon', 'lib', 'guest/agent', 'cli', 'fwd', 'include', 'examples', 'bench'):
    for path in sorted((root / top).rglob('*.[ch]')):
        name = str(path.relative_to(root))
        text = re.sub(r'/\*.*?\*/|//[^\n]*', lambda m: '\n' * m.group().count('\n'), path.read_text(), flags=re.S)
        for m in CALL.finditer(text):
            if HELPERS.get(name) == m.group(1):
                found.add(name)
                continue
            print(f'{name}:{text.count(chr(10), 0, m.start()) + 1}: {m.group(1)}() here; use vp_source_add() or vp_watch_add()')
            bad += 1
for name in HELPERS.keys() - found:
    print(f'{name}: calls no {HELPERS[name]}(): does this check still look at the right thing?')
    bad += 1
sys.exit(bad != 0)
