# SPDX-License-Identifier: BSD-3-Clause
"""Programs from Debian packages for a guest's image, with a root of their own: another suite's libraries don't mix with the image's."""

import glob
import os
import shutil

from deb import Apt, Lock, Unavailable, cache_dir


def tree(suite, *packages):
    """Directory of the unpacked @packages of @suite (fetched once). Raises Unavailable."""
    root = os.path.join(cache_dir(), 'packages', suite + '-' + '-'.join(packages))
    with Lock('packages'):
        if not os.path.isdir(root):
            apt = Apt(suite)
            apt.setup()
            os.makedirs(os.path.dirname(root), exist_ok=True)
            apt.unpack(list(packages), root)
    return root


def files(root, under, *programs):
    """The image's files for running @programs (paths in the tree) with @under as their root: themselves, the C library,
    the loader where programs look for it, and who is who."""
    lib = '/usr/lib/x86_64-linux-gnu/'
    out = {under + p: (root + p, 0o755) for p in programs}
    out[under + '/lib64/ld-linux-x86-64.so.2'] = (root + lib + 'ld-linux-x86-64.so.2', 0o755)
    out[under + '/lib/x86_64-linux-gnu/libc.so.6'] = (root + lib + 'libc.so.6', 0o755)
    out[under + '/etc/passwd'] = b'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n'
    out[under + '/etc/group'] = b'root:x:0:\nnogroup:x:65534:\n'
    return out


def testpmd(*drivers):
    """The image's programs for dpdk-testpmd of this machine with these @drivers (librte_…), which lie in /pmd. Raises Unavailable."""
    program, pmds = shutil.which('dpdk-testpmd'), sorted(glob.glob('/usr/lib/*/dpdk/pmds-*'))
    if not program:
        raise Unavailable('dpdk-testpmd is not installed (scripts/setup)')
    if not pmds:
        raise Unavailable('DPDK has no drivers here (/usr/lib/*/dpdk/pmds-*)')
    paths = [sorted(glob.glob('%s/%s.so*' % (pmds[-1], n)))[0] for n in drivers]
    return [(program, '/bin/dpdk-testpmd')] + [(p, '/pmd/' + os.path.basename(p)) for p in paths]


def testpmd_drivers(programs):
    """Its arguments that load them, from what testpmd() returned."""
    return ' '.join('-d ' + where for _, where in programs if where.startswith('/pmd/'))


def enter(under, share):
    """Shell text: make @under (from the image) the directory /run/NAME that start() runs programs in; the directory
    @share is /run there. A root that can be pivoted away from, unlike the image's own."""
    r = '/run/' + os.path.basename(under)
    return ('mkdir -p {r} {s}; chmod 777 {s}; mount -t tmpfs none {r}; cp -a {u}/. {r}/; mkdir -p {r}/proc {r}/dev {r}/tmp {r}/run; '
            'mount -o bind /proc {r}/proc; mount -o bind /dev {r}/dev; mount -o bind {s} {r}/run').format(r=r, s=share, u=under)


def start(under, command, log):
    """Shell text: run @command (in the background, output to @log) with what enter() made as its root."""
    r = '/run/' + os.path.basename(under)
    # Not a plain chroot: a process inside one may not make a user namespace.
    return "(setsid unshare -m sh -c 'cd %s && mount -o move . / && exec chroot . %s' >>%s 2>&1 &)" % (r, command, log)
