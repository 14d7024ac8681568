# SPDX-License-Identifier: BSD-3-Clause
"""Kernels and initramfs images for the test guests.

kernel('6.1') fetches a Debian kernel once (cached, nothing is installed on the host); initramfs() builds an image of a few
megabytes in well under a second, with extra files on top. Kernels by name:

  6.1         Debian 12's
  6.12        Debian 13's
  backports   the newest of Debian 13's backports
"""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess

from deb import Apt, Lock, Unavailable, cache_dir, progress

HERE = os.path.dirname(os.path.abspath(__file__))

KERNELS = {
    '6.1': 'bookworm',
    '6.12': 'trixie',
    'backports': 'trixie-backports',
}

# Loaded by the guest's init in this order, with what they depend on.
BOOT_MODULES = ('virtio_pci', 'virtio_net')
# There for modprobe.
OTHER_MODULES = ('vhost_net', 'tun', 'macvtap', 'bridge', 'vfio_pci', 'uio_pci_generic', 'virtio_console', 'af_packet',
                 'virtio_balloon', 'virtio_mem', 'virtio_blk', 'virtiofs', 'ext4', 'crc32c_generic', 'vhost_vsock',
                 'vmw_vsock_virtio_transport')


def native():
    """The kernel of this machine's own Debian, whose headers and compiler are at hand for building modules."""
    try:
        with open('/etc/os-release') as f:
            if 'VERSION_CODENAME=trixie' in f.read():
                return '6.12'
    except OSError:
        pass
    return '6.1'


class Kernel:
    """One unpacked kernel: release, vmlinuz (boot image), modules (directory of lib/modules/RELEASE), suite."""

    def __init__(self, name, root):
        self.name = name
        self.root = root
        self.suite = KERNELS[name]
        base = os.path.join(root, 'lib/modules')
        if not os.path.isdir(base):
            base = os.path.join(root, 'usr/lib/modules')
        self.release = sorted(os.listdir(base))[0]
        self.modules = os.path.join(base, self.release)
        self.vmlinuz = os.path.join(root, 'boot/vmlinuz-' + self.release)
        if not os.path.exists(self.vmlinuz):
            self.vmlinuz = os.path.join(self.modules, 'vmlinuz')
        self.image = self.vmlinuz
        self._index = None

    def find(self, module):
        """Path of a module by its name, None when the kernel has it not (or built in)."""
        if self._index is None:
            self._index = {}
            for d, _, files in os.walk(self.modules):
                for f in files:
                    if '.ko' in f:
                        self._index[f.split('.ko')[0].replace('-', '_')] = os.path.join(d, f)
        return self._index.get(module.replace('-', '_'))

    def closure(self, modules):
        """[(name, path)] of @modules and all they need, in load order."""
        out, seen = [], set()

        def visit(m):
            m = m.replace('-', '_')
            if m in seen:
                return
            seen.add(m)
            path = self.find(m)
            if not path:
                return
            for d in depends(read_module(path)):
                visit(d)
            out.append((m, path))
        for m in modules:
            visit(m)
        return out


def read_module(path):
    with open(path, 'rb') as f:
        data = f.read()
    if path.endswith('.xz'):
        return lzma.decompress(data)
    if path.endswith('.gz'):
        return gzip.decompress(data)
    if path.endswith('.zst'):
        return subprocess.run(['zstd', '-dc', path], check=True, capture_output=True).stdout
    return data


def depends(data):
    i = data.find(b'\0depends=')
    if i < 0:
        i = data.find(b'depends=') - 1
        if i < -1:
            return []
    end = data.index(b'\0', i + 1)
    return [d for d in data[i + 9:end].decode().split(',') if d]


def kernel(name='6.1'):
    """The kernel @name, fetched when it is not in the cache. Raises Unavailable."""
    if name not in KERNELS:
        raise Unavailable('unknown kernel %r, there are: %s' % (name, ', '.join(KERNELS)))
    root = os.path.join(cache_dir(), 'kernels', name)
    with Lock('kernel-' + name):
        if not os.path.isdir(root):
            apt = Apt(KERNELS[name])
            apt.setup()
            # Until 7.0 one package, since then an image, a binary and a modules package.
            pkgs = [p for p in apt.follow('linux-image-amd64', r'linux-(image|binary|modules)-.*amd64') if re.search(r'-\d', p)]
            os.makedirs(os.path.dirname(root), exist_ok=True)
            apt.unpack(pkgs, root)
        k = Kernel(name, root)
        raw = os.path.join(root, 'vmlinux')
        if not os.path.exists(raw):
            extract_vmlinux(k.vmlinuz, raw)
        # The unpacked ELF boots through PVH, which spares the guest the slow unpacking under TCG.
        if os.path.getsize(raw):
            k.image = raw
    return k


def extract_vmlinux(vmlinuz, out):
    """Write the ELF inside a bzImage to @out; an empty file when it can't be had (then the bzImage is booted)."""
    with open(vmlinuz, 'rb') as f:
        data = f.read()
    elf = b''
    setup = data[0x1f1] or 4
    off, length = struct.unpack_from('<II', data, 0x248)
    payload = data[(setup + 1) * 512 + off:(setup + 1) * 512 + off + length]
    try:
        if payload[:6] == b'\xfd7zXZ\0':
            elf = lzma.LZMADecompressor().decompress(payload)
        elif payload[:4] == b'\x28\xb5\x2f\xfd':
            # The compressed payload is followed by its size, which is not part of the stream.
            elf = subprocess.run(['zstd', '-dc', '-q'], input=payload[:-4], capture_output=True).stdout
        elif payload[:2] == b'\x1f\x8b':
            elf = gzip.decompress(payload[:-4])
    except (lzma.LZMAError, OSError, FileNotFoundError):
        elf = b''
    if elf[:4] != b'\x7fELF':
        elf = b''
    with open(out + '.tmp', 'wb') as f:
        f.write(elf)
    os.rename(out + '.tmp', out)


class Cpio:
    """A newc archive in memory. No root needed for device nodes."""

    def __init__(self):
        self.parts = []
        self.dirs = set()
        self.ino = 1

    def _add(self, name, mode, data=b'', rdev=(0, 0)):
        self.ino += 1
        name_b = name.encode() + b'\0'
        h = '070701' + ''.join('%08x' % v for v in (self.ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1],
                                                    len(name_b), 0))
        b = h.encode() + name_b
        self.parts.append(b + b'\0' * (-len(b) % 4) + data + b'\0' * (-len(data) % 4))

    def dir(self, name):
        name = name.strip('/')
        if not name or name in self.dirs:
            return
        self.dir(os.path.dirname(name))
        self.dirs.add(name)
        self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        name = name.strip('/')
        self.dir(os.path.dirname(name))
        self._add(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        name = name.strip('/')
        self.dir(os.path.dirname(name))
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name, major, minor):
        self._add(name.strip('/'), stat.S_IFCHR | 0o600, rdev=(major, minor))

    def data(self):
        self._add('TRAILER!!!', 0)
        b = b''.join(self.parts)
        return b + b'\0' * (-len(b) % 512)


def program(src, *more):
    """A guest program, linked statically: its source file, and more of them or what it includes; built when one of them has changed."""
    digest = hashlib.sha256()
    for name in (src, *more):
        with open(name, 'rb') as f:
            digest.update(f.read())
    out = os.path.join(cache_dir(), '%s-%s' % (os.path.basename(src).partition('.')[0], digest.hexdigest()[:12]))
    if not os.path.exists(out):
        tmp = '%s.%d' % (out, os.getpid())
        subprocess.run(['gcc', '-D_GNU_SOURCE', '-static', '-O2', '-Wall', '-Wextra', '-o', tmp, src,
                        *(m for m in more if not m.endswith('.h'))], check=True)
        os.rename(tmp, out)
    return out


def vmtool():
    """The guest program that every image has."""
    return program(*(os.path.join(HERE, n) for n in ('vmtool.c', 'vmtool_agent.c', 'vmtool_migrate.c', 'vmtool_traffic.c', 'vmtool.h')))


def busybox():
    for p in ('/bin/busybox', '/usr/bin/busybox'):
        if os.path.exists(p):
            with open(p, 'rb') as f:
                if b'ld-linux' not in f.read(65536):
                    return p
    raise Unavailable('no static busybox (package busybox-static)')


def base_initramfs(k):
    """Path of the image without extras for kernel @k (cached)."""
    tool, bb = vmtool(), busybox()
    with open(__file__, 'rb') as f:
        tag = hashlib.sha256(f.read() + tool.encode() + k.release.encode()).hexdigest()[:12]
    out = os.path.join(cache_dir(), 'initramfs-%s-%s' % (k.release, tag))
    if os.path.exists(out):
        return out
    c = Cpio()
    for d in ('proc', 'sys', 'dev', 'tmp', 'run', 'etc', 'bin', 'sbin', 'usr/bin', 'usr/sbin', 'usr/local', 'var', 'root', 'mnt'):
        c.dir(d)
    c.node('dev/console', 5, 1)
    c.node('dev/null', 1, 3)
    with open(bb, 'rb') as f:
        c.file('bin/busybox', f.read(), 0o755)
    for name in subprocess.run([bb, '--list'], check=True, capture_output=True, text=True).stdout.split():
        if name != 'busybox':
            c.link('bin/' + name, 'busybox')
    with open(tool, 'rb') as f:
        c.file('bin/vmtool', f.read(), 0o755)
    c.link('init', 'bin/vmtool')
    mods = k.closure(BOOT_MODULES + OTHER_MODULES)
    boot = {m for m, _ in k.closure(BOOT_MODULES)}
    dep = []
    where = 'lib/modules/%s/' % k.release
    for m, path in mods:
        data = read_module(path)
        c.file(where + m + '.ko', data)
        need = [d for d, _ in k.closure([m]) if d != m]
        dep.append('%s.ko:%s\n' % (m, ''.join(' %s.ko' % d for d in reversed(need))))
    c.file(where + 'modules.dep', ''.join(dep).encode())
    c.file('etc/boot-modules', ''.join('/%s%s.ko\n' % (where, m) for m, _ in mods if m in boot).encode())
    c.file('etc/passwd', b'root:x:0:0:root:/:/bin/sh\n')
    c.file('etc/group', b'root:x:0:\n')
    tmp = '%s.%d' % (out, os.getpid())
    # Level 1: under TCG the guest unpacks it, and the host's disk does not care.
    with open(tmp, 'wb') as f:
        f.write(gzip.compress(c.data(), 1))
    os.rename(tmp, out)
    return out


def libraries(program):
    """Paths of the shared objects (with the loader) that @program needs, by ldd."""
    r = subprocess.run(['ldd', program], capture_output=True, text=True)
    out = []
    for line in r.stdout.splitlines():
        words = line.split()
        if '=>' in words and len(words) > 2 and words[2].startswith('/'):
            out.append((words[0] if words[0].startswith('/') else words[2], words[2]))
        elif words and words[0].startswith('/'):
            out.append((words[0], words[0]))
    return out


def initramfs(k, out, files=None, programs=(), boot_modules=(), rc=None):
    """Write an image for kernel @k to @out.

    @files: {path in the guest: path on the host, or bytes, or (either, mode)}
    @programs: [(path on the host, path in the guest)], copied with the shared libraries they need
    @boot_modules: paths on the host of .ko files that init loads after the usual ones
    @rc: shell text that init runs before the agent answers
    """
    with open(base_initramfs(k), 'rb') as f:
        base = f.read()
    c = Cpio()
    for name, what in (files or {}).items():
        mode = None
        if isinstance(what, tuple):
            what, mode = what
        if not isinstance(what, bytes):
            if mode is None:
                mode = stat.S_IMODE(os.stat(what).st_mode)
            with open(what, 'rb') as f:
                what = f.read()
        c.file(name, what, mode or 0o644)
    done = set()
    for host, guest in programs:
        with open(host, 'rb') as f:
            c.file(guest, f.read(), 0o755)
        for name, path in libraries(host):
            if name not in done:
                done.add(name)
                with open(path, 'rb') as f:
                    c.file(name, f.read(), 0o755)
    if boot_modules:
        names = []
        need = []
        for p in boot_modules:
            n = os.path.basename(p)
            data = read_module(p)
            need += depends(data)
            c.file('lib/modules/%s/%s' % (k.release, n), data)
            names.append(n)
        own = {n.split('.ko')[0].replace('-', '_') for n in names}
        order = [m for m, _ in k.closure(list(BOOT_MODULES) + [d for d in need if d.replace('-', '_') not in own])]
        have = {m for m, _ in k.closure(BOOT_MODULES + OTHER_MODULES)}
        for m, path in k.closure(need):
            if m not in have:
                c.file('lib/modules/%s/%s.ko' % (k.release, m), read_module(path))
        c.file('etc/boot-modules', ''.join('/lib/modules/%s/%s.ko\n' % (k.release, m) for m in order).encode() +
               ''.join('/lib/modules/%s/%s\n' % (k.release, n) for n in names).encode())
    if rc:
        c.file('etc/rc', ('#!/bin/sh\n' + rc + '\n').encode(), 0o755)
    with open(out, 'wb') as f:
        f.write(base)
        f.write(b'\0' * (-len(base) % 512))
        f.write(c.data())
    return out


__all__ = ['Kernel', 'KERNELS', 'kernel', 'initramfs', 'program', 'vmtool', 'Unavailable', 'progress', 'shutil']
