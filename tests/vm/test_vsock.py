# SPDX-License-Identifier: BSD-3-Clause
"""Sockets between a driver VM and a device VM: vhost-vsock of the device VM's kernel, the stock driver in the driver VM."""

import os

import image
import portlink
import pytest
import vhostpci_vm as v

HERE = os.path.dirname(os.path.abspath(__file__))
LINK, CID = 'sock', 42
PORT = 5000


class Vsock:
    def __init__(self, lab, mode, attachment, driver_qemu, device_qemu):
        d = self.daemon = lab.daemon
        groups = ('blue', 'blue') if mode == 'fast' else ('blue', 'red')
        files = {'bin/vsockio': (image.program(os.path.join(HERE, 'vsockio.c')), 0o755)}
        try:
            self.driver = portlink.guest(d, 'left', groups[0], qemu=driver_qemu, files=files)
            self.device = portlink.guest(d, 'right', groups[1], device=True, qemu=device_qemu, files=files)
        except v.Unavailable as e:
            pytest.skip(str(e))
        lab.vms += [self.driver, self.device]
        port = v.Port(d.path(LINK + '-device.sock'), attachment, queues=2)
        socks = d.link(LINK, 'left', 'right', mode=mode, endpoint='port', Type='vsock', profile_keys={'CID': CID},
                       device_keys=port.link_keys(d.dir, 'right'))
        self.device.nets.append(port)
        self.driver.nets.append(v.UserDevice(socks[0], 'vhost-user-vsock-pci'))
        d.start()
        lab.boot(self.driver, self.device)
        self.serve()
        self.driver.sh('modprobe vmw_vsock_virtio_transport')
        self.wait_up()

    def serve(self):
        self.device.sh('modprobe vhost_vsock')
        self.start_agent()

    def start_agent(self):
        self.device.sh('(setsid vhost-pci-agent --vsock %d --wait >/run/agent.log 2>&1 & echo $! >/run/agent.pid)' % CID)

    def wait_up(self):
        self.device.until('grep -q "link up" /run/agent.log', 30, 'cat /run/agent.log')

    def end_agent(self, sig='TERM'):
        self.device.sh('kill -%s $(cat /run/agent.pid)' % sig)
        self.device.until('! kill -0 $(cat /run/agent.pid) 2>/dev/null', 10)

    def streams(self, listener, talker, cid, n, size, timeout=120):
        """@n connections from @talker to @cid, @size bytes each way on each, every byte checked at both ends."""
        Vsock.port = port = getattr(Vsock, 'port', PORT) + 1
        job = listener.spawn('vsockio listen %d %d %d 2>/run/listen.%d' % (port, n, size, port), timeout)
        listener.until('grep -q listening /run/listen.%d' % port, 20)
        out = talker.sh('vsockio connect %d %d %d %d' % (cid, port, n, size), timeout)
        assert v.kv(out) == v.kv(job.result()) == {'connections': n, 'bytes': size}

    def story(self):
        return '\n'.join([str(self.daemon.ctl('show', LINK)), self.daemon.tail(10),
                          self.device.sh('cat /run/agent.log; dmesg | tail -n 15', check=False), self.driver.sh('dmesg | tail -n 10', check=False)])


POINTS = [('copy', 'ivshmem', 'system', 'system'), ('fast', 'ivshmem', 'system', 'system'), ('copy', 'shmem', 'system', '11'),
          ('fast', 'shmem', '11', '11')]


@pytest.mark.parametrize('point', POINTS, ids=['-'.join(p) for p in POINTS])
def test_vsock(lab, point):
    """Streams both ways, opened by either side, 64 connections at once; a new agent after one that was killed."""
    k = Vsock(lab, *point)
    try:
        k.streams(k.driver, k.device, CID, 1, 2 << 20)
        k.streams(k.device, k.driver, 2, 1, 2 << 20)
        k.streams(k.driver, k.device, CID, 64, 64 << 10)
        k.streams(k.device, k.driver, 2, 64, 64 << 10)
        v.note('one and 64 connections, opened by either side, every byte right')
        # Connections of a dead vhost-vsock: reset at once in the device VM, in the driver VM when it next sends. New ones work.
        server = k.driver.spawn('VSOCKIO_SLOW=1 vsockio listen 4999 1 100000000 2>/run/listen.4999', 240)
        k.driver.until('grep -q listening /run/listen.4999', 20)
        client = k.device.spawn('VSOCKIO_SLOW=1 vsockio connect %d 4999 1 100000000' % CID, 240)
        k.driver.until('grep -q sending /run/listen.4999', 30)
        k.end_agent('KILL')
        assert client.result(check=False) and client.status == 1, client.out
        k.start_agent()
        k.wait_up()
        assert server.result(check=False) and server.status == 1, server.out
        k.streams(k.driver, k.device, CID, 4, 256 << 10)
        k.streams(k.device, k.driver, 2, 4, 256 << 10)
    except (v.VMError, AssertionError) as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    assert not k.driver.complaints() and not k.device.complaints()
    assert k.daemon.alive()
    v.note('the agent was killed and started again: old connections were reset, new ones work')


def test_device_vm_killed(lab):
    """Copy mode: SIGKILL of the device VM with connections open, in both directions. When it has booted again, the driver VM's next send is
    answered by a reset, and new connections work."""
    k = Vsock(lab, *POINTS[0])
    slow = 'VSOCKIO_SLOW=1 vsockio '
    try:
        server = k.driver.spawn(slow + 'listen 4999 1 100000000 2>/run/listen.4999', 600)
        k.device.sh('(%s listen 4998 1 100000000 >/dev/null 2>/run/listen.4998 &)' % slow)
        k.driver.until('grep -q listening /run/listen.4999', 20)
        k.device.until('grep -q listening /run/listen.4998', 20)
        k.device.sh('(%s connect %d 4999 1 100000000 >/run/connect.out 2>&1 &)' % (slow, CID))
        client = k.driver.spawn(slow + 'connect 2 4998 1 100000000 2>/run/connect.4998', 600)
        # A program that only waits would go on waiting.
        k.driver.until('grep -q sending /run/listen.4999 && grep -q sending /run/connect.4998', 30)
        assert server.status is None and client.status is None
        k.device.kill()
        lab.boot(k.device)
        k.serve()
        k.wait_up()
        for job in (server, client):
            assert 'without progress' not in job.result(check=False) and job.status == 1, job.out
        k.streams(k.driver, k.device, CID, 4, 256 << 10)
        k.streams(k.device, k.driver, 2, 4, 256 << 10)
    except (v.VMError, AssertionError) as e:
        raise v.VMError('%s\n%s' % (e, k.story()))
    assert not k.driver.complaints() and k.daemon.alive()
    v.note('old connections were reset, new ones work')


def test_module_is_held_once_for_each_file(lab):
    """An agent that has ended leaves no hold of the module, and has not taken one too many: the next one can open the port."""
    k = Vsock(lab, *POINTS[0])
    refs = []
    for _ in range(3):
        k.end_agent()
        refs.append(int(k.device.sh('cat /sys/module/vhost_pci/refcnt')))
        k.start_agent()
        k.wait_up()
    assert refs == [0, 0, 0]


def test_wrong_cid(lab):
    """Another CID than the link's is refused by name, and the right one afterwards serves."""
    k = Vsock(lab, *POINTS[0])
    k.end_agent()
    k.device.sh('(setsid vhost-pci-agent --vsock 77 --wait >/run/wrong.log 2>&1 & echo $! >/run/agent.pid)')
    k.device.until('grep -q "back-end is refused" /run/wrong.log', 5, 'cat /run/wrong.log')
    assert 'CID 77' in k.daemon.ctl('show', LINK)['sides']['device']['misfit']
    k.end_agent()
    k.start_agent()
    k.wait_up()
    k.streams(k.driver, k.device, CID, 1, 100000)
