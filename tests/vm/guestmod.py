# SPDX-License-Identifier: BSD-3-Clause
"""Builds vhost_pci.ko for a guest kernel, with that kernel's own headers.

They are looked for on this machine (package linux-headers-RELEASE), else fetched into the private tree of
scripts/qemu11-tree, which has the compiler and the libraries that newer kernels' build tools need.
"""

import os
import shutil
import subprocess

import image
from deb import Apt, Lock, Unavailable, cache_dir

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODULE = os.path.join(TOP, 'guest/module')


def _run(cmd, what):
    r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode:
        raise AssertionError('%s failed:\n%s' % (what, r.stdout[-3000:]))
    return r.stdout


def _headers(k, tree, head):
    """Compiler and headers of kernel @k in the private tree."""
    with Lock('headers'):
        if not os.path.isdir(tree):
            raise Unavailable('no headers of kernel %s on this machine, and no private tree (scripts/qemu11-tree)' % k.release)
        # The headers bring a vmlinux with type information (BTF), from which pahole makes the module's.
        if not all(os.path.exists(tree + '/usr/bin/' + p) for p in ('gcc', 'make', 'pahole')):
            _run([os.path.join(TOP, 'scripts/qemu11-tree'), '--add', 'gcc', 'make', 'pahole', 'libelf1t64', 'libssl3t64'], 'adding a compiler')
        if os.path.isdir(tree + head):
            return
        apt = Apt(k.suite)
        apt.setup()
        names = apt.follow('linux-headers-' + k.release, r'linux-(headers|kbuild)-')
        tmp = os.path.join(cache_dir(), 'headers-' + k.release)
        apt.unpack(names, tmp)
        for sub in ('usr/src', 'usr/lib'):
            for n in os.listdir(os.path.join(tmp, sub)):
                if n.startswith('linux-') and not os.path.exists(os.path.join(tree, sub, n)):
                    shutil.move(os.path.join(tmp, sub, n), os.path.join(tree, sub, n))
        shutil.rmtree(tmp)


def build(kernel, out, check=False):
    """Build the module for @kernel (an image.Kernel or its name) into directory @out. Returns (path of the .ko, make's
    output). Raises Unavailable when there are no headers. @check: under sparse, if it is there."""
    k = kernel if isinstance(kernel, image.Kernel) else image.kernel(kernel)
    # Several test files may run at a time.
    with Lock('module-' + k.release):
        return _build(k, out, ['C=2'] if check and shutil.which('sparse') else [])


def _build(k, out, opt):
    tree = os.path.join(cache_dir(), 'trixie')
    head = '/usr/src/linux-headers-' + k.release
    os.makedirs(out, exist_ok=True)
    if os.path.isdir(head):
        log = _run(['make', '-C', MODULE, 'OUT=' + out, 'KDIR=' + head] + opt, 'building the module for ' + k.release)
        return os.path.join(out, 'vhost_pci.ko'), log
    if os.geteuid():
        raise Unavailable('building for kernel %s in the private tree needs root' % k.release)
    _headers(k, tree, head)
    inside = '/srv/vhost-pci-module-' + k.release
    work = tree + inside
    shutil.rmtree(work, ignore_errors=True)
    _run(['make', '-C', MODULE, 'stage', 'DESTDIR=' + work], 'staging the module')
    src = inside + '/usr/src/' + os.listdir(work + '/usr/src')[0]
    # objtool reads its limits from /proc
    log = _run(['unshare', '--mount', 'sh', '-c', 'mount -t proc proc "$1/proc" && exec chroot "$@"', 'sh', tree,
                'make', '-C', head, 'M=' + src, 'modules'], 'building the module for ' + k.release)
    ko = os.path.join(out, 'vhost_pci.ko')
    # In one piece for whoever reads it now.
    shutil.copy(tree + src + '/vhost_pci.ko', ko + '.new')
    os.rename(ko + '.new', ko)
    shutil.rmtree(work)
    return ko, log


def selftest(out):
    """Build the guest's test program, return its path."""
    _run(['make', '-C', MODULE, 'selftest', 'OUT=' + out], 'building the selftest')
    return os.path.join(out, 'vhost-pci-selftest')
