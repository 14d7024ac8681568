# SPDX-License-Identifier: BSD-3-Clause
"""A disk image that a test guest boots from: partition 1 holds GRUB's files, a kernel, an initramfs that switches to it, and the usual
image of the guests as an ordinary root file system; partition 2 is free."""

import gzip
import os
import shutil
import struct
import subprocess
import tempfile

import image
import packages

SECTOR = 512
ESP = 4                 # MiB
FIRST = 2048            # sectors: where partition 1 begins; GRUB lies before it
ROOT, INITRD = '/dev/vda1', 'boot/initrd'

INIT = '''#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
for m in /mod/*; do $bb insmod $m; done
until [ -b {root} ]; do $bb sleep 0.1; done
$bb mount -t ext4 {root} /new
exec $bb switch_root /new /init
'''


def initrd(k):
    """An initramfs that does no more than mount ROOT and start its init."""
    c = image.Cpio()
    for d in ('proc', 'dev', 'new', 'bin', 'mod'):
        c.dir(d)
    c.node('dev/console', 5, 1)
    with open(image.busybox(), 'rb') as f:
        c.file('bin/busybox', f.read(), 0o755)
    for i, (m, path) in enumerate(k.closure(['virtio_pci', 'virtio_blk', 'crc32c_generic', 'ext4'])):
        c.file('mod/%02d-%s.ko' % (i, m), image.read_module(path))
    c.file('init', INIT.format(root=ROOT).encode(), 0o755)
    return gzip.compress(c.data(), 1)


def grub(tmp, cmdline):
    """(boot sector, what lies behind it): GRUB for a BIOS, which loads the kernel of partition 1."""
    tree = packages.tree('bookworm', 'grub-pc-bin', 'grub-common', 'libdevmapper1.02.1', 'libselinux1', 'libudev1')
    pc = tree + '/usr/lib/grub/i386-pc'
    with open(tmp + '/early.cfg', 'w') as f:
        f.write('set root=(hd0,msdos1)\nlinux /boot/vmlinuz %s\ninitrd /%s\nboot\n' % (cmdline, INITRD))
    env = dict(os.environ, LD_LIBRARY_PATH='{t}/usr/lib/x86_64-linux-gnu:{t}/lib/x86_64-linux-gnu'.format(t=tree))
    subprocess.run([tree + '/usr/bin/grub-mkimage', '-O', 'i386-pc', '-d', pc, '-c', tmp + '/early.cfg', '-p', '(hd0,msdos1)/boot', '-o',
                    tmp + '/core.img', 'biosdisk', 'part_msdos', 'ext2', 'linux'], check=True, env=env)
    with open(pc + '/boot.img', 'rb') as f:
        first = f.read()
    with open(tmp + '/core.img', 'rb') as f:
        core = f.read()
    assert len(first) == SECTOR and len(core) < (FIRST - 1) * SECTOR
    return first, core


def ovmf():
    """(code, variables) of a UEFI firmware. Raises Unavailable."""
    tree = packages.tree('bookworm', 'ovmf') + '/usr/share/OVMF/OVMF_'
    return tree + 'CODE_4M.fd', tree + 'VARS_4M.fd'


def efi(tmp, cmdline):
    """An EFI system partition of ESP MiB: GRUB where a UEFI looks, which loads the kernel of partition 1."""
    tree = packages.tree('bookworm', 'grub-efi-amd64-bin', 'grub-common', 'libdevmapper1.02.1', 'libselinux1', 'libudev1', 'dosfstools', 'mtools')
    env = dict(os.environ, LD_LIBRARY_PATH='{t}/usr/lib/x86_64-linux-gnu:{t}/lib/x86_64-linux-gnu'.format(t=tree))
    with open(tmp + '/efi.cfg', 'w') as f:
        f.write('set root=(hd0,msdos1)\nlinux /boot/vmlinuz %s\ninitrd /%s\nboot\n' % (cmdline, INITRD))
    esp = tmp + '/esp'
    for argv in ([tree + '/usr/bin/grub-mkimage', '-O', 'x86_64-efi', '-d', tree + '/usr/lib/grub/x86_64-efi', '-c', tmp + '/efi.cfg', '-p',
                  '(hd0,msdos1)/boot', '-o', tmp + '/boot.efi', 'part_msdos', 'ext2', 'linux'],
                 [tree + '/sbin/mkfs.vfat', '-C', esp, str(ESP << 10)],
                 [tree + '/usr/bin/mmd', '-i', esp, '::/EFI', '::/EFI/BOOT'],
                 [tree + '/usr/bin/mcopy', '-i', esp, tmp + '/boot.efi', '::/EFI/BOOT/BOOTX64.EFI']):
        subprocess.run(argv, check=True, env=env, stdout=subprocess.DEVNULL)
    return esp


def make(path, k, cmdline, mib=64, free=24, files=None, uefi=False):
    """Write the image to @path: a root file system of @mib MiB for kernel @k, @free MiB behind it. @cmdline: the kernel's, when GRUB
    boots it. @files: {path in the root: path on the host}. @uefi: a third partition of ESP MiB for a UEFI instead of GRUB for a BIOS.
    Returns the initramfs, for those who boot without GRUB."""
    tmp = tempfile.mkdtemp(prefix='vpi')
    try:
        root = tmp + '/root'
        os.mkdir(root)
        with open(image.base_initramfs(k), 'rb') as f:
            subprocess.run(['cpio', '-idm', '--quiet'], input=gzip.decompress(f.read()), cwd=root, check=True)
        os.mkdir(root + '/boot')
        shutil.copy(k.vmlinuz, root + '/boot/vmlinuz')
        small = initrd(k)
        with open(os.path.join(root, INITRD), 'wb') as f:
            f.write(small)
        for to, what in (files or {}).items():
            shutil.copy(what, os.path.join(root, to))
        subprocess.run(['/sbin/mkfs.ext4', '-q', '-d', root, tmp + '/part', '%dM' % mib], check=True)
        first, core = (bytes(SECTOR), b'') if uefi else grub(tmp, cmdline)
        esp = FIRST + ((mib + free) << 11)
        table = b''.join(struct.pack('<B3sB3sII', active, b'\xfe\xff\xff', kind, b'\xfe\xff\xff', start, size) for active, kind, start, size in (
            (0x80, 0x83, FIRST, mib << 11), (0, 0x83, FIRST + (mib << 11), free << 11)) + (((0, 0xef, esp, ESP << 11),) if uefi else ()))
        with open(path, 'wb') as f:
            f.write(first[:440] + b'vpci\0\0' + table.ljust(64, b'\0') + b'\x55\xaa' + core)
            f.truncate((FIRST << 9) + ((mib + free) << 20))
            f.seek(FIRST << 9)
            with open(tmp + '/part', 'rb') as part:
                shutil.copyfileobj(part, f)
            if uefi:
                f.seek(esp << 9)
                with open(efi(tmp, cmdline), 'rb') as part:
                    shutil.copyfileobj(part, f)
        return small
    finally:
        shutil.rmtree(tmp)
