# SPDX-License-Identifier: BSD-3-Clause
"""The conformance suite plays the daemon of a real device VM: guest module, agent, stock vhost-net and a tap."""
import json
import os
import subprocess
import time

import pytest
import vhostpci_vm as v

import guestmod
import portlink
from conftest import BUILD, TOP

# What a tap that sends nothing back, and a guest that is not started anew, cannot show.
LEAST = {'G%d' % i for i in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 18, 19, 20, 21, 23, 25, 26, 27,
                             28, 29, 30, 31, 48, 49)}


def test_guest_over_ivshmem(lab):
    try:
        ko, _ = guestmod.build('6.1', lab.dir + '/mod')
    except v.Unavailable as e:
        pytest.skip(str(e))
    path = lab.dir + '/cf'
    suite = subprocess.Popen([TOP + '/conformance/run', '--json', '--slow', str(v.limit(2)), '--no-echo', '--guest-socket',
                              'ivshmem:' + path], stdout=subprocess.PIPE, text=True)
    try:
        while not os.path.exists(path):
            assert suite.poll() is None
            time.sleep(0.05)
        vm = lab.vm('m', kernel='6.1', cpu='max,vendor=GenuineIntel' if v.accel() == 'tcg' else None,
                    files={'lib/modules/vhost_pci.ko': ko,
                           'bin/vhost-pci-agent': (portlink.agent_binary(BUILD), 0o755)},
                    extra=['-device', 'pcie-root-port,id=rp0,chassis=1,pref64-reserve=256M',
                           '-chardev', 'socket,id=c,path=' + path,
                           '-device', 'ivshmem-doorbell,chardev=c,vectors=4,bus=rp0'])
        vm.start()
        vm.sh('insmod /lib/modules/vhost_pci.ko; modprobe tun; modprobe vhost_net')
        vm.until('grep -qsx conformance /sys/class/vhost-pci/*/name', 10)
        vm.sh(portlink.agent_command('conformance', 'tap0', '52:54:00:12:34:56', log='/run/a.log'))
        out, _ = suite.communicate(timeout=v.limit(300))
        rules = json.loads(out)['rules']
        bad = [r for r in rules if r['result'] == 'FAIL']
        assert not bad, '%s\n%s' % (bad, vm.sh('tail -50 /run/a.log'))
        assert {r['id'] for r in rules if r['result'] == 'pass'} == LEAST
    finally:
        suite.kill()
        suite.wait()
