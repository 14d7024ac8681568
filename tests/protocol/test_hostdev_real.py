# SPDX-License-Identifier: BSD-3-Clause
"""Endpoint=vhost-user with unmodified back-ends: qemu-storage-daemon, virtiofsd, DPDK's testpmd."""
import os
import shutil
import signal
import struct
import subprocess
import time

import pytest

import blk
import vu
from blk import Driver, pattern
from test_hostdev import FAST, MODES, NAMES, dev, device, drv, make  # noqa: F401 (a fixture)

class StorageDaemon:
    def __init__(self, d, size=16 << 20):
        self.image, self.path = d.tmp / "disk.img", dev(d)
        with open(self.image, "wb") as f:
            f.truncate(size)
        self.proc = None

    def start(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.proc = subprocess.Popen(["qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={self.image},discard=unmap", "--export",
                                      f"vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={self.path},writable=on"])

    def kill(self):
        self.proc.kill()
        self.proc.wait()


@pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (package qemu-system-common)")
def test_qemu_storage_daemon(make):
    """What was written is read back; it is killed with requests under way, again and again, and none is lost."""
    d = make()
    s = StorageDaemon(d)
    s.start()
    try:
        with Driver(drv(d), mem_size=64 << 20) as f:
            for i, n in enumerate([512, 4096, 65536, 1 << 20]):
                f.write(2048 * i, pattern(n, i), cut=16384)
                assert f.read(2048 * i, n, cut=16384) == pattern(n, i)
            for life in range(5):
                # It dies with all of them, or (every other time) with those that it has not answered yet.
                if life & 1:
                    s.proc.send_signal(signal.SIGSTOP)
                asked = [f.request(blk.OUT, 8 * i, pattern(4096, 100 * life + i)) for i in range(32)]
                if life & 1:
                    d.wait(lambda: device(d)["requests_open"] == 32)
                s.kill()
                asked += [f.request(blk.IN, 2048 * 3, length=65536, cut=65536) for i in range(4)]
                s.start()
                assert all(f.wait(t)[0] == blk.OK for t in asked)
                for i in range(32):
                    assert f.read(8 * i, 4096) == pattern(4096, 100 * life + i)
            assert f.wait(f.request(blk.DO_FLUSH, 0))[0] == blk.OK
            assert device(d)["requests_failed"] == 0 and device(d)["dropped"] == 0 and device(d)["requests_given_again"] >= 64
    finally:
        s.kill()


@pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (package qemu-system-common)")
def test_qemu_storage_daemon_fast(make):
    """Driver VMs come, stop and start their rings, and go; it serves the next one. It keeps no account: killed idle, nothing is lost."""
    d = make(**FAST)
    s = StorageDaemon(d)
    s.start()
    try:
        for life in range(3):
            with Driver(drv(d), mem_size=64 << 20) as f:
                for i, n in enumerate([512, 4096, 65536, 1 << 20]):
                    f.write(2048 * i, pattern(n, i + life), cut=16384)
                    assert f.read(2048 * i, n, cut=16384) == pattern(n, i + life)
                f.start_ring(0, f.rings[0], base=f.stop_ring(0))
                asked = [f.request(blk.OUT, 8 * i, pattern(4096, i)) for i in range(32)]
                assert all(f.wait(t)[0] == blk.OK for t in asked)
                if life == 1:
                    s.kill()
                    d.wait(lambda: not device(d)["connected"])
                    s.start()
                    assert f.read(8, 4096) == pattern(4096, 1)
        assert device(d)["dropped"] == 0
    finally:
        s.kill()


VIRTIOFSD = next((p for p in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd") if os.path.exists(p)), None)


class FuseDriver(Driver):
    """A virtio-fs driver: FUSE requests (include/uapi/linux/fuse.h) on queue 1."""

    def ask_fuse(self, opcode, node, body, room, q=1):
        """The answer's body, or the error as a negative number."""
        size = 40 + len(body)
        at, to = self.mem.alloc(size), self.mem.alloc(16 + room)
        self.mem.map[at:at + size] = struct.pack("<IIQQIIII", size, opcode, 7, node, 0, 0, 1, 0) + body
        self.rings[q].add([(at, size, False), (to, 16 + room, True)], None)
        self.kick(q)
        end = time.monotonic() + 20
        while self.rings[q].get() is None:
            assert time.monotonic() < end, f"FUSE request {opcode} was not answered"
            time.sleep(0.001)
        n, err, unique = struct.unpack_from("<IiQ", self.mem.map, to)
        assert unique == 7
        return err or bytes(self.mem.map[to + 16:to + n])

    def read_file(self, name, n):
        assert len(self.ask_fuse(26, 0, struct.pack("<IIII", 7, 31, 1 << 17, 0) + bytes(48), 256)) >= 24  # INIT
        node, = struct.unpack_from("<Q", self.ask_fuse(1, 1, name + b"\0", 128))  # LOOKUP
        handle, = struct.unpack_from("<Q", self.ask_fuse(14, node, struct.pack("<II", os.O_RDONLY, 0), 16))  # OPEN
        return self.ask_fuse(15, node, struct.pack("<QQIIQII", handle, 0, n, 0, 0, 0, 0), n)  # READ


@pytest.mark.skipif(not VIRTIOFSD or os.geteuid(), reason="virtiofsd is not installed (package virtiofsd, or qemu-system-common of Debian 12), or this is not root")
@pytest.mark.parametrize("keys", MODES, ids=NAMES)
def test_virtiofsd(make, keys):
    """It ends with its connection, and is started again for the next driver VM."""
    d = make(Link_Type="fs", Link_Queues=1, **keys)
    shared = d.tmp / "shared"
    shared.mkdir()
    data = os.urandom(100000)
    (shared / "hello").write_bytes(data)
    old = VIRTIOFSD.startswith("/usr/lib/qemu")
    args = ["-o", f"source={shared}", "-o", "sandbox=chroot"] if old else ["--shared-dir", str(shared), "--sandbox=chroot"]
    for life in range(2):
        if os.path.exists(dev(d)):
            os.unlink(dev(d))
        proc = subprocess.Popen([VIRTIOFSD, f"--socket-path={dev(d)}", *args], stderr=subprocess.DEVNULL)
        try:
            is_attached = lambda: device(d).get("attached")
            d.wait(is_attached)
            with FuseDriver(drv(d), vu.bit(vu.VERSION_1, vu.INDIRECT, vu.EVENT_IDX), queues=2,
                            protocol=vu.bit(vu.PF_MQ, vu.PF_REPLY_ACK)) as f:
                assert f.read_file(b"hello", len(data)) == data
        finally:
            proc.kill()
            proc.wait()
        d.wait(lambda: not device(d)["connected"])


def echoed(nic, sent):
    """It is a network: what comes while testpmd starts its port, or has no time, may be lost."""
    for _ in range(60):
        nic.send_packet(sent)
        while (got := nic.recv_packet(0.5)) is not None:
            if got[1] == sent[6:12] + sent[:6] + sent[12:]:
                return
    raise AssertionError("no packet came back")


@pytest.mark.skipif(not shutil.which("dpdk-testpmd"), reason="dpdk-testpmd is not installed (package dpdk)")
@pytest.mark.parametrize("keys", [{"Device_PackedRings": None}, {"Link_Mode": "fast", "Device_PackedRings": "yes"}], ids=NAMES)
def test_dpdk(make, keys):
    """testpmd's vhost device sends back what it receives, for one driver VM and the next one."""
    d = make(Link_Type="net", Net_Offloads="csum mrgbuf", **keys)
    cmd = ["dpdk-testpmd", "-l", "0,1", "--no-pci", "--no-huge", "-m", "128", "--no-telemetry", "--file-prefix", f"vp{os.getpid()}",
           "--vdev", f"net_vhost0,iface={dev(d)},queues=1", "--", "--forward-mode=macswap", "--auto-start", "--nb-cores=1",
           "--port-topology=loop", "--total-num-mbufs=4096", "--stats-period=600"]
    proc = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for life in range(2):
            with vu.Nic(drv(d)) as nic:
                d.wait(lambda: d.show("ab")["status"] == "up", timeout=30)
                for i in range(30):
                    echoed(nic, vu.frame(i, 60 + 20 * i))
            d.wait(lambda: d.show("ab")["status"] != "up")
    finally:
        proc.kill()
        proc.wait()
