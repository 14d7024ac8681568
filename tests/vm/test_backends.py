# SPDX-License-Identifier: BSD-3-Clause
"""vhost-user back-ends in the device VM, which the agent hands a link to: unmodified DPDK testpmd and passt; and one of a type given by its number."""

import os
import struct
import time

import image
import packages
import pytest
import served
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


class Entropy(served.Served):
    """Type=4: vhost-pci knows nothing of this device but that it has queues. Its bytes are words that count up (vhurng.c), to a vhost-user-rng-pci."""

    kind, model, props = '4', 'vhost-user-rng-pci', ''
    driver_modules = ('virtio_rng',)
    device_keys = {'PlainRings': 'yes'}     # in fast mode the driver VM's rings are the back-end's
    seed = 1 << 32

    def __init__(self, daemon, *point, **kw):
        program = image.program(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'vhurng.c'))
        super().__init__(daemon, *point, device=dict(files={'bin/vhurng': (program, 0o755)}), profile={'Features': '0x0'}, **kw)

    def start_backend(self):
        self.device.sh('(setsid vhurng %s %d >>/run/backend.log 2>&1 & echo $! >/run/backend.pid)' % (served.SOCKET, self.seed))
        self.seed += 1 << 32

    def attach(self):
        self.driver.sh(served.PATIENT + served.INSERT + '; [ -c /dev/hwrng ]', 120)

    def read(self, size=4096):
        """The words that the driver VM reads. Its kernel takes some, too."""
        got = bytes.fromhex(self.driver.sh('dd if=/dev/hwrng bs=64 count=%d iflag=fullblock 2>/dev/null | hexdump -v -e \'1/1 "%%02x"\'' % (size // 64), 120))
        words = struct.unpack('<%dQ' % (len(got) // 8), got)
        assert len(words) == size // 8
        assert all(a < b for a, b in zip(words, words[1:])), 'a word came twice, or too late'
        return words

    def wait_status(self, want):
        end = time.time() + v.limit(30)
        while self.status()['status'] != want:
            if time.time() > end:
                raise v.VMError('the link is %s, not %s' % (self.status()['status'], want))
            time.sleep(0.1)

    def wait_new(self, seed):
        """Until words from @seed on come: what the driver's kernel had before that is used up."""
        for _ in range(50):
            if (w := self.read(64))[-1] >= seed:
                return w
        raise v.VMError('%#x: nothing of what is served now' % w[-1])


NUMBER = [('copy', 'ivshmem', 'system', 'system'), ('fast', 'shmem', '11', '11')]


@pytest.mark.parametrize('point', NUMBER, ids=['-'.join(p) for p in NUMBER])
def test_type_by_number(lab, point):
    """An entropy device, with the stock driver. In copy mode the next back-end gets the open buffer; in fast mode nobody knows what became of it."""
    k = Entropy(lab.daemon, *point)
    lab.vms += k.vms
    k.daemon.start()
    lab.boot(*k.vms)
    try:
        k.serve()
        k.attach()
        assert k.driver.sh('cat /sys/class/misc/hw_random/rng_current').strip().startswith('virtio_rng')
        first = k.read()
        assert first[0] >= 1 << 32 and first[-1] < 1 << 33
        v.note('%d words read, all new and in order' % len(first))
        k.device.sh('kill -STOP $(cat /run/backend.pid)')
        job = k.driver.spawn('dd if=/dev/hwrng of=/dev/null bs=64 count=64 iflag=fullblock 2>/dev/null', 240)
        k.driver.until('(for p in $(pidof dd); do case $(cat /proc/$p/wchan) in 0) exit 1;; esac; done) && pidof dd >/dev/null', 30)
        k.kill_backend()
        k.device.until('! kill -0 $(cat /run/backend.pid) 2>/dev/null', 10)
        if point[0] == 'fast':
            k.wait_status('broken')
            assert 'had not answered' in k.status()['sides']['driver']['queues'][0]['error']
            k.start_backend()
            # The driver starts anew.
            k.driver.reset()
            k.attach()
        else:
            k.start_backend()
            job.result(60)
            assert k.status()['sides']['device']['requests_given_again'] >= 1
        second = k.wait_new(1 << 33)
        k.read()
        v.note('the back-end was killed with a request under way, and started again: words from %#x on' % second[-1])
    except v.VMError as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    assert k.daemon.alive() and not k.driver.complaints()
