# SPDX-License-Identifier: BSD-3-Clause
"""Fast and copy links between real VMs: the device VM processes the driver VM's queues through its vhost-pci port."""

import base64
import os
import signal
import subprocess
import sys
import time

import portlink
import pytest
import vhostpci_vm as v

sys.path.append(os.path.join(v.TOP, 'tests/protocol'))
import pcapng  # noqa: E402

LINKS = [('fast', 'ivshmem', 'system'), ('fast', 'shmem', '11'), ('copy', 'ivshmem', 'system'), ('copy', 'shmem', '11')]
IDS = ['%s-%s' % x[:2] for x in LINKS]


class Fixture(portlink.PortLink):
    """A PortLink that can be put right again, whatever the test before left behind."""

    def __init__(self, lab, mode, attachment, device_qemu, **kw):
        self.lab = lab
        try:
            super().__init__(lab.daemon, mode, attachment, 'system', device_qemu, **kw)
        except v.Unavailable as e:
            pytest.skip(str(e))
        lab.vms += self.vms

    def ensure(self):
        if not self.daemon.alive():
            self.daemon.stop()
            self.daemon.start()
        fresh = [m for m in self.vms if not m.alive()]
        if fresh:
            v.note('booted %s in %.1f s' % (' and '.join('%s (%s, %s)' % (m.name, m.qemu.label, m.kernel.release) for m in fresh),
                                            self.lab.boot(*fresh)))
        if self.device.status('pidof vhost-pci-agent')[0]:
            self.start_agent()
        self.device.up(self.addr_device + '/24', self.tap)
        self.up_driver()
        self.wait()
        return self

    def back(self, how, amount='mib=8'):
        t = self.wait()
        v.note('%s; link back after %.1f s' % (how, t))
        f, r = self.tcp(amount)
        assert f['bytes'] and r['bytes']
        assert self.device.sh('dmesg').count('Call Trace') == 0


@pytest.fixture(scope='class', params=LINKS, ids=IDS)
def link(request, new_lab):
    with new_lab() as lab:
        yield Fixture(lab, *request.param)


class TestPort:
    def test_ping(self, link):
        link.ensure()
        assert v.ping(link.driver, link.addr_device, 10, 0.1) == 0
        assert v.ping(link.device, link.addr_driver, 10, 0.1) == 0

    def test_tcp_both_ways(self, link):
        f, r = link.ensure().tcp('mib=32')
        v.note('TCP %.0f and %.0f Mbit/s, 32 MiB each, every byte right' % (f['mbps'], r['mbps']))
        assert f['bytes'] == r['bytes'] == 32 << 20

    def test_seen_from_outside(self, link, tmp_path):
        """Its packets are counted and can be captured: by the daemon, or, where it does not see them, in the device VM."""
        link.ensure()
        path, counted = tmp_path / 'x.pcapng', 'daemon'
        if link.mode == 'fast':
            counted = 'device-vm'
            p = link.device.spawn('vhost-pci-agent --capture %s --write /run/x.pcapng --count 10 2>/run/capture.log' % link.tap, 60)
            link.device.until('grep -q capturing /run/capture.log', 20)
        else:
            p = subprocess.Popen([link.daemon.cli, '--control', link.daemon.control, 'capture', link.name, '-w', str(path), '--count', '10'],
                                 stderr=subprocess.PIPE, text=True)
            assert p.stderr.readline().startswith('capturing')
        assert v.ping(link.driver, link.addr_device, 8, 0.1) == 0
        if link.mode == 'fast':
            p.result()
            path.write_bytes(base64.b64decode(link.device.sh('base64 /run/x.pcapng')))
        else:
            assert p.wait(v.limit(20)) == 0, p.stderr.read()
            p.stderr.close()
        f = pcapng.File(path.read_bytes())
        # ICMP, and the address of who asks: requests go out of the driver VM, answers come in.
        asks = [x.direction for x in f.packets if x.data[12:14] == b'\x08\x00' and x.data[23] == 1 and x.data[34] == 8]
        answers = [x.direction for x in f.packets if x.data[12:14] == b'\x08\x00' and x.data[23] == 1 and x.data[34] == 0]
        assert len(asks) >= 3 and set(asks) == {'out'} and len(answers) >= 3 and set(answers) == {'in'}
        end = time.time() + v.limit(10)
        while True:
            s = link.daemon.ctl('stats', link.name)['links'][0]
            sent = [s['sides'][x]['tx']['packets'] for x in ('driver', 'device')]
            if s['counted_by'] == counted and min(sent) >= 5:
                break
            assert time.time() < end, s
            time.sleep(0.1)
        v.note('counted by the %s: %d packets from the driver VM, %d from the device VM' % (counted, *sent))

    def test_big_segments(self, link):
        """Segments of the sender's stack cross whole."""
        link.ensure()
        r = v.big_segments(link.device, link.driver, link.addr_driver, 'eth0', 4000)
        v.note('longest frame that came in: %d bytes, %d of %d frames were longer than 1600' % (r['in_max'], r['in_big'], r['in']))
        assert r['in_max'] > 4000

    def test_driver_vm_reset(self, link):
        link.ensure()
        t = link.driver.reset()
        link.up_driver()
        link.back('system_reset of the driver VM, up in %.1f s' % t)
        assert link.device.boots == 1

    def test_driver_vm_sigkill_in_transfer(self, link):
        link.ensure()
        link.device.spawn('vmtool rx 4997', 30)
        link.driver.spawn('vmtool tx %s 4997 secs=20' % link.addr_device, 30)
        time.sleep(1)
        link.driver.kill()
        assert link.device.sh('echo alive', 20) == 'alive\n'
        assert link.daemon.alive()
        t = link.driver.start()
        link.up_driver()
        link.back('SIGKILL of the driver VM during a transfer, started again in %.1f s' % t)
        assert link.device.boots == 1

    def test_agent_restart(self, link):
        link.ensure()
        link.end_agent('TERM')
        assert v.silent(link.driver, link.addr_device)
        link.start_agent()
        link.back('agent ended and started again')
        link.end_agent('KILL')
        link.start_agent()
        link.back('agent killed and started again')

    def test_device_vm_sigkill(self, link):
        link.ensure()
        boots = link.driver.boots
        link.device.kill()
        assert link.driver.sh('echo alive', 20) == 'alive\n'
        t = link.device.start()
        link.start_agent()
        link.back('SIGKILL of the device VM, started again in %.1f s' % t)
        assert link.driver.boots == boots and link.daemon.alive()

    def test_device_vm_reset(self, link):
        link.ensure()
        boots = link.driver.boots
        t = link.device.reset()
        link.start_agent()
        link.back('system_reset of the device VM, up in %.1f s' % t)
        assert link.driver.boots == boots and link.daemon.alive()


def test_fast_refused_across_groups(lab):
    """Policy: VMs of different trust groups never get a fast link, whatever it asks for."""
    link = Fixture(lab, 'fast', 'ivshmem', 'system', groups=('blue', 'red'))
    try:
        link.daemon.start()
    except v.VMError as e:
        v.note('the daemon refuses the configuration')
        assert 'trust' in str(e) or 'group' in str(e)
        return
    show = link.daemon.ctl('show', portlink.LINK, check=False)
    v.note('policy: %r' % (show and show.get('policy')))
    assert show is None or not show['policy']['allowed'] or show['policy']['mode'] != 'fast'
    assert link.daemon.stop(signal.SIGTERM) == 0
