#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Collect the system calls that the daemon's sources say they need, and write them as C tables.

A source file says so in a comment beside the code that makes the call:

    /* seccomp control: accept4 socket(arg0 == AF_UNIX); data: write */

Lists: control (the main thread), data (data threads), signal (forwarder and supervisors), guard and holder (these processes), all (each of them).
An entry is a call's name, optionally with one condition on an argument, optionally followed by ->ERRNO: then the call
is not made and fails with that error instead of ending the process. Conditions: argN == V, argN & MASK == V.

usage: seccomp_table.py SOURCE_ROOT OUTPUT DEPFILE DIRECTORY...
"""
import os
import re
import sys

LISTS = ('control', 'data', 'signal', 'guard', 'holder')
COMMENT = re.compile(r'/\*\s*seccomp\s+(.*?)\*/', re.S)
ENTRY = re.compile(r'([a-z0-9_]+)(?:\(([^)]*)\))?(?:->(E[A-Z0-9]+))?(?=\s|$)')
CONDITION = re.compile(r'arg([0-5])\s*(?:&\s*(\w+)\s*)?==\s*(\w+)$')


def fail(where, why):
    sys.exit('%s: %s' % (where, why))


def parse(text, where):
    """Yield (list, name, condition or None, errno or None)."""
    text = re.sub(r'\n\s*\*', '\n', text)
    for part in ' '.join(text.split()).rstrip(' ;').split(';'):
        which, colon, entries = part.partition(':')
        which = which.strip()
        if not colon or which not in LISTS + ('all',):
            fail(where, "seccomp comment: '%s' is not a list; use control, data, signal, guard, holder or all" % which)
        pos, entries = 0, entries.strip()
        while pos < len(entries):
            m = ENTRY.match(entries, pos)
            if not m:
                fail(where, "seccomp comment: cannot read '%s'" % entries[pos:])
            cond = None
            if m.group(2) is not None:
                c = CONDITION.match(m.group(2).strip())
                if not c:
                    fail(where, "seccomp comment: '%s' is not a condition like arg0 == AF_UNIX" % m.group(2))
                cond = c.groups()
            for name in LISTS if which == 'all' else (which,):
                yield name, m.group(1), cond, m.group(3)
            pos = m.end()
            while pos < len(entries) and entries[pos] == ' ':
                pos += 1


def main():
    root, out, dep, dirs = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
    tables = {name: {} for name in LISTS}
    files = sorted(os.path.join(d, f) for d in dirs for f in os.listdir(os.path.join(root, d)) if f.endswith(('.c', '.h')))
    for f in files:
        with open(os.path.join(root, f), encoding='utf-8') as src:
            text = src.read()
        for m in COMMENT.finditer(text):
            where = '%s:%d' % (f, text.count('\n', 0, m.start()) + 1)
            for which, *rule in parse(m.group(1), where):
                tables[which].setdefault(tuple(rule), where)
    for which in LISTS:
        for (name, cond, err), where in tables[which].items():
            others = [r for r in tables[which] if r[0] == name and r != (name, cond, err)]
            if not cond and err and (len(others) > 1 or any(not c or e for _, c, e in others)):
                fail(where, 'seccomp comment: %s->%s leaves room for one condition under which it is allowed, no more' % (name, err))
    with open(out, 'w', encoding='utf-8') as o:
        o.write('/* Made by daemon/sandbox/seccomp_table.py from the comments in the sources. Do not edit. */\n')
        for which in LISTS:
            o.write('static const struct vp_call_rule calls_%s[] = {\n' % which)
            for (name, cond, err), where in sorted(tables[which].items(), key=lambda x: (x[0][0], str(x[0]))):
                if (name, None, err) in tables[which] and cond:
                    continue  # allowed whatever its arguments are
                arg, mask, value = cond or (None, None, None)
                o.write('\t{ "%s", %s, %s, %s, (uint64_t)%s, "%s" },\n' % (
                    name, err or '0', arg if cond else '-1', '(uint64_t)%s' % mask if mask else 'UINT64_MAX', value or '0', where))
            o.write('};\n')
    with open(dep, 'w', encoding='utf-8') as d:
        d.write('%s: %s\n' % (out, ' '.join(os.path.join(root, f) for f in files)))


main()
