# SPDX-License-Identifier: BSD-3-Clause
"""A guest under QEMU: which QEMU and accelerator, its devices, its life, commands in it, QMP, console."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import image
from deb import Unavailable, cache_dir, progress

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class VMError(Exception):
    pass


class _Steal:
    """What part of the processors' time the host of this machine has taken lately."""

    share, at, total, steal = 0.0, 0.0, 0, 0

    @classmethod
    def now(cls):
        if time.time() - cls.at > 2:
            with open('/proc/stat') as f:
                w = [int(x) for x in f.readline().split()[1:9]]
            total, steal = sum(w), w[7]
            if total > cls.total:
                cls.share = (steal - cls.steal) / (total - cls.total)
            cls.at, cls.total, cls.steal = time.time(), total, steal
        return cls.share


def patience():
    """How much longer than usual things may take now: 1 on an idle machine, up to 4 on one that others keep busy."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1) / 2
    return min(4.0, max(1.0, load) / (1 - min(_Steal.now(), 0.75)))


# What a healthy guest's kernel never says, whatever happens around it.
COMPLAINT = re.compile('WARNING:|BUG:|Oops|general protection|Call Trace|hung task|is not a head|NETDEV WATCHDOG|Kernel panic')


def limit(seconds):
    """How long to wait for what normally takes less than @seconds. Ample under emulation: waiting for too short a time
    fails a test that nothing is wrong with, waiting too long only makes a failure come later."""
    return seconds * (3 if os.environ.get('VHOST_PCI_ACCEL') == 'tcg' else 1) * patience()


# A line of /proc/net/unix: somebody listens at a path, or has a connection that came in there. Says more than a socket's file: that is there
# before somebody listens, and some servers remove it as soon as their one client has come.
TAKEN = '(00010000 000[15] 01|00000000 000[15] 03) +[0-9]+ %s$'


def listened(path):
    """Does somebody of this network namespace listen at the socket @path, or has taken a connection there?"""
    with open('/proc/net/unix') as f:
        return any(re.search(TAKEN % re.escape(path), line.rstrip('\n')) for line in f)


# ---- which QEMU, which accelerator --------------------------------------------------------------------------------------


class Qemu:
    """A QEMU binary: how to run it and what differs between versions."""

    def __init__(self, name, cmd, env=None, data=()):
        self.name = name
        self.cmd = cmd
        self.env = env or {}
        self.data = list(data)
        out = subprocess.run(cmd + ['--version'], capture_output=True, text=True, env=dict(os.environ, **self.env)).stdout
        m = re.search(r'version (\d+)\.(\d+)(?:\.(\d+))?', out)
        if not m:
            raise Unavailable('%s does not run' % ' '.join(cmd))
        self.version = tuple(int(x or 0) for x in m.groups())
        self.label = 'QEMU %d.%d.%d' % self.version

    def reconnect(self, seconds):
        """The chardev option that reconnects a client socket."""
        if not seconds:
            return ''
        if self.version >= (9, 2):
            return ',reconnect-ms=%d' % int(seconds * 1000)
        return ',reconnect=%d' % max(1, int(seconds))


_qemus = {}


def qemu(name='system', make=True):
    """'system': the host's QEMU; '11': 11.1 or later, the host's if that is new enough, else of the private tree,
    which is made when it is not there (@make). Raises Unavailable with the reason."""
    if name in _qemus:
        if isinstance(_qemus[name], Unavailable):
            raise _qemus[name]
        return _qemus[name]
    try:
        if name == 'system':
            q = None
            for d in os.environ.get('PATH', '').split(':') + ['/usr/bin', '/usr/local/bin']:
                p = os.path.join(d, 'qemu-system-x86_64')
                if os.access(p, os.X_OK):
                    q = Qemu(name, [p])
                    break
            if not q:
                raise Unavailable('no qemu-system-x86_64 on this machine')
        elif name == '11':
            try:
                q = qemu('system')
            except Unavailable:
                q = None
            if not q or q.version < (11, 1):
                q = _tree_qemu(make)
        else:
            raise Unavailable('unknown QEMU %r' % name)
        _qemus[name] = q
        return q
    except Unavailable as e:
        _qemus[name] = e
        raise


def _tree_qemu(make):
    script = os.path.join(TOP, 'scripts/qemu11-tree')
    env = dict(os.environ, VHOST_PCI_CACHE=cache_dir())
    r = subprocess.run([script, '--path'], stdout=subprocess.PIPE, text=True, env=env)
    if r.returncode and not make:
        raise Unavailable('QEMU 11.1 is not on this machine, and it was not to be fetched')
    if r.returncode:
        r = subprocess.run([script], stdout=subprocess.PIPE, stderr=subprocess.PIPE if not sys.stderr else None, text=True, env=env)
    if r.returncode:
        raise Unavailable('QEMU 11.1 is not on this machine, and scripts/qemu11-tree could not make a tree with it: its last lines say why')
    t = r.stdout.strip()
    lib = t + '/usr/lib/x86_64-linux-gnu'
    # The tree's own loader and libraries: no chroot, so no root, and sockets keep their paths.
    cmd = [t + '/usr/lib64/ld-linux-x86-64.so.2' if os.path.exists(t + '/usr/lib64/ld-linux-x86-64.so.2')
           else t + '/lib64/ld-linux-x86-64.so.2', '--library-path', '%s:%s/pulseaudio' % (lib, lib), t + '/usr/bin/qemu-system-x86_64']
    return Qemu('11', cmd, {'QEMU_MODULE_DIR': lib + '/qemu'},
                ['-L', t + '/usr/share/qemu', '-L', t + '/usr/share/seabios', '-L', t + '/usr/lib/ipxe/qemu'])


def accel():
    """'kvm' when a real guest boots under it within a short time, else 'tcg'. Asked once per run of the host.

    A /dev/kvm that opens says little: nested set-ups exist where guests then hang. VHOST_PCI_ACCEL overrides.
    """
    v = os.environ.get('VHOST_PCI_ACCEL')
    if v:
        return v
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        answer = 'tcg'
    else:
        with open('/proc/sys/kernel/random/boot_id') as f:
            note = os.path.join(cache_dir(), 'accel-%s-%d' % (f.read().strip(), os.getuid()))
        try:
            with open(note) as f:
                answer = f.read().strip()
        except FileNotFoundError:
            progress('does KVM work here? (a short boot, 15 s at most)')
            answer = 'tcg'
            import shutil
            import tempfile
            d = tempfile.mkdtemp(prefix='vpk')
            vm = VM('kvmprobe', d, accel='kvm', mem=256)
            try:
                vm.start(timeout=15)
                if vm.sh('echo yes', timeout=5).strip() == 'yes':
                    answer = 'kvm'
            except VMError:
                pass
            finally:
                vm.kill()
                shutil.rmtree(d, ignore_errors=True)
            progress('KVM %s' % ('works' if answer == 'kvm' else 'does not work here: using TCG (emulation; slow)'))
            with open(note, 'w') as f:
                f.write(answer)
    os.environ['VHOST_PCI_ACCEL'] = answer
    return answer


# ---- a VM -----------------------------------------------------------------------------------------------------------------


class Net:
    """A virtio-net device whose back-end is behind a vhost-user socket.

    @server: QEMU listens and the back-end connects. @reconnect: seconds between QEMU's attempts when the back-end goes.
    @vectors: MSI-X vectors, None for the default (none on old QEMU under TCG, which crashes with them).
    @props: more properties of virtio-net-pci.
    """

    def __init__(self, sock, mac=None, server=False, queues=1, reconnect=0, vectors=None, props='', id=None, packed=False, bus=None):
        self.sock, self.mac, self.server, self.queues = sock, mac, server, queues
        self.reconnect, self.vectors, self.props, self.id = reconnect, vectors, props, id
        self.packed, self.bus = packed, bus

    def args(self, vm, i):
        id = self.id or 'n%d' % i
        char = 'socket,id=c%s,path=%s' % (id, self.sock)
        if self.server:
            char += ',server=on,wait=off'
        else:
            char += vm.qemu.reconnect(self.reconnect)
        dev = 'virtio-net-pci,netdev=%s,id=d%s' % (id, id)
        if self.mac:
            dev += ',mac=' + self.mac
        if self.queues > 1:
            dev += ',mq=on'
        vectors = self.vectors
        if vectors is None and vm.accel == 'tcg' and vm.qemu.version < (8, 0):
            vectors = 0
        if vectors is not None:
            dev += ',vectors=%d' % vectors
        elif self.queues > 1:
            dev += ',vectors=%d' % (2 * self.queues + 2)
        if self.packed:
            dev += ',packed=on'
        if self.bus:
            dev += ',bus=' + self.bus
        # The option ROM is only good for network boots and slows the firmware down.
        dev += ',romfile='
        if self.props:
            dev += ',' + self.props
        return ['-chardev', char, '-netdev', 'vhost-user,id=%s,chardev=c%s,queues=%d' % (id, id, self.queues), '-device', dev]


class UserDevice:
    """A virtio device of any other kind whose back-end is behind a vhost-user socket: @model of QEMU, such as
    vhost-user-blk-pci, with the properties @props. Goes where Net goes."""

    def __init__(self, sock, model, props='', id='vu0', reconnect=0):
        self.sock, self.model, self.props, self.id, self.reconnect = sock, model, props, id, reconnect

    def args(self, vm, i):
        char = 'socket,id=c%s,path=%s%s' % (self.id, self.sock, vm.qemu.reconnect(self.reconnect))
        dev = '%s,chardev=c%s,id=%s' % (self.model, self.id, self.id)
        # As with Net.
        if vm.accel == 'tcg' and vm.qemu.version < (8, 0):
            dev += ',vectors=0'
        return ['-chardev', char, '-device', dev + (',' + self.props if self.props else '')]


class Port:
    """A vhost-pci port: the stock device through which a device VM reaches a link. Goes where Net goes.

    @attachment 'ivshmem' or 'shmem', @pairs queue pairs of the link (or @queues of one that is not a network device's), @slots root ports for windows (ivshmem),
    @reserve their prefetchable memory: at least the driver VM's size. Ports of one VM need different ids.
    """

    def __init__(self, sock, attachment, pairs=1, id='port0', slots=2, reserve='512M', queues=None):
        self.sock, self.attachment, self.id = sock, attachment, id
        self.queues = 2 * pairs if queues is None else queues
        self.slots, self.reserve = slots, reserve

    def bus(self):
        return ['%sw%d' % (self.id, i) for i in range(self.slots)]

    def monitor(self, vm_dir, vm_name):
        """The QMP socket for the daemon: one for each port, as each takes one client at a time."""
        return os.path.join(vm_dir, vm_name + ('.qmpd' if self.id == 'port0' else '.%s.qmp' % self.id))

    def link_keys(self, vm_dir, vm_name):
        """What the link's [Device] section says beyond VM= and Socket=."""
        keys = {'Attachment': self.attachment}
        if self.attachment == 'ivshmem':
            keys['QMP'] = self.monitor(vm_dir, vm_name)
            keys['HotplugBus'] = ' '.join(self.bus())
        return keys

    def args(self, vm, i):
        nsig = 1 + self.queues
        out = ['-chardev', 'socket,id=c%s,path=%s' % (self.id, self.sock)]
        if self.attachment == 'shmem':
            return out + ['-device', 'vhost-user-test-device-pci,id=%s,chardev=c%s,virtio-id=22,num_vqs=%d,config_size=16' %
                          (self.id, self.id, nsig)]
        if self.id != 'port0':
            out += ['-chardev', 'socket,id=q%s,path=%s,server=on,wait=off' % (self.id, self.monitor(vm.dir, vm.name)),
                    '-mon', 'chardev=q%s,mode=control' % self.id]
        for n, b in enumerate(self.bus() + [self.id + 'p']):
            out += ['-device', 'pcie-root-port,id=%s,chassis=%d,slot=%d,pref64-reserve=%s' %
                    (b, 16 * i + n + 1, 16 * i + n + 1, self.reserve)]
        return out + ['-device', 'ivshmem-doorbell,id=%s,chardev=c%s,vectors=%d,bus=%sp' % (self.id, self.id, nsig, self.id)]


class GrantPort:
    """The channel over which a driver VM grants its pool to link @link: a virtio-serial port, whose other end is the daemon's
    socket @sock. Goes where Net goes."""

    def __init__(self, link, sock):
        self.link, self.sock = link, sock

    def args(self, vm, i):
        id = 'vp-%s-grant' % self.link
        # As with Net.
        serial = 'virtio-serial-pci,id=%s-bus' % id + (',vectors=0' if vm.accel == 'tcg' and vm.qemu.version < (8, 0) else '')
        return ['-chardev', 'socket,id=%s,path=%s%s' % (id, self.sock, vm.qemu.reconnect(1)), '-device', serial,
                '-device', 'virtserialport,bus=%s-bus.0,chardev=%s,name=org.vhost-pci.grant.%s' % (id, id, self.link)]


# Seconds between bytes that are sent to a guest that says nothing: one interrupt of its serial port may have been lost.
NUDGE = 5


class Job:
    """A command that runs in the guest."""

    def __init__(self, vm, text, timeout):
        self.vm, self.text, self.timeout = vm, text, timeout
        self.status = None
        self.out = ''
        self.event = threading.Event()

    def result(self, timeout=None, check=True):
        """The command's output. Raises VMError when it fails, or when there is no answer in time."""
        now = time.time()
        end, nudge = now + (self.timeout + 10 if timeout is None else timeout), now + NUDGE
        while not self.event.wait(0.2):
            if self.vm.proc is None or self.vm.proc.poll() is not None:
                raise VMError('%s: the VM ended during: %s\n%s' % (self.vm.name, self.text, self.vm.tail()))
            if time.time() > end:
                raise VMError('%s: no answer within the time to: %s\n%s' % (self.vm.name, self.text, self.vm.tail()))
            if time.time() > nudge:
                self.vm.nudge()
                nudge += NUDGE
        if self.status is None:
            raise VMError('%s: the guest restarted during: %s' % (self.vm.name, self.text))
        if check and self.status:
            raise VMError('%s: status %d from: %s\n%s' % (self.vm.name, self.status, self.text, self.out))
        return self.out


class VM:
    """One guest under QEMU.

    @qemu 'system' or '11' (or a Qemu), @kernel a name in image.KERNELS, @nets Net objects, @extra further QEMU arguments,
    @files/@programs/@boot_modules/@rc go into the initramfs (see image.initramfs). @dir holds sockets and logs: keep its
    name short, socket paths end at 107 bytes. @incoming: it waits for a guest that another VM's migrate() brings.
    @maxmem: up to where memory could be plugged, such as '4G'; nothing is.
    """

    def __init__(self, name, dir, qemu='system', kernel='6.1', mem=256, smp=1, nets=(), extra=(), append='', files=None,
                 programs=(), boot_modules=(), rc=None, accel=None, machine='q35', mem_args=None, cpu=None, incoming=False,
                 maxmem=None):
        self.name, self.dir = name, dir
        self.qemu = qemu if isinstance(qemu, Qemu) else globals()['qemu'](qemu)
        self.accel = accel or globals()['accel']()
        self.mem, self.smp, self.nets, self.extra, self.append = mem, smp, list(nets), list(extra), append
        self.machine, self.mem_args, self.maxmem = machine, mem_args, maxmem
        # As an AMD processor, TCG's `max` leaves 64-bit hot-plugged BARs without an address.
        self.cpu = cpu or ('host' if self.accel == 'kvm' else 'max,vendor=GenuineIntel')
        self.kernel = kernel if isinstance(kernel, image.Kernel) else image.kernel(kernel)
        os.makedirs(dir, exist_ok=True)
        self.initrd = os.path.join(dir, name + '.initrd')
        if files or programs or boot_modules or rc:
            image.initramfs(self.kernel, self.initrd, files, programs, boot_modules, rc)
        else:
            self.initrd = image.base_initramfs(self.kernel)
        self.kernel_args = True     # False: the firmware boots from a disk
        self.incoming = os.path.join(dir, name + '.incoming') if incoming else None
        self.console = os.path.join(dir, name + '.console')
        self.errlog = os.path.join(dir, name + '.qemu')
        self.proc = None
        self.boots = 0
        self.started = 0
        self.events = []
        self._ready = threading.Condition()
        self._jobs = {}
        self._next = 1
        self._qlock = threading.Lock()
        self._alock = threading.Lock()
        self._qmp = None
        self._agent = None
        self._boot = None
        self._reader = None
        self._rest = b''            # of the guest's words, not yet a whole frame
        self._heir = None           # an incoming migration: set when the guest has come

    # -- life

    def command(self):
        a = os.path.join(self.dir, self.name + '.agent')
        q = os.path.join(self.dir, self.name + '.qmp')
        # A second QMP socket, for the daemon and the port called port0.
        q2 = os.path.join(self.dir, self.name + '.qmpd')
        for s in (a, q, q2, self.incoming):
            if s and os.path.exists(s):
                os.unlink(s)
        self._asock, self._qsock = a, q
        mem, machine = self.mem_args, self.machine
        if mem is None:
            mem = ['-object', 'memory-backend-memfd,id=mem,size=%dM,share=on' % self.mem,
                   '-m', '%d%s' % (self.mem, 'M,slots=1,maxmem=' + self.maxmem if self.maxmem else '')]
            machine += ',memory-backend=mem'
        cmd = self.qemu.cmd + self.qemu.data + [
            '-name', self.name, '-nodefaults', '-no-user-config', '-display', 'none', '-M', machine,
            '-accel', self.accel + (',thread=multi' if self.accel == 'tcg' else ''), '-cpu', self.cpu, '-smp', str(self.smp)] + mem + [
            '-chardev', 'file,id=con,path=%s,append=on' % self.console, '-serial', 'chardev:con',
            '-chardev', 'socket,id=agent,path=%s,server=on,wait=off' % a, '-serial', 'chardev:agent',
            '-chardev', 'socket,id=qmp,path=%s,server=on,wait=off' % q, '-mon', 'chardev=qmp,mode=control',
            '-chardev', 'socket,id=qmpd,path=%s,server=on,wait=off' % q2, '-mon', 'chardev=qmpd,mode=control']
        cmd += ['-kernel', self.kernel.image, '-initrd', self.initrd, '-append', self.cmdline()] if self.kernel_args else []
        for i, n in enumerate(self.nets):
            cmd += n.args(self, i)
        if self.incoming:
            cmd += ['-incoming', 'unix:' + self.incoming]
        return cmd + self.extra

    def cmdline(self):
        return ('console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1 '
                'audit=0 mitigations=off net.ifnames=0 ' + self.append)

    def start(self, wait=True, timeout=None):
        """Start QEMU; with @wait until the guest answers (returns the seconds that took)."""
        if self.proc is not None:
            raise VMError('%s is already running' % self.name)
        t0 = time.time()
        cmd = self.command()
        self.boots = 0
        self.events = []
        self._qmp = self._agent = self._boot = None
        err = open(self.errlog, 'a')
        err.write('\n' + ' '.join(cmd) + '\n')
        err.flush()
        self.proc = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=err, stderr=err, env=dict(os.environ, **self.qemu.env),
                                     preexec_fn=die_with_parent)
        err.close()
        self.started = t0
        proc = self.proc
        self._rest = b''
        self._heir = threading.Event() if self.incoming else None
        self._reader = threading.Thread(target=self._agent_reader, args=(proc,), daemon=True)
        self._reader.start()
        if wait:
            self.wait_ready(1, timeout)
        return time.time() - t0

    def wait_ready(self, boots=1, timeout=None):
        """Wait until the guest's agent has answered @boots times since QEMU started."""
        if timeout is None:
            timeout = (40 if self.accel == 'kvm' else 120) * patience()
        end, nudge = time.time() + timeout, time.time() + NUDGE
        with self._ready:
            while self.boots < boots:
                self._ready.wait(0.2)
                if time.time() > nudge:
                    self.nudge()
                    nudge += NUDGE
                if self.proc is None or self.proc.poll() is not None:
                    raise VMError('%s: QEMU ended (status %s)\n%s' % (self.name, self.proc and self.proc.returncode, self.tail()))
                if time.time() > end:
                    raise VMError('%s: the guest did not come up within %d s\n%s\n%s' % (self.name, timeout, self.where(), self.tail()))

    def alive(self):
        return self.proc is not None and self.proc.poll() is None

    def kill(self, sig=signal.SIGKILL):
        """End QEMU the hard way."""
        p, self.proc = self.proc, None
        if p is None:
            return
        if p.poll() is None:
            p.send_signal(sig)
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
        self._drop_jobs()
        self._qmp = None

    def stop(self):
        """End QEMU the orderly way (SIGTERM)."""
        self.kill(signal.SIGTERM)

    def reset(self, wait=True):
        """system_reset. Returns the seconds until the guest answers again."""
        return self._again(lambda: self.qmp('system_reset'), wait)

    def reboot(self, wait=True):
        """The guest reboots itself."""
        # Interfaces first, as an orderly shutdown does: Linux 6.1.192 takes a virtio device away under the driver (device_shutdown), and
        # virtio_net then waits in start_xmit() for ever.
        return self._again(lambda: self.spawn('sleep 0.1; for i in /sys/class/net/*; do ip link set ${i##*/} down; done; reboot -f', 20), wait)

    def _again(self, how, wait):
        t0 = time.time()
        n = self.boots
        how()
        if wait:
            self.wait_ready(n + 1)
        return time.time() - t0

    # -- commands in the guest

    def spawn(self, text, timeout=30):
        """Start a shell command; Job.result() waits for it. @timeout as for limit()."""
        timeout = limit(timeout)
        job = Job(self, text, timeout)
        with self._ready:
            n = self._next
            self._next += 1
            self._jobs[n] = job
        self._send(('C %d %g\n%s' % (n, timeout, text)).encode())
        return job

    def sh(self, text, timeout=30, check=True):
        """Run a shell command in the guest and return its output (stdout and stderr)."""
        return self.spawn(text, timeout).result(check=check)

    def until(self, condition, timeout=20, otherwise=''):
        """Wait until a shell condition holds in the guest. @otherwise: commands that say more when it does not in time."""
        n = int(limit(timeout) * 10)
        self.sh('for i in $(seq %d); do (%s) && exit 0; sleep 0.1; done; %s exit 1' % (n, condition, otherwise and otherwise + ';'),
                2 * timeout + 30)

    def status(self, text, timeout=30):
        """Run a shell command, return (status, output)."""
        job = self.spawn(text, timeout)
        out = job.result(check=False)
        return job.status, out

    def complain(self):
        """A job that says what complaints() returns, for asking several guests at once."""
        return self.spawn("dmesg | grep -E '%s'" % COMPLAINT.pattern)

    def complaints(self, job=None):
        """Lines of the kernel's log that tell of something broken."""
        return (job or self.complain()).result(check=False).splitlines()

    def _send(self, payload):
        s = self._agent
        if s is None:
            raise VMError('%s: no connection to the guest' % self.name)
        body = b''.join(bytes((1, b ^ 0x40)) if 1 <= b <= 3 else bytes((b,)) for b in payload)
        try:
            with self._alock:
                s.sendall(b'\2' + body + b'\3')
        except OSError as e:
            raise VMError('%s: %s' % (self.name, e))

    def nudge(self):
        """Ask the guest who it is: what it had to say before is said then, too."""
        try:
            with self._alock:
                self._agent.send(b'\5', socket.MSG_DONTWAIT)
        except (AttributeError, OSError):
            pass        # not there yet, or its port is full

    def _agent_reader(self, proc):
        s = None
        while proc.poll() is None:
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(self._asock)
                break
            except OSError:
                s.close()
                s = None
                time.sleep(0.05)
        if s is None:
            return
        self._agent = s
        while self._heir and not self._heir.wait(0.2):
            if proc.poll() is not None:
                return
        while True:
            try:
                d = s.recv(65536)
            except OSError:
                d = b''
            if not d:
                break
            self._rest += d
            while self._rest:
                i = self._rest.find(b'\2')
                self._rest = self._rest[i:] if i >= 0 else b''
                ends = [i for i in (self._rest.find(b'\3', 1), self._rest.find(b'\2', 1)) if i >= 0]
                if not ends:
                    break
                i = min(ends)
                frame, whole = self._rest[1:i], self._rest[i] == 3
                self._rest = self._rest[i + whole:]
                if whole:               # else cut short by a reset
                    self._frame(re.sub(b'\1(.)', lambda m: bytes((m.group(1)[0] ^ 0x40,)), frame, flags=re.S))
        s.close()

    # -- migration

    def migrate(self, to, timeout=60, mib_per_s=64):
        """Move the guest to @to, a VM that was started with @incoming and has the same devices. Its running commands
        go on there. Returns query-migrate's answer; this VM has ended."""
        self.qmp('migrate-set-parameters', max_bandwidth=mib_per_s << 20)
        end = time.time() + limit(30)
        while not listened(to.incoming):
            if not to.alive():
                raise VMError('%s: QEMU ended (status %s)\n%s' % (to.name, to.proc and to.proc.returncode, to.tail()))
            if time.time() > end:
                raise VMError('%s: QEMU awaits no guest: does who serves its devices answer?\n%s' % (to.name, to.tail()))
            time.sleep(0.02)
        self.qmp('migrate', uri='unix:' + to.incoming)
        end = time.time() + limit(timeout)
        while True:
            r = self.qmp('query-migrate')
            if r['status'] in ('completed', 'failed', 'cancelled'):
                break
            if time.time() > end:
                raise VMError('%s: the migration does not end: %r\n%s' % (self.name, r, self.tail()))
            time.sleep(0.05)
        if r['status'] != 'completed':
            raise VMError('%s: the migration %s: %s\n%s\n%s' % (self.name, r['status'], r.get('error-desc'), self.tail(), to.tail()))
        jobs, self._jobs = self._jobs, {}
        for j in jobs.values():
            j.vm = to
        p, self.proc = self.proc, None
        p.terminate()
        p.wait(limit(10))
        self._reader.join()
        self._qmp = None
        # The guest's numbers of commands go on.
        to._jobs, to._next, to._rest, to.boots, to._boot = jobs, self._next, self._rest, self.boots, self._boot
        to._heir.set()
        return r

    def _frame(self, data):
        head, _, body = data.partition(b'\n')
        w = head.split()
        if w and w[0] == b'H':
            if w[1:] == self._boot:
                return
            self._boot = w[1:]
            self._drop_jobs()
            with self._ready:
                self.boots += 1
                self._ready.notify_all()
        elif len(w) == 4 and w[0] == b'R':
            job = self._jobs.pop(int(w[1]), None)
            if job:
                job.status = int(w[2])
                job.out = body.decode('utf-8', 'replace')
                job.event.set()

    def _drop_jobs(self):
        with self._ready:
            jobs, self._jobs = self._jobs, {}
        for j in jobs.values():
            j.event.set()

    # -- QMP

    def qmp(self, cmd, _timeout=20, **args):
        """One QMP command; returns what it returned. Raises VMError with QEMU's message."""
        _timeout = limit(_timeout)
        with self._qlock:
            if self._qmp is None:
                end = time.time() + _timeout
                while True:
                    s = socket.socket(socket.AF_UNIX)
                    try:
                        s.connect(self._qsock)
                        break
                    except OSError as e:
                        s.close()
                        if time.time() > end or not self.alive():
                            raise VMError('%s: QMP: %s' % (self.name, e))
                        time.sleep(0.05)
                self._qmp = [s, b'']
                self._qmp_line(_timeout)
                self._qmp_send('qmp_capabilities', {}, _timeout)
            return self._qmp_send(cmd, args, _timeout)

    def _qmp_line(self, timeout):
        s, buf = self._qmp
        end = time.time() + timeout
        while b'\n' not in buf:
            if not select.select([s], [], [], max(0, end - time.time()))[0]:
                raise VMError('%s: no answer on QMP within %d s' % (self.name, timeout))
            try:
                d = s.recv(65536)
            except ConnectionResetError:
                d = b''
            if not d:
                self._qmp = None
                raise VMError('%s: QMP closed\n%s' % (self.name, self.tail()))
            buf += d
        line, _, rest = buf.partition(b'\n')
        self._qmp[1] = rest
        return json.loads(line)

    def _qmp_send(self, cmd, args, timeout):
        msg = {'execute': cmd}
        if args:
            msg['arguments'] = {k.replace('_', '-') if cmd != 'device_add' else k: v for k, v in args.items()}
        self._qmp[0].sendall(json.dumps(msg).encode() + b'\n')
        while True:
            r = self._qmp_line(timeout)
            if 'event' in r:
                self.events.append(r)
            elif 'error' in r:
                raise VMError('%s: QMP %s: %s' % (self.name, cmd, r['error'].get('desc')))
            elif 'return' in r:
                return r['return']

    def wait_event(self, name, timeout=15):
        """Wait for the QMP event @name (takes it out of self.events)."""
        timeout = limit(timeout)
        end = time.time() + timeout
        while time.time() < end:
            for i, e in enumerate(self.events):
                if e['event'] == name:
                    return self.events.pop(i)
            self.qmp('query-status')
            time.sleep(0.05)
        raise VMError('%s: no event %s within %d s' % (self.name, name, timeout))

    # -- for people

    def tail(self, lines=25):
        """The end of the logs, for a message about a failure."""
        out = []
        for what, path in (('console', self.console), ('QEMU', self.errlog)):
            try:
                with open(path, errors='replace') as f:
                    t = f.read().splitlines()[-lines:]
            except FileNotFoundError:
                continue
            out += ['--- %s of %s (%s)' % (what, self.name, path)] + [x[:300] for x in t if x.strip()]
        return '\n'.join(out)

    def where(self):
        """What a guest that hangs is doing: each CPU's place, twice; where QEMU's threads sleep."""
        out = []
        for _ in range(2):
            try:
                r = self.qmp('human-monitor-command', command_line='info registers -a', _timeout=5)
                out.append('CPUs: ' + '; '.join(re.findall(r'RIP=\w+|HLT=\d', r)))
            except (VMError, OSError) as e:
                out.append(str(e).splitlines()[0])
            time.sleep(0.5)
        tasks = '/proc/%d/task' % self.proc.pid
        for t in sorted(os.listdir(tasks)):
            try:
                about = [open(os.path.join(tasks, t, f)).read().strip() for f in ('comm', 'wchan', 'stat')]
                out.append('thread %s: state %s, in %s' % (about[0], about[2].rpartition(')')[2].split()[0], about[1]))
            except OSError:
                pass
        return '\n'.join(out)

    # -- convenience for a guest with one or more virtio-net interfaces

    def up(self, addr, dev='eth0', mtu=None, peers=()):
        """Bring @dev up with the address @addr (a.b.c.d/len)."""
        self.sh('%sip link set %s up && ip addr replace %s dev %s' %
                ('ip link set %s mtu %d; ' % (dev, mtu) if mtu else '', dev, addr, dev))


def die_with_parent():
    # A VM does not outlive its harness, whatever ends that.
    import ctypes
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
