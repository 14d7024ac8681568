# SPDX-License-Identifier: BSD-3-Clause
"""Links of other types than net: a driver VM whose disk or file system an unmodified back-end in a device VM serves.

    k = Disk(daemon, 'copy', 'ivshmem');  daemon.start();  start k.vms;  k.serve();  k.attach()
    k.device.kill();  start k.device;  k.serve()
"""

import os
import time

import packages
import portlink
import vhostpci_vm as v

LINK = 'served'
SOCKET = '/run/vhu/served.sock'


class Served:
    """The two VMs of a link of type @kind, neither started nor the daemon. Subclasses say what serves."""

    kind, queues, model, props = None, 1, None, None

    def __init__(self, daemon, mode, attachment, driver_qemu='system', device_qemu='system', driver=None, device=None, profile=None):
        groups = ('blue', 'blue') if mode == 'fast' else ('blue', 'red')
        self.daemon = daemon
        daemon.write('vhost-pci.conf', {'Daemon': {'StateDirectory': daemon.path('state')}})
        self.driver = portlink.guest(daemon, 'left', groups[0], qemu=driver_qemu, **(driver or {}))
        self.device = portlink.guest(daemon, 'right', groups[1], device=True, qemu=device_qemu, mem=384, **(device or {}))
        self.vms = [self.driver, self.device]
        port = v.Port(daemon.path(LINK + '-device.sock'), attachment, queues=self.queues)
        socks = daemon.link(LINK, 'left', 'right', mode=mode, endpoint='port', Type=self.kind, profile_keys=profile,
                            device_keys=port.link_keys(daemon.dir, 'right'))
        self.device.nets.append(port)
        self.driver.nets.append(v.UserDevice(socks[0], self.model, self.props))

    def serve(self):
        """Start the agent and the back-end in the device VM, which has just booted."""
        self.device.sh('mkdir -p /run/vhu; (setsid vhost-pci-agent --vhost-user %s --wait >>/run/agent.log 2>&1 &)' % SOCKET)
        self.start_backend()

    def kill_backend(self):
        self.device.sh('kill -9 $(cat /run/backend.pid)')

    def wait_known(self):
        """Until the daemon has learned from the back-end what the driver VM is to be shown."""
        end = time.time() + v.limit(60)
        while not self.daemon.ctl('profile', LINK)['known']:
            if time.time() > end:
                raise v.VMError('the profile was not learned\n' + self.story())
            time.sleep(0.2)

    def status(self):
        return self.daemon.ctl('show', LINK)

    def story(self):
        out = [str(self.daemon.ctl('show', LINK, check=False)), self.daemon.tail(20)]
        for m, logs in ((self.device, '/run/agent.log /run/backend.log'), (self.driver, '')):
            if m.alive():
                out.append(m.sh('%s dmesg | tail -n 10' % (logs and 'tail -n 20 %s;' % logs), check=False))
        return '\n'.join(out)


class Disk(Served):
    """qemu-storage-daemon serves a vhost-user-blk-pci. own: a disk of the device VM's, a file of the host's, which outlives it; else
    a file in its memory. written: the profile is, both VMs may boot at the same time; else the driver VM boots when it is known."""

    kind, model, props = 'blk', 'vhost-user-blk-pci', 'num-queues=1'

    def __init__(self, daemon, *point, mib=64, driver=None, own=True, written=True, **kw):
        if not os.path.exists('/usr/bin/qemu-storage-daemon'):
            raise v.Unavailable('qemu-storage-daemon is not installed (scripts/setup)')
        self.own, self.mib = own, mib
        device = dict(programs=[('/usr/bin/qemu-storage-daemon', '/bin/qemu-storage-daemon')])
        if own:
            self.image = daemon.path('disk.img')
            with open(self.image, 'wb') as f:
                f.truncate(mib << 20)
            # Without vectors as in UserDevice. What QEMU has written outlives it, in the host's page cache.
            device['extra'] = ['-drive', 'file=%s,format=raw,if=none,id=own' % self.image, '-device', 'virtio-blk-pci,drive=own,vectors=0']
            # Copy mode: what was acknowledged has left the device VM. In fast mode the driver VM has to flush: its memory is that of a PCI
            # device there, which the kernel pins for nobody, so direct I/O fails.
            self.blockdev = 'driver=host_device,filename=/dev/vda,cache.direct=' + ('on' if point[0] == 'copy' else 'off')
        else:
            self.blockdev = 'driver=file,filename=/run/disk.img,discard=unmap'
        super().__init__(daemon, *point, driver=driver, device=device, profile={'Capacity': '%dM' % mib} if written else None, **kw)

    def start_backend(self):
        if self.own:
            self.device.sh('modprobe virtio_blk')
            self.device.until('[ -b /dev/vda ]', 20, 'dmesg | tail')
        else:
            self.device.sh('[ -e /run/disk.img ] || dd if=/dev/zero of=/run/disk.img bs=1M count=%d 2>/dev/null' % self.mib)
        self.device.sh('rm -f %s; (setsid qemu-storage-daemon --blockdev %s,node-name=f '
                       '--export type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=%s,writable=on,num-queues=1 '
                       '>>/run/backend.log 2>&1 & echo $! >/run/backend.pid)' % (SOCKET, self.blockdev, SOCKET))

    def attach(self):
        """The driver VM loads its driver; it waits in there until the disk is served."""
        self.driver.sh('modprobe virtio_blk', 120)
        self.driver.until('[ -b /dev/vda ]', 60, 'dmesg | tail')


class Files(Served):
    """virtiofsd of Debian 13 serves /srv of the device VM to a vhost-user-fs-pci."""

    kind, queues, model, props = 'fs', 2, 'vhost-user-fs-pci', 'tag=home,num-request-queues=1'
    under = '/opt/virtiofsd'

    def __init__(self, daemon, *point, written=True, **kw):
        root = packages.tree('trixie', 'virtiofsd', 'libc6', 'libcap-ng0', 'libseccomp2', 'libgcc-s1')
        files = packages.files(root, self.under, '/usr/libexec/virtiofsd')
        for lib in ('libm.so.6', 'libgcc_s.so.1', 'libseccomp.so.2', 'libcap-ng.so.0'):
            path = next(p for p in (root + d + '/x86_64-linux-gnu/' + lib for d in ('/usr/lib', '/lib')) if os.path.exists(p))
            files[self.under + '/lib/x86_64-linux-gnu/' + lib] = (os.path.realpath(path), 0o755)
        super().__init__(daemon, *point, device=dict(files=files), profile={'Tag': 'home'} if written else None, **kw)

    def start_backend(self):
        self.device.sh('mkdir -p /srv; rm -f {s} {s}.pid; (setsid {u}/lib64/ld-linux-x86-64.so.2 --library-path {u}/lib/x86_64-linux-gnu '
                       '{u}/usr/libexec/virtiofsd --socket-path={s} --shared-dir=/srv --sandbox=none --seccomp=none '
                       '--inode-file-handles=never >>/run/backend.log 2>&1 & echo $! >/run/backend.pid)'.format(u=self.under, s=SOCKET))
        self.device.until('[ -S %s ]' % SOCKET, 20, 'cat /run/backend.log')

    def attach(self):
        self.driver.sh('modprobe virtiofs; mkdir -p /mnt; mount -t virtiofs home /mnt', 120)
