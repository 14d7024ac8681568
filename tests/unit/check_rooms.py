#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""No room of daemon/ or lib/ includes one above it: the tables of docs/architecture.md say what is above what. Memory that this process has
mapped becomes memory of a peer (vp_gptr) in lib/guestmem only.

usage: check_rooms.py SOURCE_ROOT

First it shows, on small trees of its own, that it finds what it is for.
"""
import os
import re
import sys
import tempfile

DOC = 'docs/architecture.md'
TOP = '.'  # the files that lie in daemon/ itself
WRAP = 'vp_gptr_from_map'
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def tables(text):
    """{'daemon': [(room, [rooms that it names])], 'lib': ...} from the tables below the headings "Rooms of `daemon/`", "Rooms of `lib/`"."""
    found, part = {}, None
    for line in text.splitlines():
        if line.startswith('#'):
            m = re.search(r'Rooms of `(daemon|lib)/`', line)
            part = m and m[1]
        m = part and re.match(r'\| `([\w.-]+)/?` \|(.*)', line)
        if m:
            found.setdefault(part, []).append((m[1], re.findall(r'`([\w-]+)`', m[2].split('|')[0])))
    return found


def may_include(rooms, part):
    """{room: rooms that it may include}. daemon/: all below. lib/: those that its row names, and what these may include."""
    may = {}
    for i, (room, named) in reversed(list(enumerate(rooms))):
        below = {r for r, _ in rooms[i + 1:]}
        if part == 'daemon':
            may[room] = {room} | below
            continue
        wrong = set(named) - below
        if wrong:
            raise ValueError('%s: lib/%s names %s, which the table does not have below it' % (DOC, room, ', '.join(sorted(wrong))))
        may[room] = {room}.union(*(may[n] for n in named))
    return may


def sources(root, part):
    """(path, room) of each C file."""
    for where, dirs, files in os.walk(os.path.join(root, part)):
        dirs.sort()
        for f in sorted(files):
            if f.endswith(('.c', '.h')):
                path = os.path.relpath(os.path.join(where, f), root)
                inner = path.split(os.sep)[1:]
                yield path, inner[0] if len(inner) > 1 else TOP


def target(root, path, name, may):
    """(part, room) of what `path` includes as `name`; None: not from daemon/ or lib/."""
    if name.startswith('vhost-pci/'):
        return None
    if '/' in name and not name.startswith('.'):
        room = name.split('/')[0]
        for part in may:
            if room in may[part]:
                return part, room
        raise ValueError('"%s": %s is no room of %s' % (name, room, DOC))
    for where in (os.path.dirname(path), 'daemon' if path.startswith('daemon/') else 'lib'):
        p = os.path.normpath(os.path.join(where, name))
        inner = p.split(os.sep)
        if inner[0] in may and os.path.exists(os.path.join(root, p)):
            return inner[0], inner[1] if len(inner) > 2 else TOP
    raise ValueError('"%s": write room/file.h' % name)


def check(root):
    """What is wrong, one line each."""
    with open(os.path.join(root, DOC), encoding='utf-8') as f:
        rooms = tables(f.read())
    if set(rooms) != {'daemon', 'lib'}:
        return ['%s: no table of rooms under "Rooms of `daemon/`" or "Rooms of `lib/`"' % DOC]
    try:
        may = {part: may_include(rooms[part], part) for part in ('daemon', 'lib')}
    except ValueError as e:
        return [str(e)]
    wrong = ['%s: daemon/%s and lib/%s have one name' % (DOC, r, r) for r in sorted(set(may['daemon']) & set(may['lib']))]
    for part in may:
        there = list(sources(root, part))
        wrong += ['%s/%s: not a room of %s' % (part, r, DOC) for r in sorted({r for _, r in there} - set(may[part]))]
        wrong += ['%s: there is no %s/%s' % (DOC, part, r) for r, _ in rooms[part] if r not in {r for _, r in there}]
        for path, room in there:
            with open(os.path.join(root, path), encoding='utf-8') as f:
                lines = f.readlines()
            names = [(n, m[1]) for n, m in enumerate(map(INCLUDE.match, lines), 1) if m]
            if (part, room) != ('lib', 'guestmem'):
                wrong += ['%s:%d: %s() is for the mapping layer (lib/guestmem/access.h)' % (path, n, WRAP)
                          for n, line in enumerate(lines, 1) if WRAP in line]
            for n, name in names:
                try:
                    to = target(root, path, name, may)
                except ValueError as e:
                    wrong.append('%s:%d: %s' % (path, n, e))
                    continue
                if to and room in may[part] and (to[0] != part or to[1] not in may[part][room]) and (part, to[0]) != ('daemon', 'lib'):
                    wrong.append('%s:%d: "%s": %s/%s may not include %s/%s' % (path, n, name, part, room, *to))
    return wrong


GOOD = {
    DOC: '# x\n## Rooms of `daemon/`\n| `.` | top |\n| `link` | `net` |\n| `sys` | x |\n'
         '## Rooms of `lib/`\n| `engine` | `net` | x |\n| `user` | `base` | x |\n| `net` | `base` | x |\n| `base` | | x |\n## More\n| `else` | x |\n',
    'daemon/main.c': '#include <stdio.h>\n#include "link/link.h"\n#include "own.h"\n', 'daemon/own.h': '',
    'daemon/link/link.h': '#include "sys/sock.h"\n#include "vhost-pci/abi.h"\n', 'daemon/sys/sock.h': '#include "base/err.h"\n',
    'lib/engine/a.c': '#include "net/o.h"\n#include "base/err.h"\n', 'lib/net/o.h': '#include "base/err.h"\n', 'lib/base/err.h': '#include "own.h"\n',
    'lib/base/own.h': '', 'lib/user/u.c': '#include "base/err.h"\n',
}
BAD = {
    'up': ('daemon/sys/sock.h', '#include "link/link.h"\n', 'daemon/sys may not include daemon/link'),
    'up, by a path': ('daemon/sys/sock.h', '#  include "../link/link.h"\n', 'daemon/sys may not include daemon/link'),
    'to the top': ('daemon/link/link.h', '#include "own.h"\n', 'daemon/link may not include daemon/.'),
    'a new room': ('daemon/attic/x.c', '', 'daemon/attic: not a room'),
    'of a room that is not named': ('daemon/link/link.h', '#include "attic/x.h"\n', 'attic is no room'),
    'up in lib': ('lib/net/o.h', '#include "engine/a.h"\n', 'lib/net may not include lib/engine'),
    'beside in lib': ('lib/user/u.c', '#include "net/o.h"\n', 'lib/user may not include lib/net'),
    'from lib into the daemon': ('lib/engine/a.c', '#include "sys/sock.h"\n', 'lib/engine may not include daemon/sys'),
    'a room that has gone': (DOC, GOOD[DOC].replace('| `sys`', '| `cellar` | x |\n| `sys`'), 'there is no daemon/cellar'),
    'no order in lib': (DOC, GOOD[DOC].replace('| `base` | | x |', '| `base` | `engine` | x |'), 'lib/base names engine'),
    'memory wrapped outside the mapping layer': ('lib/engine/a.c', 'x = vp_gptr_from_map(p);\n', 'is for the mapping layer'),
    'no tables': (DOC, '# x\n', 'no table of rooms'),
}


def self_test():
    for name, (path, text, says) in [('nothing', (DOC, GOOD[DOC], None))] + list(BAD.items()):
        with tempfile.TemporaryDirectory() as root:
            for f, t in {**GOOD, path: text}.items():
                os.makedirs(os.path.dirname(os.path.join(root, f)), exist_ok=True)
                with open(os.path.join(root, f), 'w', encoding='utf-8') as o:
                    o.write(t)
            wrong = check(root)
            if (wrong if says is None else len(wrong) != 1 or says not in wrong[0]):
                sys.exit('check_rooms.py itself: of "%s" it said %s' % (name, wrong))


self_test()
found = check(sys.argv[1])
print('\n'.join(found) if found else 'each room includes only rooms below it')
sys.exit(bool(found))
