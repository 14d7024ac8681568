#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""check_unit.py UNIT DOC: systemd-analyze's exposure level of the unit is at most what DOC states."""
import os
import re
import shutil
import subprocess
import sys

tool = shutil.which('systemd-analyze')
stated = re.search(r'`systemd-analyze security` rates[^.]*?\*\*(\d+\.\d)\*\*', open(sys.argv[2], encoding='utf-8').read(), re.S)
if not stated:
    sys.exit('%s states no exposure level' % sys.argv[2])
if not tool:
    print('skipped: there is no systemd-analyze')
    sys.exit(77)
r = subprocess.run([tool, 'security', '--offline=true', '--no-pager', sys.argv[1]], capture_output=True, text=True, env=dict(os.environ, LC_ALL='C'))
level = re.search(r'Overall exposure level for [^:]*: (\d+\.\d)', r.stdout)
if not level:
    if 'offline' in r.stderr:
        print('skipped: this systemd-analyze cannot look at a file: ' + r.stderr.strip())
        sys.exit(77)
    sys.exit('systemd-analyze says no level\n' + r.stdout + r.stderr)
print('exposure level %s, stated %s' % (level.group(1), stated.group(1)))
sys.exit(float(level.group(1)) > float(stated.group(1)))
