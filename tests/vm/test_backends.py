# SPDX-License-Identifier: BSD-3-Clause
"""Unmodified vhost-user back-ends in the device VM, which the agent hands a link to: DPDK's testpmd, and passt."""

import packages
import pytest
import test_fast
import vhostpci_vm as v

SOCKET = '/run/vhu/backend.sock'


class Backend(test_fast.Fixture):
    """A link whose device VM has no tap: a back-end serves it at SOCKET. Subclasses say what that is."""

    program = None
    keys = {}

    def __init__(self, lab, *link, **device):
        super().__init__(lab, *link, device=device, **self.keys)

    def boot(self):
        self.daemon.start()
        v.note('booted %s (%s) and %s (%s) in %.1f s' % (self.driver.name, self.driver.qemu.label, self.device.name,
                                                         self.device.qemu.label, self.lab.boot(*self.vms)))
        self.device.sh('mkdir -p /run/vhu && chmod 777 /run/vhu')
        self.up_driver()

    def agent(self):
        self.device.sh('(setsid vhost-pci-agent --vhost-user %s >>/run/agent.log 2>&1 & echo $! >/run/agent.pid); sleep 0.3; '
                       'kill -0 $(cat /run/agent.pid) || { cat /run/agent.log; exit 1; }' % SOCKET)

    def story(self):
        out = super().story()
        return '%s\n--- %s\n%s' % (out, self.program, self.device.sh('tail -n 25 /run/backend.log', check=False))

    def reload_driver(self):
        self.driver.sh('rmmod virtio_net && modprobe virtio_net', 30)
        self.up_driver()

    def kill(self):
        """SIGKILL of the back-end. Nobody answers then."""
        self.device.sh('kill -9 $(pidof %s)' % self.program)
        self.device.until('! pidof %s >/dev/null' % self.program, 5)
        assert v.silent(self.driver, self.addr_device)


class Dpdk(Backend):
    """DPDK answers pings by itself (--forward-mode=icmpecho): what comes back was in its hands, in the driver VM's memory."""

    program = 'dpdk-testpmd'

    def __init__(self, lab, *link):
        try:
            # Not the vdev bus: the program brings it, and a second copy would find no device.
            self.programs = packages.testpmd('librte_mempool_ring', 'librte_net_vhost')
        except v.Unavailable as e:
            pytest.skip(str(e))
        super().__init__(lab, *link, programs=self.programs, mem=768, smp=2)

    def start(self):
        # It refuses drivers from directories that others may write to.
        self.device.sh('mkdir -p /var/run; chmod 755 / /pmd; rm -f %s; (setsid dpdk-testpmd -l 0,1 --no-pci --no-huge -m 128 --no-telemetry %s '
                       '--vdev net_vhost0,iface=%s,queues=1,tso=1 -- --forward-mode=icmpecho --auto-start --nb-cores=1 '
                       '--port-topology=loop --total-num-mbufs=4096 --stats-period=600 >>/run/backend.log 2>&1 &)' %
                       (SOCKET, packages.testpmd_drivers(self.programs), SOCKET))

    def check(self):
        self.wait(30)
        assert v.ping(self.driver, self.addr_device, 20, 0.05) == 0
        out = self.driver.sh('ping -q -c 20 -i 0.05 -s 1400 ' + self.addr_device)
        assert ' 0% packet loss' in out, out
        return '40 pings answered'


class Passt(Backend):
    """passt in vhost-user mode: the driver VM's TCP connections end in the device VM's loopback, and the other way round."""

    program = 'passt'
    # What it has: VERSION_1 and mergeable receive buffers.
    keys = dict(net_keys={'Offloads': 'mrgbuf'}, device_keys={'PlainRings': 'yes'})

    def __init__(self, lab, *link):
        try:
            root = packages.tree('trixie', 'passt', 'libc6')
        except v.Unavailable as e:
            pytest.skip(str(e))
        super().__init__(lab, *link, files=packages.files(root, '/opt/passt', '/usr/bin/passt'))
        # What it gives out and calls itself where there is no network beyond: its gateway is the device VM's loopback.
        self.addr_driver, self.addr_device = '169.254.2.1', '169.254.2.2'

    def boot(self):
        super().boot()
        self.device.sh(packages.enter('/opt/passt', '/run/vhu') + '; ip link set lo up; '
                       'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range')

    def start(self):
        self.device.sh('rm -f /run/vhu/*; ' + packages.start(
            '/opt/passt', '/usr/bin/passt -f -4 --vhost-user -s /run/backend.sock -t 5001 -u none', '/run/backend.log'))

    def check(self):
        self.wait(30)
        out = []
        out.append(v.tcp(self.driver, self.device, self.addr_device, 'mib=8'))
        rx = self.driver.spawn('vmtool rx 5001')
        # passt takes the connection before the driver VM does.
        self.driver.until('grep -q ":%04X 00000000:0000 0A" /proc/net/tcp' % 5001)
        self.device.sh('vmtool tx 127.0.0.1 5001 mib=8', 60)
        out.append(v.kv(rx.result()))
        assert [(r['bytes'], r['bad']) for r in out] == 2 * [(8 << 20, 0)], out
        return 'TCP %.0f and %.0f Mbit/s, 8 MiB each, every byte right' % tuple(r['mbps'] for r in out)


KINDS = [(Passt, ('fast', 'shmem', '11')), (Dpdk, ('fast', 'ivshmem', 'system')),
         (Passt, ('copy', 'ivshmem', 'system')), (Dpdk, ('fast', 'shmem', '11'))]


@pytest.mark.parametrize('kind,link', KINDS, ids=['%s-%s-%s-%s' % (k.program, *x) for k, x in KINDS])
def test_backend(lab, kind, link):
    b = kind(lab, *link)
    b.boot()
    b.agent()
    assert v.silent(b.driver, b.addr_device)
    b.start()
    v.note('%s serves the link: %s' % (b.program, b.check()))
    b.reload_driver()
    v.note('driver VM: rmmod and modprobe of virtio_net: %s' % b.check())
    b.kill()
    b.start()
    v.note('%s killed and started again, the agent stayed: %s' % (b.program, b.check()))
    b.end_agent('TERM')
    assert v.silent(b.driver, b.addr_device)
    b.agent()
    v.note('agent ended and started again, %s stayed: %s' % (b.program, b.check()))
    t = b.driver.reset()
    b.up_driver()
    v.note('system_reset of the driver VM, up in %.1f s: %s' % (t, b.check()))
    assert b.device.boots == 1 and b.daemon.alive()
    for vm in b.vms:
        assert 'Call Trace' not in vm.sh('dmesg')
