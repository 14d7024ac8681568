# SPDX-License-Identifier: BSD-3-Clause
"""The device VM that serves a disk, or the daemon, is killed again and again under load: the driver VM sees pauses and no error."""

import os
import time

import image
import pytest
import served
import test_crash
import vhostpci_vm as v

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 64            # of the disk: a file system, and a file of LOAD bytes in it
LOAD = 24 << 20
HOLD = 30           # seconds that a daemon may take to come
# Seeds of diskload are fixed: what it writes, and where, is the same in each run.
LENGTHS = [('short', 3), ('twenty', 20)]


def requests(d):
    return int(d.sh('cat /run/stop.n'))


def wait_progress(d, job, since, what):
    """Until diskload has done some more requests since @since."""
    end = time.time() + v.limit(90)
    while requests(d) < since + 4:
        if job.status is not None:
            raise v.VMError('%s: the load ended: %s' % (what, job.out))
        if time.time() > end:
            raise v.VMError('%s: no progress beyond request %d' % (what, since))
        time.sleep(0.2)


class Load:
    """A driver VM with a file system on a disk that a device VM serves, and at work there."""

    def __init__(self, lab, kills):
        load = {'bin/diskload': (image.program(os.path.join(HERE, 'diskload.c')), 0o755)}
        try:
            self.k = k = served.Disk(lab.daemon, 'copy', 'ivshmem', mib=MIB, driver=dict(
                files=load, programs=[('/sbin/mkfs.ext4', '/sbin/mkfs.ext4'), ('/sbin/e2fsck', '/sbin/e2fsck')]))
        except v.Unavailable as e:
            pytest.skip(str(e))
        lab.vms += k.vms
        k.daemon.start()
        lab.boot(*k.vms)
        k.serve()
        k.attach()
        self.d = d = k.driver
        self.kills = kills
        d.sh('modprobe crc32c_generic 2>/dev/null; modprobe ext4; mkdir -p /mnt; mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt && '
             'dd if=/dev/zero of=/mnt/load bs=1M count=%d 2>/dev/null && sync' % (LOAD >> 20), 120)
        self.job = d.spawn('diskload /mnt/load %d %d /run/stop' % (LOAD, kills), 3600)
        self.files = d.spawn('n=0; until [ -e /run/stop ]; do mkdir /mnt/d; for i in 1 2 3 4 5; do echo $n >/mnt/d/$i; done; sync; '
                             'rm -r /mnt/d; n=$((n + 1)); done', 3600)
        d.until('[ -e /run/stop.n ]', 30)

    def killed(self, kill):
        """@kill is called so many times, each with more requests before it. What diskload says in the end."""
        d = self.d
        try:
            for n in range(self.kills):
                wait_progress(d, self.job, requests(d), 'before kill %d' % (n + 1))
                kill(n)
            wait_progress(d, self.job, requests(d), 'at the end')
            v.note('%d kills, %d requests' % (self.kills, requests(d)))
            d.sh('touch /run/stop')
            done = v.kv(self.job.result(v.limit(240)))
            self.files.result(v.limit(120))
            d.sh('umount /mnt', 120)
            d.sh('e2fsck -fn /dev/vda', 120)
        except v.VMError as e:
            raise v.VMError('%s\n%s' % (e, self.k.story()))
        log = d.sh('dmesg')
        assert 'I/O error' not in log and not d.complaints(), log[-3000:]
        assert self.k.daemon.alive()
        return done


@pytest.mark.parametrize('kills', [n for _, n in LENGTHS], ids=[i for i, _ in LENGTHS])
def test_device_vm_killed(lab, kills):
    """Direct I/O of 512 B to 1 MiB and a busy journal meanwhile. Every acknowledged byte is there, no I/O error, fsck clean."""
    x = Load(lab, kills)

    def kill(_):
        x.k.device.kill()
        lab.boot(x.k.device)
        x.k.serve()

    done = x.killed(kill)
    again = x.k.status()['sides']['device']['requests_given_again']
    assert done['writes'] > 4 * kills and again >= 1, (done, again)
    v.note('%d kills, %d requests (%d writes), %d of them given again: every byte there, fsck clean' % (kills, done['requests'], done['writes'], again))


def test_daemon_killed(lab):
    """The same, while the daemon is killed and stopped (docs/handover.md): neither VM's connection ends, and no request is given twice."""
    lab.daemon.args = ['--hold=%d' % HOLD]
    x = Load(lab, 12)

    def sides():
        return {n: {k: s.get(k) for k in ('connected', 'sessions', 'pid', 'connections', 'requests_given_again')}
                for n, s in x.k.status()['sides'].items()}

    def kill(n):
        test_crash.rest(x.k.daemon, 'served')
        (x.k.daemon.stop if n % 6 == 5 else x.k.daemon.kill)()
        x.k.daemon.start()

    before = sides()
    done = x.killed(kill)
    assert done['writes'] > 4 * x.kills and sides() == before, (done, before, sides())
    v.note('killed %d times, %d requests (%d writes): every byte there, fsck clean; %s' % (x.kills, done['requests'], done['writes'], before))
