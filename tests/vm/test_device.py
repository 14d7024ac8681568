# SPDX-License-Identifier: BSD-3-Clause
"""Links of other types than net between real VMs: an unmodified back-end in the device VM, the stock driver in the driver VM."""

import os
import time

import hotplug
import image
import pytest
import served
import vhostpci_vm as v

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 48
PROGRAMS = dict(programs=[('/sbin/mkfs.ext4', '/sbin/mkfs.ext4'), ('/sbin/e2fsck', '/sbin/e2fsck')])


def made(lab, kind, *point, **kw):
    """A link of that kind (served.py) and its VMs, none of which has booted; the daemon has started."""
    try:
        k = kind(lab.daemon, *point, **kw)
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += k.vms
    k.daemon.start()
    return k


def disk(lab, *point, driver=None, **kw):
    return made(lab, served.Disk, *point, mib=MIB, driver=dict(PROGRAMS, **(driver or {})), **kw)


def serve(lab, k):
    lab.boot(k.device)
    k.serve()


def write_and_verify(d):
    """Patterns with direct I/O of several sizes, and a file system."""
    d.sh('modprobe virtio_blk; modprobe crc32c_generic 2>/dev/null; modprobe ext4; mkdir -p /mnt')
    d.until('[ -b /dev/vda ]', 60, 'dmesg | tail')
    d.sh('dd if=/dev/urandom of=/tmp/pattern bs=1M count=4 2>/dev/null')
    want = d.sh('sha256sum </tmp/pattern').split()[0]
    for n, bs in enumerate((512, 4096, 65536, 1 << 20)):
        count = (4 << 20) // bs if bs > 512 else 1024
        d.sh('dd if=/tmp/pattern of=/dev/vda bs=%d count=%d seek=%d oflag=direct 2>/dev/null' % (bs, count, n * (4 << 20) // bs), 120)
    for n, bs in enumerate((512, 4096, 65536, 1 << 20)):
        count = (4 << 20) // bs if bs > 512 else 1024
        got = d.sh('dd if=/dev/vda bs=%d count=%d skip=%d iflag=direct 2>/dev/null | sha256sum' % (bs, count, n * (4 << 20) // bs), 120)
        ref = want if bs > 512 else d.sh('head -c 524288 /tmp/pattern | sha256sum').split()[0]
        assert got.split()[0] == ref, 'blocks of %d bytes' % bs
    d.sh('blkdiscard -o 1048576 -l 4194304 /dev/vda && printf "o\\nn\\np\\n1\\n2048\\n+8M\\nn\\np\\n2\\n20480\\n\\nw\\n" | fdisk -u /dev/vda >/dev/null', 60)
    d.until('[ -b /dev/vda2 ]', 20, 'fdisk -l /dev/vda')
    d.sh('mkfs.ext4 -q -F /dev/vda2 && mount -t ext4 /dev/vda2 /mnt && cp /tmp/pattern /mnt/f && sync && umount /mnt', 120)
    d.sh('e2fsck -fn /dev/vda2', 60)
    d.sh('mount -t ext4 /dev/vda2 /mnt')
    assert d.sh('sha256sum </mnt/f').split()[0] == want
    d.sh('umount /mnt')


def check(k):
    out = k.driver.sh('dmesg')
    assert 'I/O error' not in out and 'Call Trace' not in out, out[-3000:]
    assert k.daemon.alive()


POINTS = [('copy', 'ivshmem', 'system', 'system'), ('fast', 'ivshmem', 'system', 'system'), ('copy', 'shmem', '11', '11'),
          ('fast', 'shmem', '11', '11')]


@pytest.mark.parametrize('point', POINTS, ids=['-'.join(p) for p in POINTS])
def test_disk(lab, point):
    k = disk(lab, *point, own=False, written=False)
    serve(lab, k)
    k.wait_known()
    lab.boot(k.driver)
    v.note('booted; the profile was learned: %s' % k.daemon.ctl('profile', served.LINK)['features'])
    try:
        write_and_verify(k.driver)
    except v.VMError as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    check(k)
    v.note('512 B to 1 MiB direct, ext4, fsck: every byte right; %s' % k.status()['status'])


@pytest.mark.parametrize('qemu', ['system', '11'])
def test_back_end_killed_while_writing(lab, qemu):
    """Copy mode: the driver VM, which booted first, sees pauses and no error; what was acknowledged is there."""
    k = disk(lab, 'copy', 'ivshmem', driver_qemu=qemu, own=False)
    lab.boot(k.driver)
    d = k.driver
    waits = d.spawn(served.PATIENT + 'modprobe virtio_blk; dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null', 600)
    v.note('the driver VM has booted and reads its disk, which nobody serves')
    lab.boot(k.device)
    assert waits.status is None
    k.serve()
    waits.result()
    d.until('[ -b /dev/vda ]', 60, 'dmesg | tail')
    d.sh('dd if=/dev/urandom of=/tmp/pattern bs=1M count=32 2>/dev/null')
    job = d.spawn('for i in 1 2 3; do dd if=/tmp/pattern of=/dev/vda bs=16384 oflag=direct || exit 1; done', 600)
    kills = 0
    while job.status is None and kills < 10:
        d.sh('sleep 1')
        k.kill_backend()
        kills += 1
        k.start_backend()
    job.result(600)
    again = k.status()['sides']['device']['requests_given_again']
    want = d.sh('sha256sum </tmp/pattern').split()[0]
    assert d.sh('dd if=/dev/vda bs=1M count=32 iflag=direct 2>/dev/null | sha256sum', 120).split()[0] == want
    check(k)
    v.note('%d kills, %d requests given again, no error, every byte there' % (kills, again))


@pytest.mark.parametrize('qemu', ['system', '11'])
def test_device_vm_killed_while_writing(lab, qemu):
    """Copy mode: SIGKILL of the whole device VM, which boots again and serves the same disk. A pause, and no error."""
    k = disk(lab, 'copy', 'ivshmem', driver_qemu=qemu)
    lab.boot(k.driver)
    serve(lab, k)
    d = k.driver
    k.attach()
    d.sh('dd if=/dev/urandom of=/tmp/pattern bs=1M count=16 2>/dev/null')
    job = d.spawn('for i in 1 2 3 4 5 6 7 8; do dd if=/tmp/pattern of=/dev/vda bs=16384 oflag=direct || exit 1; done', 900)
    kills = 0
    while job.status is None and kills < 4:
        time.sleep(2)
        k.device.kill()
        kills += 1
        serve(lab, k)
    job.result(900)
    again = k.status()['sides']['device']['requests_given_again']
    want = d.sh('sha256sum </tmp/pattern').split()[0]
    assert d.sh('dd if=/dev/vda bs=1M count=16 iflag=direct 2>/dev/null | sha256sum', 120).split()[0] == want
    check(k)
    v.note('%d kills of the device VM, %d requests given again, no error, every byte there' % (kills, again))


@pytest.mark.parametrize('mode,attachment,qemu', [('copy', 'ivshmem', 'system'), ('fast', 'ivshmem', 'system'), ('copy', 'ivshmem', '11'),
                                                  ('fast', 'ivshmem', '11')])
def test_unplugged_while_writing(lab, mode, attachment, qemu):
    """The disk is taken out of the running driver VM with requests under way: they end, with success or an error, and nothing hangs. It
    is plugged in again: what was acknowledged is there."""
    k = disk(lab, mode, attachment, driver_qemu=qemu, own=False, driver=dict(
        extra=['-device', 'pci-bridge,id=rp,chassis_nr=90'], files={'bin/diskend': (image.program(os.path.join(HERE, 'diskend.c')), 0o755)}))
    k.driver.nets.pop()
    serve(lab, k)
    d, sock = k.driver, k.daemon.path(served.LINK + '-driver.sock')
    lab.boot(d)
    more = {'vectors': 0} if d.accel == 'tcg' and d.qemu.version < (8, 0) else {}
    plug = lambda: hotplug.plug(d, 'gone', sock, driver=k.model, bus='rp', **{'num-queues': 1, 'config-wce': False, **more})     # noqa: E731
    d.sh(served.PATIENT + 'modprobe virtio_blk')
    plug()
    d.until('[ -b /dev/vda ]', 60, 'dmesg | tail')
    # Three at once, so that there are always requests under way.
    jobs = [d.spawn('diskend write /dev/vda %d 64 /run/acked.%d' % (w * 512, w), 600) for w in range(3)]
    for w in range(3):
        d.until('[ -s /run/acked.%d ]' % w, 60)
    v.note('unplugged in %.1f s with requests under way' % hotplug.unplug(d, 'gone', 60))
    for j in jobs:
        assert 'ended after' in j.result(120)
    plug()
    d.until('[ -b /dev/vda ]', 60, 'dmesg | tail')
    for w in range(3):
        assert 'are there' in d.sh('diskend check /dev/vda %d 64 /run/acked.%d' % (w * 512, w), 120)
    log = d.sh('dmesg')
    assert not d.complaints() and k.daemon.alive(), log[-3000:]
    v.note('plugged in again: every acknowledged byte is there; %s' % k.status()['status'])


# Files of each of ten directories.
FILES = [('few', 20), ('thousands', 300)]


@pytest.mark.parametrize('point', POINTS, ids=['-'.join(p) for p in POINTS])
@pytest.mark.parametrize('each', [n for _, n in FILES], ids=[i for i, _ in FILES])
def test_files(lab, each, point):
    # In fast mode it serves requests in any order. In copy mode the daemon sees which are open, whatever the order.
    k = made(lab, served.Files, *point, written=False, threads=4 if point[0] == 'fast' else 0, driver=dict(files={'bin/fsops': (image.program(os.path.join(HERE, 'fsops.c')), 0o755)}))
    serve(lab, k)
    d = k.driver
    lab.boot(d)
    d.sh(served.PATIENT + 'modprobe virtiofs; mkdir -p /mnt')
    total = 'find . -type f | sort | xargs sha256sum | sha256sum'
    try:
        d.sh('mount -t virtiofs home /mnt', 60)
        # A tree in, equal by hash on both sides, and out again.
        d.sh('mkdir /tmp/t && fsops fill /tmp/t %d' % each, 120)
        assert int(d.sh('find /tmp/t -type f | wc -l')) == 10 * each
        want = d.sh('cd /tmp/t && ' + total, 120)
        d.sh('cp -r /tmp/t /mnt/t && sync', 600)
        assert k.device.sh('cd /srv/t && ' + total, 120) == want
        d.sh('umount /mnt && mount -t virtiofs home /mnt && cp -r /mnt/t /tmp/back', 600)
        assert d.sh('cd /tmp/back && ' + total, 120) == want
        d.sh('head -c 3000000 /dev/urandom >/tmp/big && dd if=/tmp/big of=/mnt/big bs=1M 2>/dev/null && sync && cmp /tmp/big /mnt/big', 120)
        assert d.sh('mkdir /mnt/ops && fsops ops /mnt/ops', 120).strip() == 'right'
        v.note('%d files in and out, mappings, locks, names, through %s' % (10 * each, point[0]))
        # Back-end and agent end in an orderly way: the next ones go on with the state, and what is open and being written stays open.
        writer = d.spawn('exec 9<>/mnt/w; n=0; until [ -e /run/stop ]; do echo $n >&9 || exit 1; n=$((n + 1)); done; cat <&9; wc -l </mnt/w; echo $n', 240)
        d.until('[ -s /mnt/w ]', 20)
        k.end_agent()
        k.device.until('! kill -0 $(cat /run/backend.pid) 2>/dev/null', 10)
        k.serve()
        d.sh('sleep 1; touch /run/stop')
        wrote = writer.result(120).split()
        assert wrote[-1] == wrote[-2] and k.status()['sides']['device']['requests_failed'] == 0
        v.note('the agent and the back-end were ended and started again under %s writes: what was open stays open' % wrote[-1])
        # The back-end is killed and comes back: what was open, and what was under way, ends with an error. A new mount has it all.
        jobs = [d.spawn('fsops hold /mnt/big >/run/hold.%d 2>&1; cat /run/hold.%d' % (n, n), 240) for n in range(3)]
        for n in range(3):
            d.until('grep -q open /run/hold.%d' % n, 20)
        k.device.sh('kill -STOP $(cat /run/backend.pid)')
        # Neither between two reads nor on a CPU: each has a request under way.
        d.until('(for p in $(pidof fsops); do case $(cat /proc/$p/wchan) in 0|*sleep*) exit 1;; esac; done)', 30, 'cat /proc/[0-9]*/wchan')
        k.kill_backend()
        k.device.until('! kill -0 $(cat /run/backend.pid) 2>/dev/null', 10)
        k.start_backend()
        for j in jobs:
            assert 'ended: Input/output error' in j.result(240)
        assert k.status()['sides']['device']['requests_failed'] == 3
        d.sh('umount -l /mnt; mount -t virtiofs home /mnt', 120)
        assert d.sh('cmp /tmp/big /mnt/big && cd /mnt/t && ' + total, 300) == want
    except v.VMError as e:
        raise v.VMError('%s\n%s\n%s' % (e, d.sh('dmesg | tail -n 20', check=False), k.story()))
    assert k.daemon.alive() and not d.complaints(), d.sh('dmesg')[-3000:]
    v.note('killed with requests under way, and started again: they failed; all is there')
