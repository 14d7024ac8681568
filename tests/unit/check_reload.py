#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the man pages say that a reload does with a changed key is what the table of keys (daemon/conf/keys.c) says.

usage: check_reload.py SOURCE_ROOT

Each key's paragraph ends in the sentence of its effect, and no other such sentence stands in it. First the check shows
that it finds a wrong sentence, a missing one, and a key without a paragraph.
"""
import os
import re
import sys

SENTENCE = {
    'LIVE': 'Reload: at once; links run on.',
    'OWNER': 'Reload: at once, for whoever connects from then on.',
    'POLICY': 'Reload: at once; a link whose mode changes with it is made anew.',
    'AGAIN': 'Reload: its front\\-ends connect again.',
    'ANEW': 'Reload: the link is made anew.',
    'START': 'Reload: no change; restart or upgrade the daemon.',
}
PAGES = {'Daemon': 'vhost-pci.conf.5', 'Control': 'vhost-pci.conf.5', 'Metrics': 'vhost-pci.conf.5',
         'VM': 'vhost-pci.vm.5', 'Link': 'vhost-pci.link.5', 'Driver': 'vhost-pci.link.5',
         'Device': 'vhost-pci.link.5', 'Profile': 'vhost-pci.link.5', 'Net': 'vhost-pci.link.5'}
# The other name of a key has no paragraph of its own.
OTHER_NAMES = {('Link', 'DeviceType')}


def table(source):
    return {(s, k): e for s, k, e in re.findall(r'\{ "(\w+)", "(\w+)", E\((\w+)\)', source)}


def paragraphs(page):
    """{(section, key): text}"""
    found, section = {}, None
    for part in re.split(r'^\.SH ', page, flags=re.M)[1:]:
        m = re.match(r'"\[(\w+)\] SECTION"', part)
        if not m:
            continue
        section = m[1].upper()
        depth, keys = 0, []
        lines = part.splitlines()[1:]
        for i, line in enumerate(lines):
            depth += line == '.RS'
            depth -= line == '.RE'
            if line == '.TP' and not depth:
                keys = re.findall(r'(\w+)=', lines[i + 1])
            elif line == '.PP':
                keys = []
            for k in keys:
                found[section, k] = found.get((section, k), '') + line + '\n'
    return found


def problems(keys, pages):
    texts = {n: paragraphs(p) for n, p in pages.items()}
    for (section, key), effect in keys.items():
        if (section, key) in OTHER_NAMES:
            continue
        name = PAGES[section]
        text = texts[name].get((section.upper(), key))
        if text is None:
            yield '%s: [%s] %s= has no paragraph' % (name, section, key)
            continue
        said = re.findall(r'^(?:\.I )?(Reload: .*)$', text, re.M)
        if said != [SENTENCE[effect]]:
            yield '%s: [%s] %s= has the effect %s: its paragraph must say "%s" once, and says %s' % (
                name, section, key, effect, SENTENCE[effect], said)


def self_test():
    page = '.SH "[NET] SECTION"\n.TP\n.BR MTU= ", " X=\ntext\n.I Reload: the link is made anew.\n.SH "OTHER"\n'
    pages = {n: '' for n in PAGES.values()}
    pages['vhost-pci.link.5'] = page
    keys = table('{ "Net", "MTU", E(ANEW), parse_u32 }, { "Net", "X", E(ANEW), p }')
    assert not list(problems(keys, pages))
    assert list(problems({**keys, ('Net', 'MTU'): 'LIVE'}, pages))
    assert list(problems({**keys, ('Net', 'Y'): 'LIVE'}, pages))
    pages['vhost-pci.link.5'] = page.replace('.I Reload: the link is made anew.\n', '')
    assert len(list(problems(keys, pages))) == 2


def main():
    root = sys.argv[1]
    self_test()
    with open(os.path.join(root, 'daemon/conf/keys.c'), encoding='utf-8') as f:
        source = f.read()
    keys = table(source)
    rows = len(re.findall(r'^\t\{ "\w+", "\w+", ', source, re.M))
    assert rows == len(keys) > 50, 'rows of the tables that this check does not understand'
    pages = {}
    for n in set(PAGES.values()):
        with open(os.path.join(root, 'docs/man', n), encoding='utf-8') as f:
            pages[n] = f.read()
    bad = list(problems(keys, pages))
    print('\n'.join(bad))
    sys.exit(bool(bad))


main()
