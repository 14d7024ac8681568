# SPDX-License-Identifier: BSD-3-Clause
"""Grant mode between real VMs of two trust groups: the driver VM's kernel bounces through its swiotlb pool, its helper says where that is, and the
device VM reaches that and the rings, and nothing else."""

import json
import os
import signal
import time

import image
import portlink
import pytest
import vhostpci_vm as v

MIB = 1 << 20
APERTURE = 512      # MiB of the BAR in which windows appear: all of it is read
SLOTS = 8192        # of 2 KiB: a pool of 16 MiB
CANARIES = 96       # MiB
ROUNDS = 1000
UNBIND = 'cd /sys/bus/virtio/drivers/virtio_net && d=$(ls -d virtio*) && echo $d >unbind && echo $d >bind'

UNBIND_PORT = 'cd /sys/bus/virtio/drivers/vhost_pci_shmem && d=$(ls -d virtio*) && echo $d >unbind && echo $d >bind'

# The kernel of both VMs, QEMU of the driver VM. The device VM runs on QEMU 11, for shmem.
POINTS = [('6.1', 'system'), ('6.12', '11'), ('backports', '11')]


def bar(vm):
    """The resource file of a shmem port's BAR for windows: its largest one."""
    return vm.sh("d=$(readlink -f /sys/class/vhost-pci/vhost-pci0/device); while [ ! -e $d/resource ]; do d=${d%/*}; done; "
                 'ls -S $d/resource[0-9] | head -n 1').strip()


class Grant(portlink.PortLink):
    """A PortLink of mode grant that can be put right again, whatever the test before left behind."""

    def __init__(self, lab, kernel, qemu):
        self.lab = lab
        tool = {'bin/canary': (image.program(os.path.join(v.TOP, 'tests/vm/canary.c')), 0o755)}
        # So that root of the device VM reaches all of the BAR, not the windows only. One that can change its kernel needs no such word.
        device = dict(files=tool, append='iomem=relaxed')
        try:
            super().__init__(lab.daemon, 'grant', 'shmem', qemu, '11', kernel=kernel,
                             driver=dict(files=tool, append='swiotlb=%d,force' % SLOTS), device=device,
                             device_keys=dict(ApertureSize='%dM' % APERTURE))
        except v.Unavailable as e:
            pytest.skip(str(e))
        lab.vms += self.vms

    def ensure(self, helper=True):
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
        if helper:
            if self.driver.status('pidof vhost-pci-grant')[0]:
                self.start_grant()
            self.wait()
        return self

    def grant(self):
        return self.daemon.ctl('grant', self.name)

    def pool(self):
        """(address, bytes) as the driver VM's kernel has it."""
        p = json.loads(self.driver.sh('vhost-pci-grant --show --json'))
        return int(p['address'], 16), p['bytes']

    def settled(self, state):
        end = time.time() + v.limit(20)
        while self.grant()['state'] != state:
            assert time.time() < end, '%s is not what it comes to: %s\n%s' % (state, self.grant(), self.story())
            time.sleep(0.1)

    def traffic(self):
        """Ping, TCP and a file, each way."""
        assert v.ping(self.driver, self.addr_device, 10, 0.1) == 0
        assert v.ping(self.device, self.addr_driver, 10, 0.1) == 0
        f, r = self.tcp('mib=1')
        assert f['bytes'] == r['bytes'] == MIB
        assert v.transfer(self.driver, self.device, self.addr_device, 2) and v.transfer(self.device, self.driver, self.addr_driver, 2)
        v.note('TCP %.0f and %.0f Mbit/s; files with SHA-256 both ways' % (f['mbps'], r['mbps']))

    def come_up(self):
        end = time.time() + v.limit(20)
        while not self.show()['sides']['device']['up']:
            assert time.time() < end, self.story()
            time.sleep(0.01)

    def grant_and_drop(self, times):
        """By hand: the helper in the driver VM has ended. The link comes up each time. Granted in the end."""
        pool, start = '0x%x+0x%x' % self.pool(), time.time()
        self.come_up()
        for _ in range(times):
            self.daemon.ctl('grant', self.name, '--drop')
            self.settled('none')
            self.daemon.ctl('grant', self.name, pool)
            self.come_up()
        v.note('%d grants and revocations in %.0f s' % (times, time.time() - start))

    def back(self, how, by='its channel'):
        self.wait()
        v.note('%s: the link is back' % how)
        f, r = self.tcp('mib=1')
        assert f['bytes'] and r['bytes']
        self.exact(by)
        for m in self.vms:
            assert not m.complaints()

    def exact(self, by='its channel'):
        """The windows are the pool and the pages of the rings, to the page."""
        at, size = self.pool()
        g, port = self.grant(), self.show()['sides']['device']
        assert g['state'] == 'granted' and g['by'] == by
        assert [(r['address'], r['size']) for r in g['ranges'] if r['what'] == 'pool'] == [(at, size)]
        rings = [r['size'] for r in g['ranges'] if r['what'] == 'ring']
        assert rings and sum(rings) <= 2 * 8192, 'each ring has 8 KiB'
        assert sum(w['size'] for w in port['windows']) == g['bytes'] == size + sum(rings)
        return g


@pytest.fixture(scope='class', params=POINTS, ids=['%s-%s' % p for p in POINTS])
def link(request, new_lab):
    with new_lab() as lab:
        yield Grant(lab, *request.param)


class Program:
    """A canary program in @vm: what it says when it is asked. @how: a command that runs it."""

    def __init__(self, vm, args, how=''):
        self.vm, self.args, name = vm, args, args.split()[0]
        self.out = '/run/canary-' + name
        self.pid = vm.sh('setsid %s canary %s >%s 2>&1 & echo $!' % (how, args, self.out)).strip()
        self.lines = 0
        self.first = self.next()

    def next(self):
        self.lines += 1
        self.vm.until('[ $(grep -c = %s) -ge %d ]' % (self.out, self.lines), 60, 'cat ' + self.out)
        return v.kv(self.vm.sh('sed -n %dp %s' % (self.lines, self.out)))

    def ask(self):
        self.vm.sh('kill -USR1 ' + self.pid)
        return self.next()

    def end(self):
        self.vm.sh('kill -9 ' + self.pid)


class TestGrant:
    def test_pool(self, link):
        """Without the helper the link says how to get it; with it the link comes up, and carries what it should."""
        link.ensure(helper=False)
        g = link.grant()
        assert g['state'] == 'none' and 'vhost-pci-grant' in g['message'] and g['channel']['connected'], g
        assert v.silent(link.driver, link.addr_device)
        link.start_grant()
        v.note('first answer after %.1f s' % link.wait())
        g = link.exact()
        v.note('%d windows, %.2f MiB' % (len(g['ranges']), g['bytes'] / MIB))
        assert 'ACCESS_PLATFORM' not in link.agent_log().split('link up')[-1], 'the data path is not told of it'
        link.traffic()

    def test_canaries(self, link):
        """The device VM's root reads and writes all that it can reach: before, during and after the grant. No canary is seen, none harmed."""
        link.ensure()
        fill = Program(link.driver, 'fill %d' % CANARIES)
        scan = Program(link.device, 'scan %s %d' % (bar(link.device), APERTURE))
        assert v.tcp(link.driver, link.device, link.addr_device, 'mib=1')['bytes']
        during = scan.ask()
        assert during['hits'] == 0 and during['now'] > 0, 'the scanner sees what is granted, and no canary'
        link.driver.sh('kill $(cat %s)' % portlink.GRANT_PID)
        link.daemon.ctl('grant', link.name, '--drop')
        link.settled('none')
        after = scan.ask()
        assert after['now'] == 0 and after['hits'] == 0, 'there is nothing any more: %s' % after
        # By hand, in the driver VM's name.
        link.daemon.ctl('grant', link.name, '0x%x+0x%x' % link.pool())
        link.wait()
        assert link.grant()['by'] == 'the administrator'
        again = scan.ask()
        assert again['hits'] == 0 and again['now'] > 0
        v.note('of %d pages of the BAR %d, then %d, then %d had something in them' % (APERTURE * MIB / 4096, during['now'], after['now'], again['now']))
        scan.end()
        link.device.sh('canary scribble %s %d' % (bar(link.device), APERTURE))
        seen = fill.ask()
        assert seen['pages'] == CANARIES * MIB / 4096 and seen['bad'] == 0, seen
        fill.end()
        assert link.driver.sh('echo alive') == 'alive\n'
        # Its rings are not what they were: the next test starts it anew.
        link.driver.kill()

    def test_held_window(self, link):
        """Who holds windows, and answers nothing that the host asks, has nothing any more when the grant has ended."""
        link.ensure()
        link.end_agent('KILL')
        hold = Program(link.device, 'hold /dev/vhost-pci0')
        assert hold.first['windows'] >= 3 and hold.first['data'] >= 2, 'the pool, and a ring or two: %s' % hold.first
        link.driver.sh('kill $(cat %s)' % portlink.GRANT_PID)
        link.daemon.ctl('grant', link.name, '--drop')
        link.settled('none')
        assert not [w for w in link.show()['sides']['device']['windows']]
        after = hold.ask()
        v.note('windows held: %s, then %s' % (hold.first, after))
        assert after['windows'] == hold.first['windows'] and after['data'] == 0
        hold.end()
        link.ensure()
        link.back('agent started again')

    def test_held_when_the_daemon_ends(self, link):
        """SIGKILL of the daemon: the device VM's VMM unmaps what somebody in there holds, and is not harmed by it."""
        link.ensure()
        link.end_agent('KILL')
        hold = Program(link.device, 'hold /dev/vhost-pci0')
        assert hold.first['windows'] >= 3 and hold.first['data'] >= 2, 'the pool, and a ring or two: %s' % hold.first
        link.daemon.kill()
        end = time.time() + v.limit(20)
        said = lambda: open(link.daemon.log).read()
        while 'has let go of' not in said() and 'has not said that it let' not in said():
            assert time.time() < end, 'the guard has not ended'
            time.sleep(0.05)
        after = hold.ask()
        v.note('windows held: %s, then %s' % (hold.first, after))
        assert after['windows'] == hold.first['windows'] and after['data'] == 0
        assert 'has let go of %d windows' % hold.first['windows'] in said()
        hold.end()
        assert link.device.sh('echo alive') == 'alive\n' and link.driver.sh('echo alive') == 'alive\n'
        # A shmem device has to be plugged anew.
        link.device.kill()
        link.ensure()
        link.back('SIGKILL of the daemon')

    def test_driver_again(self, link):
        """Each start of the driver is a grant of its own."""
        link.ensure()
        for how in ('unbind', 'unbind', 'reset', 'reboot', 'kill'):
            if how == 'unbind':
                link.driver.sh(UNBIND)
            elif how == 'kill':
                link.driver.kill()
            else:
                getattr(link.driver, how)()
            if how != 'unbind':
                link.settled('none')
            link.ensure()
            link.back('%s of the driver VM' % how)
        assert link.device.boots == 1

    def test_device_again(self, link):
        """The grant outlives the device side: windows are shown to the next one."""
        link.ensure()
        boots = link.driver.boots
        for how in ('agent', 'unbind', 'reset', 'reboot', 'kill'):
            if how == 'agent':
                link.end_agent('KILL')
            elif how == 'unbind':
                link.end_agent()
                link.device.sh(UNBIND_PORT)
            elif how == 'kill':
                link.device.kill()
            else:
                getattr(link.device, how)()
            assert link.grant()['state'] == 'granted'
            link.ensure()
            link.back('%s of the device VM' % how)
        assert link.driver.boots == boots

    def test_helpers_killed(self, link):
        """SIGKILL of the helper in the driver VM, and of the guard: the grant goes on, and traffic with it."""
        link.ensure()
        link.driver.sh('kill -9 $(cat %s)' % portlink.GRANT_PID)
        os.kill(link.daemon.ctl('status')['guard_pid'], signal.SIGKILL)
        assert link.grant()['state'] == 'granted'
        link.traffic()
        link.driver.sh(UNBIND)
        link.ensure()
        link.back('SIGKILL of the helper and of the guard')
        # The next daemon has a guard again.
        link.device.kill()
        link.daemon.stop()

    def test_daemon_killed(self, link):
        link.ensure()
        link.daemon.kill()
        # A shmem device has to be plugged anew.
        link.device.kill()
        link.ensure()
        link.back('SIGKILL of the daemon')

    def test_memory_pressure(self, link):
        """Little memory is left in the driver VM, and its kernel moves what it can: the pool and the rings stay where they are."""
        link.ensure()
        before = link.exact()['ranges']
        room = "$(($(sed -n 's/MemAvailable: *\\([0-9]*\\).*/\\1/p' /proc/meminfo) / 1024 - 40))"
        link.driver.sh('mkdir -p /run/much; mount -t tmpfs -o size=100%% none /run/much; dd if=/dev/zero of=/run/much/x bs=1M count=%s 2>/dev/null; '
                       'echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory' % room, 60)
        v.note(link.driver.sh('grep MemAvailable /proc/meminfo').strip())
        f, r = link.tcp('mib=8')
        assert f['bytes'] == r['bytes'] == 8 * MIB
        assert link.exact()['ranges'] == before
        link.driver.sh('umount /run/much')
        link.back('memory is there again')

    def test_lies(self, link):
        """A helper that lies grants memory of its own VM, no other, and its queues do not start."""
        link.ensure()
        link.driver.sh('kill $(cat %s)' % portlink.GRANT_PID)
        port = '/dev/' + link.driver.sh('basename $(dirname $(grep -lx org.vhost-pci.grant.%s /sys/class/virtio-ports/*/name))' % link.name).strip()
        # One program at a time may have the port.
        link.driver.sh('mkfifo /run/tell; (exec 3<>%s 4<>/run/tell; cat <&3 >/run/said & cat <&4 >&3) >/dev/null 2>&1 &' % port)
        tell = lambda line: link.driver.sh('echo %s >/run/tell' % line)
        link.daemon.ctl('grant', link.name, '--drop')
        link.settled('none')
        at, size = link.pool()
        for line in ('grant swiotlb 0x%x 0x%x' % (at + 1, size), 'grant swiotlb 0x0 0x%x' % (1 << 40), 'grant swiotlb 0x%x 0x1000' % (1 << 45), 'grant', 'x' * 250):
            tell(line)
        link.driver.until('[ $(grep -c ^error /run/said) -ge 5 ]', 30, 'cat /run/said')
        assert link.grant()['state'] == 'none'
        # Something else of its own.
        tell('grant swiotlb 0x%x 0x200000' % (16 * MIB))
        link.settled('granted')
        end = time.time() + v.limit(20)
        while 'outside of what is granted' not in link.grant()['message']:
            assert time.time() < end, link.grant()
            time.sleep(0.1)
        assert 'swiotlb=force' in link.grant()['message'] and v.silent(link.driver, link.addr_device)
        link.driver.sh('kill $(pidof cat); rm /run/tell')
        # What broke stays broken until the driver sets it up again.
        link.driver.sh(UNBIND)
        link.settled('none')
        link.ensure()
        link.back('the helper says the truth')

    def test_many_times(self, link):
        """Grants and revocations, while the device VM reads all that it can reach."""
        link.ensure()
        fill = Program(link.driver, 'fill %d' % CANARIES)
        scan = Program(link.device, 'scan %s %d' % (bar(link.device), APERTURE))
        link.driver.sh('kill $(cat %s)' % portlink.GRANT_PID)
        before = link.show()['sides']['device']
        link.grant_and_drop(ROUNDS)
        link.wait()
        now = link.show()['sides']['device']
        # "maps" are counted when they are asked for, as their times are.
        v.note('; '.join('%d %s, %.0f us each' % (now[k] - before[k], k, (now[us] - before[us]) / max(1, now[k] - before[k]))
                         for k, us in (('maps', 'map_us'), ('unmaps', 'unmap_us'))))
        assert now['unmaps'] - before['unmaps'] >= 3 * ROUNDS
        assert scan.ask()['hits'] == 0 and fill.ask()['bad'] == 0
        scan.end()
        fill.end()
        link.back('granted for the last time', 'the administrator')

    def test_kept_many_times(self, link):
        """As before, and who has the port keeps all windows mapped that it ever got: it never reads what is not granted any more."""
        link.ensure()
        link.end_agent('KILL')
        keep = Program(link.device, 'keep /dev/vhost-pci0')
        link.driver.sh('kill $(cat %s)' % portlink.GRANT_PID)
        link.grant_and_drop(ROUNDS)
        # What is granted now has not been taken back.
        seen = keep.ask()
        v.note('windows kept, and read afterwards: %s' % seen)
        assert seen['data'] == 0 and seen['sigbus'] + seen['zero'] == seen['windows'] >= 3 * seen['grants'] and seen['seen'] >= seen['grants']
        # A few may come and go while the device VM has no CPU.
        assert 0.99 * ROUNDS <= seen['grants'] <= ROUNDS
        keep.end()
        link.ensure()
        link.back('agent started again', 'the administrator')
