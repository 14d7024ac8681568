#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_flags.py BINARY...: position-independent, RELRO with immediate binding, no executable stack, nothing both writable and
executable, stack protector, fortified C library calls, CET landing pads on x86-64."""
import re
import subprocess
import sys


def readelf(*args):
    return subprocess.run(['readelf', '-W', *args], capture_output=True, text=True, check=True, env={'LC_ALL': 'C', 'PATH': '/usr/bin:/bin'}).stdout


def check(path):
    head, segments, dynamic, symbols = (readelf(o, path) for o in ('-h', '-l', '-d', '--dyn-syms'))
    sanitized = '__asan_init' in symbols or '__tsan_init' in symbols or '__ubsan' in symbols
    loads = re.findall(r'^\s+LOAD\s+(?:0x\w+\s+){5}([RWE ]{3})', segments, re.M)
    stack = re.search(r'^\s+GNU_STACK\s+(?:0x\w+\s+){5}([RWE ]{3})', segments, re.M)
    yield 'position-independent (PIE)', re.search(r'Type:\s+DYN', head) and 'FLAGS_1' in dynamic and 'PIE' in dynamic
    yield 'RELRO', 'GNU_RELRO' in segments
    yield 'immediate binding (now)', re.search(r'\(FLAGS(_1)?\).*\b(NOW|BIND_NOW)\b', dynamic)
    yield 'stack not executable', stack and 'E' not in stack.group(1)
    yield 'no segment writable and executable', loads and not any('W' in x and 'E' in x for x in loads)
    yield 'no RPATH', 'RPATH' not in dynamic and 'RUNPATH' not in dynamic or sanitized
    yield 'stack protector', '__stack_chk_fail' in symbols
    if not sanitized:  # sanitizers check more than fortification would
        yield 'fortified calls', re.search(r'__\w+_chk@', symbols)
    if 'X86-64' in head:
        # The property note also needs start files built for it, which Debian's C library does not have.
        with open(path, 'rb') as f:
            yield 'CET landing pads (endbr64)', f.read().count(b'\xf3\x0f\x1e\xfa') > 20


bad = 0
for binary in sys.argv[1:]:
    for what, good in check(binary):
        print('%-4s %s: %s' % ('ok' if good else 'BAD', binary, what))
        bad += not good
sys.exit(bad != 0)
