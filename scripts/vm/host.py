# SPDX-License-Identifier: BSD-3-Clause
"""What runs on the host beside the VMs: vhost-pcid with its configuration, and dpdk-testpmd as a reference for it."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time

from deb import Unavailable
from machine import TOP, VMError, die_with_parent, limit, listened


def ini(sections):
    """INI text from {section: {key: value}} or [(section, {…})]."""
    out = []
    for name, keys in (sections.items() if isinstance(sections, dict) else sections):
        out.append('[%s]' % name)
        out += ['%s=%s' % kv_ for kv_ in keys.items()]
        out.append('')
    return '\n'.join(out)


class Adopted:
    """A process that another one of ours started and left to us: as subprocess.Popen."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout):
        end = time.time() + timeout
        while self.poll() is None:
            if time.time() > end:
                raise subprocess.TimeoutExpired('vhost-pcid', timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, sig):
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Daemon:
    """vhost-pcid with a configuration directory of its own."""

    def __init__(self, dir, builddir=None, wrapper=(), manager=None, args=()):
        """@manager: a fdstore.Manager, that fds survive a restart. @args: more options of the daemon."""
        self.dir = dir
        self.builddir = builddir or os.environ.get('VHOST_PCI_BUILD') or os.path.join(TOP, 'build')
        self.bin = os.path.join(self.builddir, 'daemon/vhost-pcid')
        self.cli = os.path.join(self.builddir, 'cli/vhost-pcictl')
        self.conf = os.path.join(dir, 'conf')
        self.control = os.path.join(dir, 'control')
        self.log = os.path.join(dir, 'vhost-pcid.log')
        self.wrapper = list(wrapper)
        self.manager = manager
        self.args = list(args)
        self.proc = None
        os.makedirs(self.conf, exist_ok=True)
        if not os.path.exists(self.bin):
            raise Unavailable('%s is not built' % self.bin)

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, sections):
        with open(os.path.join(self.conf, name), 'w') as f:
            f.write(ini(sections))

    def vm(self, name, group='blue', **more):
        self.write(name + '.vm', {'VM': dict(TrustGroup=group, User=str(os.getuid()), **more)})

    def link(self, name, driver, device, mode='relay', endpoint='virtio-net', driver_keys=None, device_keys=None, net_keys=None,
             profile_keys=None, **more):
        """A link; the sockets are NAME-driver.sock and NAME-device.sock (returned). @more goes into [Link]."""
        a, b = self.path(name + '-driver.sock'), self.path(name + '-device.sock')
        self.write(name + '.link', [
            ('Link', dict(Mode=mode, **more)),
            ('Driver', dict(VM=driver, Socket=a, **(driver_keys or {}))),
            ('Device', dict(VM=device, Endpoint=endpoint, Socket=b, **(device_keys or {})))] +
            ([('Net', net_keys)] if net_keys else []) + ([('Profile', profile_keys)] if profile_keys else []))
        return a, b

    def start(self, timeout=10):
        log = open(self.log, 'a')
        cmd = self.wrapper + [self.bin, '--config', self.conf, '--runtime-dir', self.dir, '--control', self.control] + self.args
        if self.manager:
            self.proc = self.manager.spawn(cmd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        else:
            self.proc = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        log.close()
        end = time.time() + limit(timeout)
        while True:
            if self.proc.poll() is not None:
                raise VMError('vhost-pcid ended with status %d\n%s' % (self.proc.returncode, self.tail()))
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(self.control)
                return
            except OSError:
                if time.time() > end:
                    raise VMError('vhost-pcid does not listen on %s\n%s' % (self.control, self.tail()))
                time.sleep(0.02)
            finally:
                s.close()

    def upgrade(self):
        """A new daemon takes over; its answer. The old one has ended."""
        # PR_SET_CHILD_SUBREAPER: the new one has no parent, and becomes ours.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        got = self.ctl('upgrade')
        self.proc.wait(limit(10))
        self.proc = Adopted(got['pid'])
        return got

    def alive(self):
        return self.proc is not None and self.proc.poll() is None

    def stop(self, sig=signal.SIGTERM, timeout=10):
        """Returns the exit status (negative: killed by that signal)."""
        p, self.proc = self.proc, None
        if p is None:
            return 0
        if p.poll() is None:
            p.send_signal(sig)
        try:
            return p.wait(limit(timeout))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
            raise VMError('vhost-pcid did not end within %d s of signal %d\n%s' % (timeout, sig, self.tail()))

    def kill(self):
        self.stop(signal.SIGKILL)

    def ctl(self, *args, check=True):
        """vhost-pcictl ARGS --json, decoded."""
        r = subprocess.run([self.cli, '--control', self.control, *args, '--json'], capture_output=True, text=True, timeout=limit(30))
        if r.returncode and check:
            raise VMError('vhost-pcictl %s: status %d\n%s%s' % (' '.join(args), r.returncode, r.stdout, r.stderr))
        return json.loads(r.stdout) if r.stdout.strip() else None

    def cpu(self):
        """CPU seconds that the daemon has used."""
        with open('/proc/%d/stat' % self.proc.pid) as f:
            w = f.read().rpartition(')')[2].split()
        return (int(w[11]) + int(w[12])) / os.sysconf('SC_CLK_TCK')

    def tail(self, lines=30):
        try:
            with open(self.log, errors='replace') as f:
                t = f.read().splitlines()[-lines:]
        except FileNotFoundError:
            t = []
        return '\n'.join(['--- vhost-pcid (%s)' % self.log] + t)


class Testpmd:
    """dpdk-testpmd forwarding between two vhost-user sockets: the vSwitch way, as a reference for the daemon."""

    def __init__(self, dir, socks, queues=1):
        self.dir, self.socks, self.queues = dir, socks, queues
        self.proc = None
        self.log = os.path.join(dir, 'testpmd.log')

    def start(self, timeout=20):
        cmd = ['dpdk-testpmd', '--no-huge', '-m', '256', '--no-pci', '--file-prefix', 'vp%d' % os.getpid(), '-l', '0,1']
        for i, s in enumerate(self.socks):
            cmd += ['--vdev', 'net_vhost%d,iface=%s,queues=%d' % (i, s, self.queues)]
        cmd += ['--', '--forward-mode=io', '--auto-start', '--no-mlockall', '--total-num-mbufs=8192',
                '--rxq=%d' % self.queues, '--txq=%d' % self.queues]
        log = open(self.log, 'w')
        self.proc = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=log, stderr=log, preexec_fn=die_with_parent)
        log.close()
        end = time.time() + limit(timeout)
        while not all(map(listened, self.socks)):
            if self.proc.poll() is not None or time.time() > end:
                with open(self.log) as f:
                    raise VMError('dpdk-testpmd does not start\n' + f.read()[-2000:])
            time.sleep(0.1)

    def stop(self):
        p, self.proc = self.proc, None
        if p:
            p.terminate()
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
