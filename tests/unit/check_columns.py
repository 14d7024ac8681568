#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""No line of C is wider than 120 columns, no line of a document's prose wider than 100.

usage: check_columns.py SOURCE_ROOT

A tab goes to the next multiple of 8. In documents, tables, blocks of code and lines that are one word (a long
link) may be as wide as they need. First the check shows, on lines of its own, that it finds what it is for.
"""
import os
import sys

CODE = 120
PROSE = 100
SKIP = {'.git', 'build'}


def wide_code(lines):
    return [n for n, line in enumerate(lines, 1) if len(line.expandtabs(8)) > CODE]


def wide_prose(lines):
    found, code = [], False
    for n, line in enumerate(lines, 1):
        if line.lstrip().startswith('```'):
            code = not code
        elif not code and len(line) > PROSE and not line.lstrip().startswith('|') and ' ' in line.strip(' -*'):
            found.append(n)
    return found


def self_test():
    assert wide_code(['\t' * 14 + 'x' * 9, 'x' * 120]) == [1]
    prose = ['a ' * 51, '| ' + 'a ' * 60, '```', 'a ' * 60, '```', 'http://' + 'a' * 100, 'b ' * 51]
    assert wide_prose(prose) == [1, 7]


def main(root):
    self_test()
    bad = files = 0
    for top, dirs, names in os.walk(root):
        dirs[:] = [d for d in dirs if d not in SKIP and not os.path.exists(os.path.join(top, d, 'build.ninja'))]
        for name in names:
            look = wide_code if name.endswith(('.c', '.h')) else wide_prose if name.endswith('.md') else None
            if not look:
                continue
            path = os.path.join(top, name)
            with open(path, encoding='utf-8') as f:
                for n in look(f.read().split('\n')):
                    print(f'{os.path.relpath(path, root)}:{n}: wider than {PROSE if look is wide_prose else CODE} columns')
                    bad += 1
            files += 1
    print(f'{files} files, {bad} lines too wide')
    return 1 if bad or not files else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
