#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the documents name is there: functions, files, links to other pages.

usage: check_names.py SOURCE_ROOT PAGE|DIRECTORY...

A directory stands for all pages in it and below it.

 - `path/file.c:function()`: the file defines the function.
 - `path/file.c`, a file named with its directory, in backticks: it exists.
 - [text](page.md#heading): the page exists, and has the heading.
 - A block of code that begins with ```LANGUAGE path/file is a part of that file, word for word.

Paths begin at the top of the tree, or with a room of daemon/ or lib/ as includes do: `link/fast.c`. First
the check shows, on small trees of its own, that it finds what it is for.
"""
import os
import re
import sys
import tempfile

FUNCTION = re.compile(r'(?<![\w./-])([\w./-]+\.[ch]):(\w+)\(\)')
FILE = re.compile(r'(?<![\w./-])((?:[\w-]+/)+[\w-]+\.(?:c|h|py|md|service))(?![\w.-])')
LINK = re.compile(r'\]\(([^)\s]+)\)')
BLOCK = re.compile(r'^```\w+ (\S*/\S+)\n(.*?)^```', re.M | re.S)


def find(root, path):
    """The files that path may mean."""
    return [p for p in (os.path.join(root, d, path) for d in ('', 'daemon', 'lib')) if os.path.isfile(p)]


def defines(text, name):
    """A line that begins the function, before its body: neither a call, which is indented, nor a declaration."""
    for m in re.finditer(r'^(?![\s#/*])[^;{}=\n]*\b%s\(' % re.escape(name), text, re.M):
        end = re.search(r'[;{]', text[m.end():])
        if end and end[0] == '{':
            return True
    return False


def anchors(text):
    """As hosts of Markdown make them out of headings."""
    heads = re.findall(r'^#+ (.*)$', text, re.M)
    return {re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in heads}


def read(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


def check_links(root, page, line):
    for to in LINK.findall(line):
        if '://' in to or to.startswith('mailto:'):
            continue
        name, _, anchor = to.partition('#')
        path = os.path.normpath(os.path.join(root, os.path.dirname(page), name)) if name else os.path.join(root, page)
        if not os.path.exists(path):
            yield 'there is no %s' % to
        elif anchor and anchor not in anchors(read(path)):
            yield 'there is no heading %s' % to


def check_line(root, page, line):
    for path, name in FUNCTION.findall(line):
        at = find(root, path)
        if len(at) != 1:
            yield '%s: %s' % (path, 'there is no such file' if not at else 'write its path from the top: there are two')
        elif not defines(read(at[0]), name):
            yield '%s does not define %s()' % (path, name)
    for path in FILE.findall(' '.join(re.findall(r'`[^`]*`', FUNCTION.sub('', line)))):
        if 'NAME' not in path and not find(root, path):
            yield 'there is no file %s' % path
    yield from check_links(root, page, line)


def check_blocks(root, text):
    for m in BLOCK.finditer(text):
        n = text.count('\n', 0, m.start()) + 1
        if not os.path.isfile(os.path.join(root, m[1])):
            yield n, 'there is no file %s' % m[1]
        elif m[2] not in read(os.path.join(root, m[1])):
            yield n, 'the block is not in %s word for word' % m[1]


def pages_of(root, argument):
    """The page itself, or the pages of a directory, relative to the root."""
    top = os.path.join(root, argument)
    if not os.path.isdir(top):
        return [argument]
    return sorted(os.path.relpath(os.path.join(d, f), root) for d, _, files in os.walk(top) for f in files if f.endswith('.md'))


def check(root, arguments):
    """What is wrong, one line each."""
    found = []
    for page in [p for a in arguments for p in pages_of(root, a)]:
        text = read(os.path.join(root, page))
        found += ['%s:%d: %s' % (page, n, wrong) for n, wrong in check_blocks(root, text)]
        found += ['%s:%d: %s' % (page, n, wrong) for n, line in enumerate(text.splitlines(), 1)
                  for wrong in check_line(root, page, line)]
    return found


TREE = {
    'daemon/link/a.c': 'static int one(int x)\n{\n\ttwo(x);\n}\n\nint three(int x);\nvoid\nfour(void) {}\nint five(int x,\n\t int y)\n{\n}\n',
    'daemon/main.c': 'int main(void)\n{\n}\n', 'docs/other.md': '# Other\n## Its end\n',
}
CASES = [
    ('`link/a.c:one()` and `daemon/main.c:main()` and `daemon/link/a.c:five()`', None),
    ('`link/a.c:four()`, [x](other.md), [x](other.md#its-end), [x](https://example.org/a.md)', None),
    ('`link/a.c:two()`', 'does not define two'),
    ('`link/a.c:three()`', 'does not define three'),
    ('link/b.c:one()', 'link/b.c: there is no such file'),
    ('`link/b.c`', 'there is no file link/b.c'),
    ('[x](gone.md)', 'there is no gone.md'),
    ('[x](other.md#its-start)', 'there is no heading'),
    ('```c daemon/main.c\nint main(void)\n{\n```\n```\nany\n```', None),
    ('```c daemon/main.c\nint main(int x)\n{\n```', 'not in daemon/main.c'),
    ('```c daemon/gone.c\nint main(void)\n```', 'there is no file daemon/gone.c'),
    ('```sh qemu=11.1\ntrue\n```', None),
]


def self_test():
    with tempfile.TemporaryDirectory() as root:
        for f, t in TREE.items():
            os.makedirs(os.path.dirname(os.path.join(root, f)), exist_ok=True)
            with open(os.path.join(root, f), 'w', encoding='utf-8') as o:
                o.write(t)
        for text, says in CASES:
            with open(os.path.join(root, 'docs/page.md'), 'w', encoding='utf-8') as o:
                o.write(text + '\n')
            wrong = check(root, ['docs'])
            if wrong if says is None else len(wrong) != 1 or says not in wrong[0]:
                sys.exit('check_names.py itself: of "%s" it said %s' % (text, wrong))


self_test()
found = check(sys.argv[1], sys.argv[2:])
print('\n'.join(found) if found else 'all that the documents name is there')
sys.exit(bool(found))
