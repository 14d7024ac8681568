# SPDX-License-Identifier: BSD-3-Clause
"""Shell blocks of the documents, as a reader would paste them.

A fenced block whose language is `sh` is run; `sh qemu=11.1` with that QEMU as qemu-system-x86_64. An `output` block behind it is what its last
line prints, sooner or later; `*` stands for anything within a line. `guest` blocks are for the device VM. A block belongs to the section that
it stands in; the blocks of "Before you start" and of that section's parts come first in each section of the same page.
"""
import re

FENCE = re.compile(r'^```(\S*)[ ]?(.*?)\n(.*?)^```$', re.M | re.S)
HEAD = re.compile(r'^(##+) (.*)$', re.M)
PREPARE = 'Before you start'


class Block:
    def __init__(self, lang, options, text):
        self.lang, self.options, self.text = lang, options, text


def sections(text):
    """[(title, [Block])] of a page; the parts (###) of "Before you start" count as that section."""
    # Headings inside of blocks are none.
    masked = FENCE.sub(lambda m: re.sub(r'^#', ' ', m.group(0), flags=re.M), text)
    heads = list(HEAD.finditer(masked)) or []
    out = []
    for h, after in zip(heads, heads[1:] + [None]):
        title, depth = h.group(2), len(h.group(1))
        body = text[h.end():after.start() if after else len(text)]
        blocks = [Block(*m.groups()) for m in FENCE.finditer(body)]
        if depth > 2 and out and out[-1][0] == PREPARE:
            out[-1][1].extend(blocks)
        else:
            out.append((title, blocks))
    return out


def scripts(text):
    """[(title, [Block])]: what is run for each section that has something to run."""
    all_sections = sections(text)
    first = [b for t, blocks in all_sections if t == PREPARE for b in blocks if b.lang == 'sh']
    return [(t, (first if t != PREPARE else []) + [b for b in blocks if b.lang in ('sh', 'output')]) for t, blocks in all_sections
            if any(b.lang == 'sh' for b in blocks)]


def to_bash(blocks, qemu11=None, patience=60):
    """One bash script that runs @blocks and says which block failed. @qemu11: a directory with QEMU 11.1 as qemu-system-x86_64; without it the
    blocks that want it, and what follows them, are left out."""
    out = ['set -eu']
    last = None
    for n, b in enumerate(blocks):
        if b.lang == 'sh':
            if 'qemu=11.1' in b.options:
                if not qemu11:
                    break
                out.append('PATH=%s:$PATH' % qemu11)
            last = b.text.rstrip('\n').split('\n')[-1]
            out += ['at=%d' % n, b.text.rstrip('\n')]
        else:
            # In the shell's patterns all but the * is meant as it stands.
            want = '*'.join("'%s'" % p.replace("'", "'\\''") for p in b.text.rstrip('\n').split('*'))
            out.append('\n'.join(['for i in $(seq %d); do' % (patience * 5), '  got=$(%s) || true' % last, '  case "$got" in %s) break ;; esac' % want,
                                  '  sleep 0.2', 'done',
                                  'case "$got" in %s) ;; *) echo "block %d: not what the page says, but:"; printf \'%%s\\n\' "$got"; exit 1 ;; esac' %
                                  (want, n)]))
    return '\n'.join(out) + '\n'
