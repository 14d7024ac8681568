# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM that boots from the disk which a device VM serves."""

import os
import shutil
import subprocess
import time

import bootdisk
import image
import pytest
import served
import vhostpci_vm as v

HERE = os.path.dirname(os.path.abspath(__file__))
MIB, FREE, LOAD = 64, 24, 16 << 20

# mode, attachment, QEMU of the driver VM, who loads the kernel: the VMM, or from the disk SeaBIOS and GRUB, or OVMF and GRUB
POINTS = [('fast', 'ivshmem', 'system', 'vmm'), ('copy', 'ivshmem', 'system', 'firmware'), ('copy', 'ivshmem', '11', 'firmware'),
          ('fast', 'ivshmem', '11', 'firmware'), ('copy', 'ivshmem', 'system', 'ovmf')]


@pytest.mark.parametrize('point', POINTS, ids=['-'.join(p) for p in POINTS])
def test_boot_from_disk(lab, point):
    """Boot, root file system, direct I/O of 512 B to 1 MiB on a second partition, discard, mkfs, flush; the host finds all of it."""
    mode, attachment, qemu, loader = point
    try:
        # GRUB as a UEFI program finds no room for a kernel in 256 MiB.
        k = served.Disk(lab.daemon, mode, attachment, driver_qemu=qemu, written=False, driver={'mem': 512} if loader == 'ovmf' else None,
                        mib=1 + MIB + FREE + (bootdisk.ESP if loader == 'ovmf' else 0))
        d = k.driver
        small = bootdisk.make(k.image, d.kernel, d.cmdline(), MIB, FREE, {
            'bin/diskload': image.program(os.path.join(HERE, 'diskload.c'))}, uefi=loader == 'ovmf')
        if loader == 'ovmf':
            code, variables = bootdisk.ovmf()
            shutil.copy(variables, k.daemon.path('vars.fd'))
            d.extra += ['-drive', 'if=pflash,format=raw,unit=0,readonly=on,file=' + code,
                        '-drive', 'if=pflash,format=raw,unit=1,file=' + k.daemon.path('vars.fd')]
            # It drives a device that has both as a legacy one, and libvhost-user, hence qemu-storage-daemon, serves none.
            d.nets[-1].props += ',disable-legacy=on'
    except v.Unavailable as e:
        pytest.skip(str(e))
    lab.vms += k.vms
    if loader != 'vmm':
        d.nets[-1].props += ',bootindex=0'
        d.kernel_args = False
    else:
        d.initrd = d.initrd + '.small'
        with open(d.initrd, 'wb') as f:
            f.write(small)
    k.daemon.start()
    try:
        lab.boot(k.device)
        k.serve()
        k.wait_known()
        lab.boot(d)
        v.note('the driver VM has booted in %.0f s' % (time.time() - d.started))
        assert d.sh("awk '$2 == \"/\" {print $1, $3}' /proc/mounts").strip() == bootdisk.ROOT + ' ext4'
        job = d.spawn('diskload /dev/vda2 %d 3 /run/stop' % LOAD, 600)
        d.until('[ $(cat /run/stop.n 2>/dev/null || echo 0) -ge 24 ]', 60, 'dmesg | tail')
        d.sh('touch /run/stop')
        done = v.kv(job.result(v.limit(240)))
        d.sh('blkdiscard /dev/vda2', 60)
        assert d.sh('dd if=/dev/vda2 bs=1M iflag=direct 2>/dev/null | tr -d "\\\\0" | wc -c', 120).strip() == '0'
        want = d.sh('mke2fs /dev/vda2 >/dev/null && mount -t ext4 /dev/vda2 /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=2 2>/dev/null && '
                    'cp /mnt/f /root/f && sync && sha256sum </mnt/f', 120).split()[0]
        d.sh('umount /mnt && mount -o remount,ro / && sync', 60)
    except v.VMError as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    log = d.sh('dmesg')
    assert 'I/O error' not in log and not d.complaints(), log[-3000:]
    for m in k.vms:
        m.kill()
    assert k.daemon.alive()
    for start, mib, path in ((bootdisk.FIRST << 9, MIB, '/root/f'), ((bootdisk.FIRST << 9) + (MIB << 20), FREE, '/f')):
        part = k.daemon.path('part')
        with open(k.image, 'rb') as f, open(part, 'wb') as out:
            f.seek(start)
            out.write(f.read(mib << 20))
        subprocess.run(['/sbin/e2fsck', '-fn', part], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        got = subprocess.run(['sh', '-c', '/sbin/debugfs -R "cat %s" %s 2>/dev/null | sha256sum' % (path, part)], capture_output=True, text=True)
        assert got.stdout.split()[0] == want
    v.note('%d requests with direct I/O; discarded; both file systems are clean and whole on the host' % done['requests'])
