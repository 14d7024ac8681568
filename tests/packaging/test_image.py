# SPDX-License-Identifier: BSD-3-Clause
"""packaging/image: a device VM whose disk make-image made of the packages serves its port without a command in it."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

TOP = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(TOP / "scripts/vm")]

import debtree  # noqa: E402
import hotplug  # noqa: E402
import vhostpci_vm as v  # noqa: E402

pytestmark = pytest.mark.slow
BUILD = os.path.abspath(os.environ.get("VHOST_PCI_BUILD") or TOP / "build")
MAKE = TOP / "packaging/image/make-image"
DEVICE, DRIVER = "10.0.0.1", "10.0.0.2/24"  # the first is vhp0's, by packaging/network/50-vhp.network
BOOT = 600  # s under emulation: all of Debian


class DiskVM(v.VM):
    """Boots Debian from a disk that stays as it is. It has no command agent: nobody says a word to it."""

    def __init__(self, name, dir, disk, port):
        super().__init__(name, dir, mem=1024, smp=2)
        self.disk, self.port = disk, port

    def cmdline(self):
        return "root=/dev/vda rw console=ttyS0 no_timer_check tsc=reliable mitigations=off"

    def command(self):
        self.kernel_args = False
        return super().command() + [
            "-kernel", f"{self.disk}/vmlinuz", "-initrd", f"{self.disk}/initrd.img", "-append", self.cmdline(),
            "-drive", f"file={self.disk}/disk.img,if=none,id=root,format=raw,snapshot=on",
            "-device", "virtio-blk-pci,drive=root" + (",vectors=0" if self.accel == "tcg" and self.qemu.version < (8, 0) else ""), *self.port]


@pytest.fixture(scope="module")
def disk(debs):
    """VHOST_PCI_IMAGE names a directory with what make-image made before."""
    made = os.environ.get("VHOST_PCI_IMAGE")
    if made:
        yield made
        return
    if debtree.SUITE != debtree.HERE:
        pytest.skip("the packages are for another Debian than this one")
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed (package mmdebstrap)")
    tmp = tempfile.mkdtemp(prefix="vpimg")
    try:
        t = time.time()
        r = subprocess.run([MAKE, "--debs", debs["vhost-pcid"].parent, tmp], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert not r.returncode, r.stdout[-3000:]
        print(f"the disk was made in {time.time() - t:.0f} s")
        yield tmp
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


@pytest.fixture
def vms(disk):
    """(daemon, driver VM, device VM): a copy link ab, the device VM with the arguments that `generate` prints for it."""
    dir = tempfile.mkdtemp(prefix="vp", dir="/tmp")
    started = []
    try:
        try:
            d = v.Daemon(dir, BUILD)
            d.vm("a", "blue")
            d.vm("b", "red")
            driver, device = d.link("ab", "a", "b", mode="copy", endpoint="port", device_keys={"Attachment": "ivshmem"})
            a = v.VM("a", dir, nets=[v.Net(driver, reconnect=1)])
        except v.Unavailable as e:
            pytest.skip(str(e))
        started.append(d)
        d.start()
        b = DiskVM("b", dir, disk, d.ctl("generate", "ab", "--qemu", "--device", "--index", "1"))
        started += [a, b]
        yield d, a, b, device
    finally:
        for x in reversed(started):
            x.kill()
        shutil.rmtree(dir)


def answers(a, b, d, seconds):
    """Seconds until the driver VM reaches vhp0."""
    try:
        return v.wait_ping(a, DEVICE, seconds)
    except v.VMError as e:
        raise AssertionError(f"{e}\n{b.tail(40)}\n{d.ctl('show', 'ab')}")


def test_serves_without_a_command(vms):
    """The tap of port 0 comes up by itself with its address, and again when the port was unplugged and plugged."""
    d, a, b, sock = vms
    t = time.time()
    b.start(wait=False)
    a.start()
    a.up(DRIVER)
    answers(a, b, d, BOOT)
    print(f"vhp0 answered {time.time() - t:.0f} s after both VMs were started ({b.accel})")
    t = time.time()
    hotplug.unplug(b, "vp-ab-port", 120, char="vp-ab")
    assert v.silent(a, DEVICE)
    hotplug.plug(b, "vp-ab-port", sock, char="vp-ab", driver="ivshmem-doorbell", vectors=3, bus="vp-ab-bus")
    answers(a, b, d, 120)
    print(f"it answered again {time.time() - t:.0f} s after the port was to go")
    assert b.alive()
