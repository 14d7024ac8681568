# SPDX-License-Identifier: BSD-3-Clause
"""A SCSI disk that the kernel of a device VM serves: vhost-scsi with an LIO target there, the stock driver in the driver VM."""

import os

import image
import pytest
import served
import vhostpci_vm as v

HERE = os.path.dirname(os.path.abspath(__file__))
MIB, LOAD = 48, 16 << 20


def make(lab, *point):
    driver = dict(files={'bin/diskload': (image.program(os.path.join(HERE, 'diskload.c')), 0o755)},
                  programs=[('/sbin/mkfs.ext4', '/sbin/mkfs.ext4'), ('/sbin/e2fsck', '/sbin/e2fsck')])
    try:
        k = served.Scsi(lab.daemon, *point, mib=MIB, driver=driver)
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += k.vms
    k.daemon.start()
    k.up(lab.boot)
    k.attach()
    return k


def load(k, while_it_runs, requests=12):
    """Direct I/O of 512 B to 1 MiB, in the middle of which something happens. Every acknowledged byte is read back."""
    d = k.driver
    job = d.spawn('rm -f /run/stop*; diskload /dev/sda %d 7 /run/stop' % LOAD, 600)

    def more(since):
        d.until('[ $(cat /run/stop.n 2>/dev/null || echo 0) -ge %d ]' % (since + requests), 60, 'cat /run/stop.n; dmesg | tail')
        return int(d.sh('cat /run/stop.n'))
    at = more(0)
    while_it_runs()
    more(at)
    d.sh('touch /run/stop')
    return v.kv(job.result(v.limit(240)))


def check(k):
    log = k.driver.sh('dmesg')
    assert 'I/O error' not in log and not k.driver.complaints() and not k.device.complaints(), log[-3000:]
    assert k.daemon.alive()


POINTS = [('copy', 'ivshmem', 'system', 'system'), ('fast', 'ivshmem', 'system', 'system'), ('copy', 'shmem', '11', '11'),
          ('fast', 'shmem', '11', '11')]


@pytest.mark.parametrize('point', POINTS, ids=['-'.join(p) for p in POINTS])
def test_scsi(lab, point):
    """Patterns with direct I/O, a file system; the agent ends and another one comes: a pause, and no error."""
    k = make(lab, *point)

    def another_agent():
        k.device.sh('kill $(cat /run/agent.pid)')
        k.device.until('! kill -0 $(cat /run/agent.pid) 2>/dev/null', 10)
        k.start_agent()
    try:
        assert int(k.driver.sh('cat /sys/block/sda/size')) == MIB << 11
        done = load(k, another_agent)
        k.driver.sh('modprobe crc32c_generic 2>/dev/null; modprobe ext4; mkdir -p /mnt; mkfs.ext4 -q -F /dev/sda && '
                    'mount -t ext4 /dev/sda /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=4 2>/dev/null && sha256sum </mnt/f >/run/sum && '
                    'umount /mnt && e2fsck -fn /dev/sda && mount -t ext4 /dev/sda /mnt && sha256sum </mnt/f | cmp - /run/sum && umount /mnt', 240)
    except v.VMError as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    check(k)
    v.note('%d requests with direct I/O, ext4, fsck: every byte right' % done['requests'])


def test_device_vm_killed(lab):
    """Copy mode: SIGKILL of the device VM under load; it boots again and serves the same disk. A pause, and no error."""
    k = make(lab, 'copy', 'ivshmem')

    def another_vm():
        k.device.kill()
        lab.boot(k.device)
        k.serve()
    try:
        done = load(k, another_vm)
    except v.VMError as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    again = k.status()['sides']['device']['requests_given_again']
    check(k)
    assert again >= 1
    v.note('%d requests, %d of them given again: every byte there' % (done['requests'], again))


def test_no_such_target(lab):
    """A target that is not there is named; when it is made, the agent that waits serves it."""
    try:
        k = served.Scsi(lab.daemon, 'copy', 'ivshmem', mib=MIB)
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += k.vms
    k.daemon.start()
    lab.boot(k.device)
    k.device.sh(served.INSERT, 60)
    k.start_agent()
    k.device.until('grep -q "there is no vhost target %s" /run/agent.log' % k.wwpn, 10, 'cat /run/agent.log')
    k.start_backend()
    lab.boot(k.driver)
    k.attach()
    assert k.driver.sh('dd if=/dev/sda bs=4096 count=1 iflag=direct 2>/dev/null | tr -d "\\\\0" | wc -c').strip() == '0'
