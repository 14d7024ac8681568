# SPDX-License-Identifier: BSD-3-Clause
"""Grant mode with packed rings, which vhost-net does not have: DPDK in the device VM serves them. Each ring is three pages of the driver VM's."""

import time

import portlink
import pytest
import vhostpci_vm as v
from test_backends import Dpdk

MIB = 1 << 20
POOL = 16 * MIB
UNBIND = 'cd /sys/bus/virtio/drivers/virtio_net && d=$(ls -d virtio*) && echo $d >unbind && echo $d >bind'
POINTS = [('6.1', 'system'), ('6.12', '11')]


class Packed(Dpdk):
    """A kernel that bounces through its pool, packed rings, testpmd in the device VM."""

    def __init__(self, lab, kernel, qemu):
        self.keys = dict(kernel=kernel, driver=dict(qemu=qemu, append='swiotlb=%d,force' % (POOL // 2048)), net=dict(packed=True),
                         device_keys={'PackedRings': 'yes', 'ApertureSize': '512M'})
        super().__init__(lab, 'grant', 'shmem', '11')

    def boot(self):
        super().boot()
        self.start_grant()

    def grant(self):
        return self.daemon.ctl('grant', self.name)

    def check(self):
        out = super().check()
        assert self.driver.sh('cut -c35 /sys/class/net/eth0/device/features').strip() == '1', 'VIRTIO_F_RING_PACKED'
        g, port = self.grant(), self.show()['sides']['device']
        kinds = [r['what'] for r in g['ranges']]
        assert g['state'] == 'granted' and g['by'] == 'its channel' and kinds.count('pool') == 1 and kinds.count('ring') == len(kinds) - 1
        assert sum(w['size'] for w in port['windows']) == g['bytes'] <= POOL + 8 * 4096
        return '%s, %d windows' % (out, len(kinds))

    def lacking(self):
        """vhost-net has no packed rings: host and device VM know why the link is down."""
        end = time.time() + v.limit(20)
        while self.show()['sides']['device']['reason'] != 'features':
            assert time.time() < end, self.story()
            time.sleep(0.1)
        doctor = {f['check']: f for f in self.daemon.ctl('doctor')['findings']}
        assert 'PackedRings' in doctor['data-path']['way_out'] and 'lacks RING_PACKED' in self.agent_log()
        return doctor['data-path']['what']

    def broken(self):
        """What the daemon says of the queues, all of which are broken."""
        end = time.time() + v.limit(20)
        while True:
            q = self.show()['sides']['driver']['queues']
            if all(x['state'] == 'broken' for x in q):
                return q[0]['error']
            assert time.time() < end, self.story()
            time.sleep(0.1)

    def gone(self):
        end = time.time() + v.limit(20)
        while self.grant()['state'] != 'none':
            assert time.time() < end, self.story()
            time.sleep(0.1)


@pytest.mark.parametrize('kernel,qemu', POINTS, ids=['%s-%s' % p for p in POINTS])
def test_packed(lab, kernel, qemu):
    b = Packed(lab, kernel, qemu)
    b.boot()
    b.start_agent(addr=False)
    v.note('vhost-net: %s' % b.lacking())
    b.end_agent()
    b.agent()
    b.start()
    v.note('packed rings: %s' % b.check())
    for _ in range(2):
        b.driver.sh(UNBIND)
        b.up_driver()
        v.note('unbind and bind: %s' % b.check())
    # Without the helper, which would grant it again at once.
    b.driver.sh('kill $(cat %s)' % portlink.GRANT_PID)
    b.daemon.ctl('grant', b.name, '--drop')
    b.gone()
    assert v.silent(b.driver, b.addr_device)
    b.start_grant()
    v.note('dropped, and granted anew: %s' % b.check())
    # A packed ring does not tell where it stands: who goes without a word leaves it broken until its driver starts anew.
    b.kill()
    b.start()
    v.note('SIGKILL of testpmd: %s' % b.broken())
    b.driver.sh(UNBIND)
    b.up_driver()
    v.note('unbind and bind after that: %s' % b.check())
    b.driver.reset()
    b.start_grant()
    b.up_driver()
    v.note('system_reset of the driver VM: %s' % b.check())
    for m in b.vms:
        assert not m.complaints()
