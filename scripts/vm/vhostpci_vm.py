# SPDX-License-Identifier: BSD-3-Clause
"""Real VMs and a real daemon, for the demo and the tests.

    d = Daemon(workdir, builddir);  d.write('a.vm', {...});  d.start()
    vm = VM('a', workdir, nets=[Net(d.path('ab-driver.sock'), mac='52:54:00:00:00:01')])
    vm.start();  vm.sh('ip link set eth0 up');  vm.reset();  vm.kill()

Only the Python standard library. This is the front door: guests are in machine.py, traffic between them in traffic.py, the
daemon in host.py. What is inside a guest: image.py, and vmtool_agent.c for its command agent.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from deb import Lock, Unavailable, cache_dir, progress                                          # noqa: E402
from host import Daemon, Testpmd, ini                                                           # noqa: E402
from machine import GrantPort, Job, Net, Port, Qemu, TAKEN, TOP, UserDevice, VM, VMError, accel, limit, listened, patience, qemu        # noqa: E402
from traffic import big_segments, bound, kv, next_port, ping, silent, tcp, transfer, udp, wait_ping           # noqa: E402

__all__ = ['Daemon', 'GrantPort', 'Job', 'Lock', 'Net', 'Port', 'Qemu', 'TAKEN', 'TOP', 'Testpmd', 'UserDevice', 'Unavailable', 'VM', 'VMError', 'accel', 'big_segments', 'bound', 'cache_dir', 'ini', 'kv',
           'limit', 'listened', 'next_port', 'patience', 'ping', 'progress', 'qemu', 'silent', 'tcp', 'transfer', 'udp', 'wait_ping']
