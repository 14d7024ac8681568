#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Every test that lies in the tree is run: a meson.build of its directory, or above it, names it.

usage: check_lists.py SOURCE_ROOT

tests/vm and tests/packaging are run by pytest, which finds them by itself. First the check shows, on a small tree of
its own, that it finds what it is for.
"""
import os
import re
import sys
import tempfile

DIRECTORIES = ['tests/unit', 'tests/race', 'tests/fuzz', 'tests/protocol']
TEST = re.compile(r'(?:test_|fuzz_|check_|race_)(\w+)\.(?:c|py)$')


def unlisted(root):
    bad, seen = [], 0
    for directory in DIRECTORIES:
        for top, dirs, names in os.walk(os.path.join(root, directory)):
            text, at = '', top
            while at.startswith(os.path.join(root, 'tests')):
                path = os.path.join(at, 'meson.build')
                text += open(path, encoding='utf-8').read() if os.path.exists(path) else ''
                at = os.path.dirname(at)
            for name in sorted(names):
                m = TEST.match(name)
                if m:
                    seen += 1
                    if not re.search(r'\b(?:%s|%s)\b' % (re.escape(m[1]), re.escape(name.rsplit('.', 1)[0])), text):
                        bad.append(os.path.relpath(os.path.join(top, name), root))
    return bad, seen


def self_test():
    with tempfile.TemporaryDirectory() as root:
        os.makedirs(root + '/tests/protocol')
        for name, text in (('meson.build', "foreach t : ['one']"), ('test_one.py', ''), ('test_two.py', '')):
            with open('%s/tests/protocol/%s' % (root, name), 'w', encoding='utf-8') as f:
                f.write(text)
        assert unlisted(root) == (['tests/protocol/test_two.py'], 2), unlisted(root)


if __name__ == '__main__':
    self_test()
    bad, seen = unlisted(sys.argv[1])
    for path in bad:
        print('%s is in no meson.build: nothing runs it' % path)
    print('%d tests, %d of them in no list' % (seen, len(bad)))
    sys.exit(1 if bad or not seen else 0)
