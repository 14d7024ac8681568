# SPDX-License-Identifier: BSD-3-Clause
"""Links of other types than net between real VMs: an unmodified back-end in the device VM, the stock driver in the driver VM."""

import time

import pytest
import served
import vhostpci_vm as v

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


def disk(lab, *point, **kw):
    return made(lab, served.Disk, *point, mib=MIB, driver=PROGRAMS, **kw)


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
    d.sh('mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt && cp /tmp/pattern /mnt/f && sync && umount /mnt', 120)
    d.sh('e2fsck -fn /dev/vda', 60)
    d.sh('mount -t ext4 /dev/vda /mnt')
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
    v.note('the driver VM has booted, nobody serves its disk')
    serve(lab, k)
    d = k.driver
    k.attach()
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


@pytest.mark.parametrize('mode', ['copy', 'fast'])
def test_files(lab, mode):
    k = made(lab, served.Files, mode, 'ivshmem', written=False)
    serve(lab, k)
    d = k.driver
    lab.boot(d)
    d.sh('modprobe virtiofs; mkdir -p /mnt')
    try:
        d.sh('mount -t virtiofs home /mnt', 60)
        # A tree in, equal by hash on both sides, and out again; rename, truncate, links.
        d.sh('mkdir /tmp/t; cd /tmp/t; for i in $(seq 1 200); do mkdir -p d$((i % 10)); head -c $((i * 777)) /dev/urandom >d$((i % 10))/f$i; done')
        total = 'find . -type f | sort | xargs sha256sum | sha256sum'
        want = d.sh('cd /tmp/t && ' + total)
        d.sh('cp -r /tmp/t /mnt/t && sync', 240)
        assert k.device.sh('cd /srv/t && ' + total) == want
        d.sh('rm -rf /tmp/back && cp -r /mnt/t /tmp/back', 240)
        assert d.sh('cd /tmp/back && ' + total) == want
        d.sh('cd /mnt/t && mv d1 e1 && ln -s e1 l && head -c 1000 e1/f11 >x && mv x e1/f11 && [ $(wc -c <l/f11) = 1000 ]')
        d.sh('head -c 3000000 /dev/urandom >/tmp/big && dd if=/tmp/big of=/mnt/big bs=1M 2>/dev/null && sync && cmp /tmp/big /mnt/big', 120)
    except v.VMError as e:
        raise v.VMError('%s\n%s\n%s' % (e, d.sh('dmesg | tail -n 20', check=False), k.story()))
    v.note('200 files in and out, every byte right, through %s' % mode)
    # The back-end is killed: its open files are lost. An error, or a wait for the next one, but no hang.
    k.kill_backend()
    job = d.spawn('cat /mnt/t/e1/f11 >/dev/null 2>&1; echo done', 240)
    time.sleep(2)
    k.start_backend()
    assert 'done' in job.result(240)
    d.sh('umount -l /mnt; mount -t virtiofs home /mnt; ls /mnt/t >/dev/null', 120, check=False)
    assert k.daemon.alive() and 'Call Trace' not in d.sh('dmesg')
    v.note('killed and started again: %s' % k.status()['status'])
