# SPDX-License-Identifier: BSD-3-Clause
"""Links of other types than net: a driver VM whose disk or file system an unmodified back-end in a device VM serves.

    k = Disk(daemon, 'copy', 'ivshmem');  daemon.start();  k.up(boot);  k.attach()
    k.device.kill();  start k.device;  k.serve()
"""

import os
import time

import image
import packages
import portlink
import vhostpci_vm as v

LINK = 'served'
SOCKET = '/run/vhu/served.sock'


# Shell text: load what with_modules() has put into an image.
INSERT = 'for m in /mod/*; do insmod $m 2>/dev/null || true; done'


# Shell text, for a driver VM: requests wait while nobody serves them, and its kernel need not complain of that.
PATIENT = 'echo 0 >/proc/sys/kernel/hung_task_timeout_secs; '


def with_modules(kw, names):
    """@kw for portlink.guest() with the kernel modules @names and what they need."""
    k = image.kernel(image.native())
    files = {'mod/%02d-%s.ko' % (i, m): image.read_module(p) for i, (m, p) in enumerate(k.closure(names))}
    return dict(kw or {}, files=dict((kw or {}).get('files') or {}, **files))


def own_disk(path, mib):
    """QEMU's arguments for a disk of a device VM's, a file of the host's that is made here: without vectors as in UserDevice. What
    QEMU has written outlives it, in the host's page cache."""
    if not os.path.exists(path):
        with open(path, 'wb') as f:
            f.truncate(mib << 20)
    return ['-drive', 'file=%s,format=raw,if=none,id=own,discard=unmap' % path, '-device', 'virtio-blk-pci,drive=own,vectors=0']


class Served:
    """The two VMs of a link of type @kind, neither started nor the daemon. Subclasses say what serves."""

    kind, queues, model, props = None, 1, None, None
    driver_modules, device_modules = (), ()     # of the kernel, beyond those that every image has: INSERT loads them
    agent = '--vhost-user ' + SOCKET
    device_keys = {}            # of the link file
    firmware_asks = False       # the driver VM's firmware asks the device, and waits for an answer

    def __init__(self, daemon, mode, attachment, driver_qemu='system', device_qemu='system', driver=None, device=None, profile=None):
        groups = ('blue', 'blue') if mode == 'fast' else ('blue', 'red')
        self.daemon = daemon
        daemon.write('vhost-pci.conf', {'Daemon': {'StateDirectory': daemon.path('state')}})
        if self.driver_modules:
            driver = with_modules(driver, self.driver_modules)
        if self.device_modules:
            device = with_modules(device, self.device_modules)
        self.driver = portlink.guest(daemon, 'left', groups[0], qemu=driver_qemu, **(driver or {}))
        self.device = portlink.guest(daemon, 'right', groups[1], device=True, qemu=device_qemu, mem=384, **(device or {}))
        self.vms = [self.driver, self.device]
        port = v.Port(daemon.path(LINK + '-device.sock'), attachment, queues=self.queues)
        socks = daemon.link(LINK, 'left', 'right', mode=mode, endpoint='port', Type=self.kind, profile_keys=profile,
                            device_keys=dict(port.link_keys(daemon.dir, 'right'), **self.device_keys))
        self.device.nets.append(port)
        self.driver.nets.append(v.UserDevice(socks[0], self.model, self.props))

    def up(self, boot):
        """Start both VMs, by the function @boot, and what serves."""
        if self.firmware_asks:
            boot(self.device)
            self.serve()
            boot(self.driver)
        else:
            boot(*self.vms)
            self.serve()

    def serve(self):
        """Start the agent and the back-end in the device VM, which has just booted."""
        self.start_agent()
        self.start_backend()

    def start_agent(self):
        self.device.sh('mkdir -p /run/vhu; (setsid vhost-pci-agent %s --wait >>/run/agent.log 2>&1 & echo $! >/run/agent.pid)' % self.agent)

    def end_agent(self):
        """In an orderly way."""
        self.device.sh('kill $(cat /run/agent.pid)')
        self.device.until('! kill -0 $(cat /run/agent.pid) 2>/dev/null', 20)

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

    kind, model, props, disk = 'blk', 'vhost-user-blk-pci', 'num-queues=1,config-wce=off', 'vda'

    def __init__(self, daemon, *point, mib=64, driver=None, own=True, written=True, **kw):
        if not os.path.exists('/usr/bin/qemu-storage-daemon'):
            raise v.Unavailable('qemu-storage-daemon is not installed (scripts/setup)')
        self.own, self.mib = own, mib
        device = dict(programs=[('/usr/bin/qemu-storage-daemon', '/bin/qemu-storage-daemon')])
        if own:
            self.image = daemon.path('disk.img')
            device['extra'] = own_disk(self.image, mib)
            # Copy mode: what was acknowledged has left the device VM. In fast mode the driver VM has to flush: its memory is that of a PCI
            # device there, which the kernel pins for nobody, so direct I/O fails.
            self.blockdev = 'driver=host_device,filename=/dev/vda,cache.direct=' + ('on' if point[0] == 'copy' else 'off')
        else:
            self.blockdev = 'driver=file,filename=/run/disk.img'
        super().__init__(daemon, *point, driver=driver, device=device, profile={'Capacity': '%dM' % mib} if written else None, **kw)

    def start_backend(self):
        if self.own:
            self.device.sh('modprobe virtio_blk')
            self.device.until('[ -b /dev/vda ]', 20, 'dmesg | tail')
        else:
            self.device.sh('[ -e /run/disk.img ] || dd if=/dev/zero of=/run/disk.img bs=1M count=%d 2>/dev/null' % self.mib)
        self.device.sh('rm -f %s; (setsid qemu-storage-daemon --blockdev %s,node-name=f,discard=unmap '
                       '--export type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=%s,writable=on,num-queues=1 '
                       '>>/run/backend.log 2>&1 & echo $! >/run/backend.pid)' % (SOCKET, self.blockdev, SOCKET))

    def attach(self):
        """The driver VM loads its driver; it waits in there until the disk is served."""
        self.driver.sh(PATIENT + 'modprobe virtio_blk', 120)
        self.driver.until('[ -b /dev/vda ]', 60, 'dmesg | tail')


class Scsi(Served):
    """vhost-scsi of the device VM's kernel serves a disk of the device VM's, by an LIO target, to a vhost-user-scsi-pci."""

    kind, queues, model, props, disk = 'scsi', 3, 'vhost-user-scsi-pci', 'num_queues=1', 'sda'
    wwpn, nexus = 'naa.5001405000000001', 'naa.5001405000000002'
    driver_modules, device_modules = ('virtio_scsi', 'sd_mod'), ('vhost_scsi', 'target_core_iblock')
    agent = '--scsi ' + wwpn
    firmware_asks = True        # which targets there are

    def __init__(self, daemon, *point, mib=64, driver=None, **kw):
        self.image = daemon.path('disk.img')
        super().__init__(daemon, *point, driver=driver, device=dict(extra=own_disk(self.image, mib)), **kw)

    def serve(self):
        self.start_backend()
        self.start_agent()

    def start_backend(self):
        self.device.sh('modprobe virtio_blk; ' + INSERT, 60)
        self.device.until('[ -b /dev/vda ]', 20, 'dmesg | tail')
        self.device.sh('c=/sys/kernel/config; mount -t configfs none $c; d=$c/target/core/iblock_0/d0; t=$c/target/vhost/%s/tpgt_1; '
                       'mkdir -p $d && echo udev_path=/dev/vda >$d/control && echo 1 >$d/enable && mkdir -p $t/lun/lun_0 && '
                       'echo %s >$t/nexus && ln -s $d $t/lun/lun_0/d0' % (self.wwpn, self.nexus), 60)

    def attach(self):
        self.driver.sh(PATIENT + INSERT, 120)
        self.driver.until('[ -b /dev/sda ]', 60, 'dmesg | tail')


class Vsock(Served):
    """vhost-vsock of the device VM's kernel serves a vhost-user-vsock-pci."""

    kind, queues, model, props, cid = 'vsock', 2, 'vhost-user-vsock-pci', '', 42
    agent = '--vsock %d' % cid
    port = 5000         # of the next stream

    def __init__(self, daemon, *point, **kw):
        files = {'bin/vsockio': (image.program(os.path.join(v.TOP, 'tests/vm/vsockio.c')), 0o755)}
        super().__init__(daemon, *point, driver=dict(files=files), device=dict(files=files), profile={'CID': self.cid}, **kw)

    def serve(self):
        self.device.sh('modprobe vhost_vsock')
        self.start_agent()

    def attach(self):
        self.driver.sh('modprobe vmw_vsock_virtio_transport')
        self.device.until('grep -q "link up" /run/agent.log', 30, 'cat /run/agent.log')

    def streams(self, listener, talker, cid, n, size):
        """@n connections from @talker to @cid, @size bytes each way on each. Was every byte right at both ends?"""
        self.port += 1
        job = listener.spawn('vsockio listen %d %d %d 2>/run/listen.%d' % (self.port, n, size, self.port), 120)
        listener.until('grep -q listening /run/listen.%d' % self.port, 20)
        out = talker.sh('vsockio connect %d %d %d %d' % (cid, self.port, n, size), 120)
        return v.kv(out) == v.kv(job.result()) == {'connections': n, 'bytes': size}


class Files(Served):
    """virtiofsd of Debian 13 serves /srv of the device VM to a vhost-user-fs-pci, with so many threads in a pool (0: in order)."""

    kind, queues, model, props = 'fs', 2, 'vhost-user-fs-pci', 'tag=home,num-request-queues=1'
    under = '/opt/virtiofsd'
    agent = '--vhost-user %s --state /run/fs.state' % SOCKET

    def __init__(self, daemon, *point, driver=None, written=True, threads=0, **kw):
        self.threads = threads
        root = packages.tree('trixie', 'virtiofsd', 'libc6', 'libcap-ng0', 'libseccomp2', 'libgcc-s1')
        files = packages.files(root, self.under, '/usr/libexec/virtiofsd')
        for lib in ('libm.so.6', 'libgcc_s.so.1', 'libseccomp.so.2', 'libcap-ng.so.0'):
            path = next(p for p in (root + d + '/x86_64-linux-gnu/' + lib for d in ('/usr/lib', '/lib')) if os.path.exists(p))
            files[self.under + '/lib/x86_64-linux-gnu/' + lib] = (os.path.realpath(path), 0o755)
        super().__init__(daemon, *point, driver=driver, device=dict(files=files), profile={'Tag': 'home'} if written else None, **kw)

    def start_backend(self):
        self.device.sh('mkdir -p /srv; rm -f {s} {s}.pid; (setsid {u}/lib64/ld-linux-x86-64.so.2 --library-path {u}/lib/x86_64-linux-gnu '
                       '{u}/usr/libexec/virtiofsd --socket-path={s} --shared-dir=/srv --sandbox=none --seccomp=none '
                       '--inode-file-handles=never --thread-pool-size={n} >>/run/backend.log 2>&1 & echo $! >/run/backend.pid)'.format(
                           u=self.under, s=SOCKET, n=self.threads))
        # It removes the socket's file as soon as the agent, which is waiting for it, has connected.
        self.device.until("grep -qE '%s' /proc/net/unix" % v.TAKEN % SOCKET, 20, 'cat /run/backend.log')

    def attach(self):
        self.driver.sh('modprobe virtiofs; mkdir -p /mnt; mount -t virtiofs home /mnt', 120)
