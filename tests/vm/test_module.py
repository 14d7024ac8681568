# SPDX-License-Identifier: BSD-3-Clause
"""The guest module in a VM, against a fake daemon that follows docs/spec.md (fakeport.py)."""

import re
import time

import pytest
import vhostpci_vm as v

import fakeport
import guestmod

MIB = 1 << 20


class Guest:
    """A VM with the module, its test program and fake ports on root ports rp0 (cold), rp1 (windows), rp2 (hot)."""

    def __init__(self, lab, qemu, kernel, ports=(), extra=(), load=True):
        self.lab = lab
        try:
            ko, self.buildlog = guestmod.build(kernel, lab.dir + '/mod', check=True)
        except v.Unavailable as e:
            pytest.skip(str(e))
        st = guestmod.selftest(lab.dir)
        self.ports = [fakeport.FakePort(lab.dir, **p) for p in ports]
        args = fakeport.FakePort.ports()
        for p in self.ports:
            args += p.args()
        self.vm = lab.vm('m', qemu=qemu, kernel=kernel, cpu='max,vendor=GenuineIntel' if v.accel() == 'tcg' else None,
                         files={'lib/modules/vhost_pci.ko': ko, 'bin/st': (st, 0o755)}, extra=args + list(extra))
        for p in self.ports:
            p.vm = self.vm
        self.vm.start()
        if load:
            self.load()

    def load(self):
        self.vm.sh('insmod /lib/modules/vhost_pci.ko')

    def wait_dev(self, n=0, timeout=10):
        self.vm.sh('for i in $(seq %d); do [ -e /dev/vhost-pci%d ] && exit 0; sleep 0.1; done; dmesg | tail; exit 1' % (timeout * 10, n),
                   timeout=timeout + 10)

    def st(self, what, timeout=60):
        out = self.vm.sh('st ' + what, timeout=timeout)
        m = re.search(r'^ok .*', out, re.M)
        assert m, out
        v.note(m.group(0))
        return m.group(0)

    def clean(self):
        """No kernel complaint of any kind."""
        log = self.vm.sh('dmesg')
        bad = [x for x in log.splitlines()
               if re.search(r'WARNING|BUG|Oops|general protection|Call Trace|lockdep|unexpected|use-after|hung', x)]
        assert not bad, '\n'.join(bad)

    def close(self):
        for p in self.ports:
            p.close()


MATRIX = [('system', '6.1'), ('system', '6.12'), ('11', 'backports')]


@pytest.fixture
def guest(lab):
    made = []

    def make(*a, **kw):
        made.append(Guest(lab, *a, **kw))
        return made[-1]
    yield make
    for g in made:
        g.vm.kill()
        g.close()


@pytest.mark.parametrize('qemu,kernel', MATRIX)
def test_port(guest, qemu, kernel):
    """Openers, commands, the pool window, signals, an owner that dies, unbind and module reload."""
    g = guest(qemu, kernel, [dict(queues=4)])
    port, vm = g.ports[0], g.vm
    assert 'warning' not in g.buildlog.lower(), g.buildlog
    g.wait_dev()
    assert 'name fake' in g.st('info')
    sys = '/sys/class/vhost-pci/vhost-pci0/'
    assert vm.sh('cat %slink %sreason %sname' % (sys, sys, sys)).split('\n')[:3] == ['down', 'not attached', 'fake']
    g.st('openers')
    g.st('commands')
    g.st('window')
    # what the guest wrote is in the host's memory
    assert port.m[fakeport.POOL + 8:fakeport.POOL + 9] == b'\xa5' and port.m[fakeport.POOL + 16:fakeport.POOL + 17] == b'\x77'
    g.st('signals 2000')
    g.st('orphan')
    assert not port.attached
    # an owner that is killed: the port is detached for it
    n = port.detached
    job = vm.spawn('st hold & sleep 2; cat %slink; kill -9 $!; wait; sleep 1' % sys, timeout=30)
    assert 'up' in job.result()
    end = time.time() + 5
    while port.detached == n and time.time() < end:
        time.sleep(0.05)
    assert port.detached == n + 1 and not port.attached
    assert int(vm.sh('cat %sstatistics/commands' % sys)) > 200
    # busy while open, fine when not, many times
    assert vm.status('st hold 3 & sleep 1; rmmod vhost_pci; r=$?; wait; exit $r')[0] != 0
    t0 = time.time()
    vm.sh('for i in $(seq 20); do rmmod vhost_pci || exit 1; insmod /lib/modules/vhost_pci.ko || exit 2; done', timeout=120)
    v.note('20 rmmod/insmod in %.1f s' % (time.time() - t0))
    g.wait_dev()
    g.st('signals 200')
    g.clean()


@pytest.mark.parametrize('qemu,kernel', MATRIX)
def test_window(guest, qemu, kernel):
    """A driver VM's memory as a hot-plugged window: huge pages, revocation with SIGBUS, again and again."""
    g = guest(qemu, kernel, [dict(queues=2, window=64 * MIB)])
    g.wait_dev()
    out = g.st('window', timeout=120)
    assert g.ports[0].wm is not None
    if kernel != '6.1':
        assert 'align 2097152' in out
    g.st('revoke 4', timeout=180)
    g.clean()


@pytest.mark.parametrize('qemu,kernel', MATRIX)
def test_unplug(guest, qemu, kernel):
    """The port goes away while everything is open and mapped; and comes again."""
    g = guest(qemu, kernel, [dict(queues=2, window=8 * MIB)])
    port = g.ports[0]
    for i in range(3):
        g.wait_dev()
        g.st('unplug', timeout=60)
        end = time.time() + 20
        while port.up and time.time() < end:
            time.sleep(0.1)
        assert not port.attached, 'the module did not detach'
        g.vm.sh('[ ! -e /dev/vhost-pci0 ]')
        g.clean()
        time.sleep(0.5)
        port.add()
    g.wait_dev()
    g.st('signals 200')
    # sysfs unbind with everything open is the same from inside
    out = g.vm.sh('st hold 6 & sleep 3; cd /sys/bus/pci/drivers/vhost_pci_ivshmem; for d in 0000:*; do echo $d > unbind; done; '
                  'wait $!; echo status $?', timeout=60)
    assert 'status 0' in out
    g.clean()


def test_others(guest):
    """Other ivshmem devices stay unbound: no magic; an id in the window range that nobody names."""
    g = guest('system', '6.1', [dict(queues=2), dict(queues=2, name='alien', bus='rp1', magic=b'NOTMAGIC')])
    stranger = fakeport.memory(4 * MIB, 'stranger')
    s = fakeport.Server(g.lab.dir + '/str', 0x9000, stranger, [fakeport.eventfd()])
    g.vm.qmp('chardev-add', id='cs', backend={'type': 'socket', 'data': {'addr': {'type': 'unix', 'data': {'path': s.path}},
                                                                        'server': False}})
    g.vm.qmp('device_add', driver='ivshmem-doorbell', id='s', chardev='cs', vectors=1, bus='rp2')
    g.wait_dev()
    time.sleep(2)
    g.st('commands')
    bound = g.vm.sh('ls -d /sys/bus/pci/drivers/vhost_pci_ivshmem/0000:*').split()
    every = g.vm.sh('grep -l 0x1110 /sys/bus/pci/devices/*/device').split()
    assert len(bound) == 1 and len(every) == 3, (bound, every)
    g.clean()


def test_reset(guest):
    """The guest is reset without a word while attached: its next life detaches first."""
    g = guest('system', '6.1', [dict(queues=2)])
    g.wait_dev()
    job = g.vm.spawn('st hold', timeout=120)
    end = time.time() + 20
    while not g.ports[0].up and time.time() < end:
        time.sleep(0.1)
    assert g.ports[0].up
    g.vm.reset()
    assert g.ports[0].attached
    g.load()
    g.wait_dev()
    g.st('signals 100')
    assert g.ports[0].commands.count(2) >= 1
    # an orderly reboot detaches on its way down
    n = g.ports[0].detached
    g.vm.spawn('st hold', timeout=120)
    time.sleep(2)
    assert g.ports[0].attached
    g.vm.reboot()
    del job
    assert n < g.ports[0].detached or not g.ports[0].attached
