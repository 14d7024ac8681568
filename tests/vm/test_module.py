# SPDX-License-Identifier: BSD-3-Clause
"""The guest module in a VM, against a fake daemon that follows docs/spec.md (fakeport.py)."""

import os
import re
import shutil
import subprocess
import time

import pytest
import vhostpci_vm as v

import fakeport
import guestmod
import hotplug
import image

MIB = 1 << 20


def wait(cond, what, timeout=20):
    timeout = v.limit(timeout)
    end = time.time() + timeout
    while not cond():
        assert time.time() < end, 'no %s within %d s' % (what, timeout)
        time.sleep(0.05)


class Guest:
    """A VM with the module, its test program and fake ports."""

    def __init__(self, lab, qemu, kernel, ports=(), extra=(), **vm):
        self.lab = lab
        try:
            ko, self.buildlog = guestmod.build(kernel, lab.dir + '/mod', check=True)
        except v.Unavailable as e:
            pytest.skip(str(e))
        st = guestmod.selftest(lab.dir)
        self.ports = [fakeport.FakePort(lab.dir, **p) for p in ports]
        args = list(extra) + fakeport.FakePort.ports(6)
        for p in self.ports:
            args += p.args()
        self.vm = lab.vm('m', qemu=qemu, kernel=kernel, cpu='max,vendor=GenuineIntel' if v.accel() == 'tcg' else None,
                         files={'lib/modules/vhost_pci.ko': ko, 'bin/st': (st, 0o755)}, extra=args, **vm)
        for p in self.ports:
            p.vm = self.vm
        self.holds = 0
        self.vm.start()
        self.load()

    def load(self):
        self.vm.sh('insmod /lib/modules/vhost_pci.ko')

    def dev(self, name):
        """The name of the device of port @name, which may take a moment to appear."""
        self.vm.until('grep -qsx %s /sys/class/vhost-pci/*/name' % name, 10, 'dmesg | tail')
        return self.vm.sh('cd /sys/class/vhost-pci && f=$(grep -lx %s */name) && echo ${f%%/name}' % name).strip()

    def gone(self, name):
        self.vm.until('! grep -qsx %s /sys/class/vhost-pci/*/name' % name, 10)

    def hold(self, dev, secs=3600, timeout=300):
        """A program that holds all of the port open and mapped; it does when this returns."""
        self.holds += 1
        log = '/run/hold%d' % self.holds
        job = self.vm.spawn('st -d /dev/%s hold %d >%s 2>&1; s=$?; cat %s; exit $s' % (dev, secs, log, log), timeout)
        self.vm.until('grep -qs "^ok hold" ' + log, 30, 'cat ' + log)
        return job

    def st(self, dev, what, timeout=60):
        try:
            out = self.vm.sh('st -d /dev/%s %s' % (dev, what), timeout=timeout)
        except v.VMError as e:
            raise v.VMError('%s\nthe host: %s' % (e, [p.errors for p in self.ports]))
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
        for p in self.ports:
            assert not p.errors, p.errors

    def close(self):
        for p in self.ports:
            p.close()


MATRIX = [('system', '6.1'), ('system', '6.12'), ('11', 'backports')]
POOL, WIN = 0, 1


@pytest.fixture(scope='class', params=MATRIX, ids=['-'.join(m) for m in MATRIX])
def guest(request, new_lab):
    """One boot for each kernel: port "pool" on rp0, port "win" on rp1, whose windows go to rp2."""
    with new_lab() as lab:
        g = Guest(lab, *request.param, ports=[dict(queues=4, name='pool', bus='rp0', signals=6),
                                              dict(queues=2, name='win', bus='rp1', wbus='rp2', window=64 * MIB)])
        yield g
        g.vm.kill()
        g.close()


class TestModule:
    def test_port(self, guest):
        """Openers, commands, the pool window, signals, an owner that dies."""
        g, vm = guest, guest.vm
        port = g.ports[POOL]
        assert 'warning' not in g.buildlog.lower(), g.buildlog
        d = g.dev('pool')
        sys = '/sys/class/vhost-pci/%s/' % d
        assert 'name pool' in g.st(d, 'info')
        assert vm.sh('cat %slink %sreason %sname' % (sys, sys, sys)).split('\n')[:3] == ['down', 'not attached', 'pool']
        g.st(d, 'openers')
        g.st(d, 'commands')
        g.st(d, 'window')
        # what the guest wrote is in the host's memory
        m, pool = port.m, fakeport.POOL
        assert m[pool + 8] == 0xa5 and m[pool + 16] == 0x77
        g.st(d, 'signals 2000')
        g.st(d, 'wiring 200')
        g.st(d, 'orphan')
        wait(lambda: not port.attached, 'DETACH after the last program')
        # an owner that is killed: the port is detached for it
        n = port.detached
        g.hold(d)
        assert vm.sh('cat %slink; kill -9 $(pidof st)' % sys).strip() == 'up'
        wait(lambda: port.detached == n + 1 and not port.attached, 'DETACH after the owner died')
        assert int(vm.sh('cat %sstatistics/commands' % sys)) > 200
        g.clean()

    def test_window(self, guest):
        """A driver VM's memory as a hot-plugged window: huge pages, revocation with SIGBUS, again and again."""
        d = guest.dev('win')
        out = guest.st(d, 'window', timeout=120)
        if guest.vm.kernel.name != '6.1':
            assert 'align 2097152' in out
        guest.st(d, 'revoke 4', timeout=180)
        guest.clean()

    def test_key(self, guest):
        """Windows with a protection key: TCG's processor has them."""
        said = guest.st(guest.dev('win'), 'key', timeout=120)
        assert 'behind key' in said if guest.vm.accel == 'tcg' else 'ok key' in said
        guest.clean()

    def test_unplug(self, guest):
        """The port goes away while everything is open and mapped; and comes again."""
        port = guest.ports[WIN]
        for _ in range(3):
            d = guest.dev('win')
            guest.st(d, 'unplug', timeout=60)
            wait(lambda: not port.attached and not port.up and port.idle(), 'DETACH of the unplugged port')
            guest.gone('win')
            guest.clean()
            port.add()
        # It goes while a program waits for the answer to DETACH: nobody spins, and nobody waits for that answer.
        guest.st(guest.dev('win'), 'detach', timeout=120)
        wait(lambda: not port.attached and not port.up and port.idle(), 'DETACH of the module')
        guest.gone('win')
        guest.clean()
        port.add()
        guest.st(guest.dev('win'), 'signals 200')
        # sysfs unbind with everything open is the same from inside
        job = guest.hold(guest.dev('win'), 10)
        guest.vm.sh('cd /sys/bus/pci/drivers/vhost_pci_ivshmem; for d in 0000:*; do echo $d > unbind; done', timeout=60)
        assert 'ok hold' in job.result()
        guest.vm.sh('rmmod vhost_pci; insmod /lib/modules/vhost_pci.ko', timeout=60)
        guest.clean()

    def test_reload(self, guest):
        """Busy while open, else it comes and goes; a device unplugged and plugged while the module is loaded."""
        d = guest.dev('pool')
        job = guest.hold(d, 10)
        assert guest.vm.status('rmmod vhost_pci')[0] != 0
        job.result()
        t0 = time.time()
        guest.vm.sh('for i in $(seq 20); do rmmod vhost_pci || exit 1; insmod /lib/modules/vhost_pci.ko || exit 2; done', timeout=120)
        v.note('20 rmmod/insmod in %.1f s' % (time.time() - t0))
        guest.st(guest.dev('pool'), 'signals 200')
        guest.clean()

    def test_others(self, guest):
        """Other ivshmem devices stay unbound: no magic; a header of another size; an id in the window range that nobody names."""
        alien = fakeport.FakePort(guest.lab.dir, name='alien', bus='rp3', magic=b'NOTMAGIC')
        stranger = fakeport.Server(guest.lab.dir + '/str', 0x9000, fakeport.memory(4 * MIB, 'stranger'), [fakeport.eventfd()])
        odd = fakeport.FakePort(guest.lab.dir, name='odd', bus='rp5', header_size=0x60)
        for p in alien, odd:
            guest.ports.append(p)
            p.vm = guest.vm
            p.add()
        hotplug.plug(guest.vm, 's', stranger.path, driver='ivshmem-doorbell', vectors=1, bus='rp4')
        cmd = 'grep -l 0x1110 /sys/bus/pci/devices/*/device'
        wait(lambda: len(guest.vm.sh(cmd).split()) == 5, 'five ivshmem devices')
        wait(lambda: 'header is not that of ABI' in guest.vm.sh('dmesg'), 'word about the odd header')
        guest.st(guest.dev('pool'), 'commands')
        bound = guest.vm.sh('ls -d /sys/bus/pci/drivers/vhost_pci_ivshmem/0000:*').split()
        assert len(bound) == 2, bound
        guest.clean()

    def test_reset(self, guest):
        """The guest is reset without a word while attached: its next life detaches first."""
        port = guest.ports[POOL]
        guest.hold(guest.dev('pool'))
        wait(lambda: port.up, 'link up')
        n = port.commands.count(2)
        guest.vm.reset()
        assert port.attached
        guest.load()
        guest.st(guest.dev('pool'), 'signals 100')
        # The program's own DETACH comes from a work item, maybe after the program's end.
        wait(lambda: port.commands.count(2) >= n + 2, 'DETACH of the new life and of its program')
        # an orderly reboot detaches on its way down
        guest.hold(guest.dev('pool'))
        wait(lambda: port.up, 'link up')
        n = port.commands.count(2)
        guest.vm.spawn('sleep 0.1; reboot -f', 20)
        wait(lambda: port.commands.count(2) == n + 1, 'DETACH on the way down', 30)


@pytest.mark.parametrize('qemu,kernel', MATRIX, ids=['-'.join(m) for m in MATRIX])
def test_vfio(new_lab, qemu, kernel):
    """A device that was given a window by VFIO goes on with that address when the window has gone (docs/threat-model.md)."""
    with new_lab() as lab:
        try:
            type1 = image.kernel(kernel).find('vfio_iommu_type1')
        except v.Unavailable as e:
            pytest.skip(str(e))
        g = Guest(lab, qemu, kernel, ports=[dict(queues=2, name='win', bus='rp1', wbus='rp2', window=64 * MIB)],
                  extra=['-device', 'intel-iommu,intremap=off', '-device', 'edu,addr=1c.0'], append='intel_iommu=on', boot_modules=[type1])
        try:
            dev = os.path.basename(g.vm.sh('dirname $(grep -l 0x11e8 /sys/bus/pci/devices/*/device)').strip())
            g.vm.sh('echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts; modprobe vfio_pci; '
                    'echo vfio-pci >/sys/bus/pci/devices/%s/driver_override; echo %s >/sys/bus/pci/drivers_probe' % (dev, dev))
            said = g.st(g.dev('win'), 'vfio ' + dev, timeout=120)
            g.clean()
        finally:
            g.vm.kill()
            g.close()
        assert 'takes windows' in said and 'keeps 2097152 bytes' in said and 'the next window was changed' in said


def test_dkms(tmp_path):
    """What `make stage` installs is all that DKMS needs, and its dkms.conf works."""
    release = image.kernel(image.native()).release
    head = '/usr/src/linux-headers-' + release
    if not shutil.which('dkms') or not os.path.isdir(head) or os.geteuid():
        pytest.skip('needs root, dkms and linux-headers-%s' % release)

    def run(*cmd):
        r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert r.returncode == 0, r.stdout
        return r.stdout

    run('make', '-C', guestmod.MODULE, 'stage', 'DESTDIR=%s' % tmp_path)
    where = ('--sourcetree', '%s/usr/src' % tmp_path, '--dkmstree', '%s/dkms' % tmp_path)
    name, version = os.listdir(tmp_path / 'usr/src')[0].rsplit('-', 1)
    os.mkdir(tmp_path / 'dkms')
    run('dkms', 'build', *where, '-m', name, '-v', version, '-k', release, '--kernelsourcedir', head)
    built = list((tmp_path / 'dkms').rglob('vhost_pci.ko*'))
    v.note('dkms built %s for %s' % (built[0].name, release))
    assert re.search(r'^vermagic: +%s ' % re.escape(release), run('modinfo', str(built[0])), re.M)
