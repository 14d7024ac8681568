# SPDX-License-Identifier: BSD-3-Clause
"""Two guests of libvirt, on a Debian that has systemd, the packages of `make deb` and libvirt: what `vhost-pcictl generate` prints is what they are
defined with."""
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ET

import pytest

TOP = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(TOP / "tests/protocol"), str(TOP / "scripts/vm")]

import debtree  # noqa: E402
import image  # noqa: E402
import machine as m  # noqa: E402
import portlink  # noqa: E402
import traffic  # noqa: E402
from box import Box, lacking  # noqa: E402
from debtree import APT, SUITE, newer  # noqa: E402

pytestmark = pytest.mark.slow
BUILD = os.path.abspath(os.environ.get("VHOST_PCI_BUILD") or TOP / "build")
LIBVIRT = ["libvirt-daemon-system", "libvirt-clients", "libvirt-daemon-driver-qemu", "qemu-system-x86", "apparmor"]
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU)
MIB = 256
PORT = "Endpoint=port\nAttachment=ivshmem\n"
FILES = {
    "a.vm": "[VM]\nTrustGroup=lan\nUser=libvirt-qemu\n",
    "b.vm": "[VM]\nTrustGroup=lan\nUser=libvirt-qemu\n",
    "slow.link": f"[Link]\nMode=copy\n[Driver]\nVM=a\n[Device]\nVM=b\n{PORT}",
    "near.link": f"[Link]\nMode=fast\n[Driver]\nVM=a\n[Device]\nVM=b\n{PORT}QMP=b.qmp\nQMPMode=server\nHotplugBus=w0 w1\n",
}
# Of each link: the driver VM's interface, the tap, the addresses of both, what their last bytes are.
LINKS = [("slow", "eth0", 1), ("near", "eth1", 2)]


class Running:
    """A domain's QEMU, in the place of a process."""

    def __init__(self, box, name):
        self.box, self.name, self.returncode = box, name, None
        self.pid = int(box.ok("cat", f"/run/libvirt/qemu/{name}.pid"))

    def poll(self):
        return None if (self.box.root / f"proc/{self.pid}").exists() else 1


class Domain(m.VM):
    """A guest that libvirt starts. It is asked as the other tests' guests are."""

    def __init__(self, box, name, dir, kernel, **kw):
        super().__init__(name, str(dir), kernel=kernel, accel="tcg", mem=MIB, **kw)
        self.box = box
        self.inside = f"/var/lib/libvirt/qemu/{name}"
        self._asock = str(box.root / f"var/lib/libvirt/qemu/{name}.agent")

    def define(self, domain):
        """With what a guest of these tests has besides: a kernel, an image, and two serial ports."""
        os_ = domain.find("os")
        for tag, text in (("kernel", "/vm/vmlinux"), ("initrd", f"/vm/{self.name}.initrd"), ("cmdline", self.cmdline())):
            ET.SubElement(os_, tag).text = text
        devices = domain.find("devices")
        for n, (kind, source) in enumerate((("file", {"path": self.inside + ".console"}), ("unix", {"mode": "bind", "path": self.inside + ".agent"}))):
            serial = ET.SubElement(devices, "serial", type=kind)
            ET.SubElement(serial, "source", **source)
            ET.SubElement(serial, "target", port=str(n))
        self.box.write(f"tmp/{self.name}.xml", ET.tostring(domain, encoding="unicode"))
        self.box.ok("virsh", "-q", "define", f"/tmp/{self.name}.xml")

    def start(self, wait=True, timeout=None):
        self.boots = 0
        self._boot = None
        self.box.ok("timeout", "120", "virsh", "-q", "start", self.name)
        self.proc = Running(self.box, self.name)
        self.console = str(self.box.root / f"var/lib/libvirt/qemu/{self.name}.console")
        self.errlog = str(self.box.root / f"var/log/libvirt/qemu/{self.name}.log")
        m.threading.Thread(target=self._agent_reader, args=(self.proc,), daemon=True).start()
        if wait:
            self.wait_ready(1, timeout)

    def where(self):
        return ""

    def kill(self, sig=None):
        if self.proc:
            self.box.do("virsh", "-q", "destroy", self.name)
        self.proc = None
        self._drop_jobs()


def generate(box, *args):
    return ET.fromstring(box.ok("vhost-pcictl", "generate", *args, "--libvirt", "--memory", f"{MIB}M", "--driver-memory", f"{MIB}M", "--tcg"))


def joined(first, second):
    """A domain with two links: of the second one's what --index 1 is for."""
    for what in ("devices", f"{{{QEMU}}}commandline", f"{{{QEMU}}}override"):
        into, more = first.find(what), second.find(what)
        if more is None:
            continue
        if into is None:
            first.append(more)
            continue
        for e in more:
            if e.get("model") != "pcie-root":
                into.append(e)
    return first


@pytest.fixture(scope="module")
def box(debs):
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="vplv"))
    b = None
    try:
        try:
            tree = debtree.tree_with(SUITE, "libvirt", LIBVIRT)
            mine = [p for n, p in debs.items() if n != "vhost-pci-dkms"]
            debtree.fetch_for(tree, mine)
        except debtree.Unavailable as e:
            pytest.skip(str(e))
        for where in ("debs", "next", "vm"):
            (tmp / where).mkdir()
        for p in mine:
            shutil.copy(p, tmp / "debs")
            newer(p, tmp / "next")
        os.chmod(tmp, 0o755)
        root = [f"--directory={tree}", "--volatile=overlay", f"--bind-ro={tmp}:/debs", f"--bind-ro={tmp / 'vm'}:/vm"]
        why = lacking(*root)
        if why:
            pytest.skip(why)
        b = Box(tmp, *root)
        b.tmp = tmp
        b.ok(*APT, "install", *[f"/debs/debs/{p.name}" for p in mine])
        for name, text in FILES.items():
            b.write(f"etc/vhost-pci/{name}", text)
        # The container's cgroups are not its own.
        b.ok("sh", "-c", "echo 'cgroup_controllers = [ ]' >> /etc/libvirt/qemu.conf")
        b.ok("systemctl", "reload", "vhost-pcid")
        yield b
    finally:
        if b:
            b.close()
        shutil.rmtree(tmp, ignore_errors=True)


def serve(b, name, net):
    b.sh(f"({portlink.agent_command(name, f'tap{net}', f'52:54:00:0d:0{net}:02', '--keep')} echo $! > /run/{name}.pid)")
    b.until(f"[ -e /sys/class/net/tap{net} ]", 30, f"cat /run/agent-{name}.log")


@pytest.fixture(scope="module")
def guests(box):
    try:
        # Of the same Debian as the host.
        k = image.kernel(next((k for k, suite in image.KERNELS.items() if suite == SUITE), image.native()))
        module, agent = portlink.module_binary(k, BUILD), portlink.agent_binary(BUILD)
        where = box.tmp / "vm"
        a = Domain(box, "a", where, k)
        b = Domain(box, "b", where, k, boot_modules=[module], files={"bin/vhost-pci-agent": (agent, 0o755)})
    except m.Unavailable as e:
        pytest.skip(str(e))
    for vm in (a, b):
        if vm.initrd != str(where / f"{vm.name}.initrd"):
            shutil.copy(vm.initrd, where / f"{vm.name}.initrd")
    shutil.copy(k.image, where / "vmlinux")
    for vm, side in ((a, "--driver"), (b, "--device")):
        vm.define(joined(*(generate(box, name, side, "--index", str(n)) for n, (name, _, _) in enumerate(LINKS))))
    try:
        for vm in (a, b):
            vm.start(wait=False)
        for vm in (a, b):
            vm.wait_ready()
        b.sh("modprobe tun; modprobe vhost_net")
        for name, eth, net in LINKS:
            serve(b, name, net)
            b.up(f"10.{net}.0.2/24", f"tap{net}")
            a.up(f"10.{net}.0.1/24", eth)
        yield a, b
    finally:
        for vm in (a, b):
            vm.kill()


def show(box, name):
    return box.ctl("show", name)


def story(box):
    return "".join(box.do("vhost-pcictl", "show", name).stdout for name, _, _ in LINKS) + box.journal()[-4000:]


@pytest.mark.parametrize("name,eth,net", LINKS, ids=[x[0] for x in LINKS])
def test_guests_talk(box, guests, name, eth, net):
    """Started by `virsh start` from what was generated; a file goes each way and is the same."""
    a, b = guests
    try:
        a.until(f"ping -c 1 -W 1 10.{net}.0.2 >/dev/null", 60)
    except m.VMError as e:
        raise AssertionError(f"{e}\n{b.sh(f'cat /run/agent-{name}.log; dmesg | tail -20', check=False)}\n{story(box)}")
    assert box.ctl("show", name)["status"] == "up" and box.ctl("show", name)["mode"] == ("fast" if name == "near" else "copy")
    for src, dst, to in ((a, b, 2), (b, a, 1)):
        assert traffic.transfer(src, dst, f"10.{net}.0.{to}", 1)


def pings(vm, net):
    """Five a second until there is /tmp/stop. By fives, each of which waits for its answers: a ping that is interrupted counts what is on its way."""
    vm.sh("rm -f /tmp/stop")
    return vm.spawn(f"until [ -e /tmp/stop ]; do ping -c 5 -i 0.2 -W 5 10.{net}.0.2; done", 240)


def count(said):
    """(sent, received) of all of them."""
    each = re.findall(r"(\d+) packets transmitted, (\d+) (?:packets )?received", said)
    assert each, said
    return tuple(sum(map(int, x)) for x in zip(*each))


def test_upgrade_under_traffic(box, guests):
    """The next version of the package, while both links carry packets: none is lost. A daemon that stays says that it does."""
    a, _ = guests
    pid = box.unit("MainPID")
    jobs = [pings(a, net) for _, _, net in LINKS]
    said = box.ok(*APT, "install", *[f"/debs/next/{p.name}" for p in sorted((box.tmp / "next").iterdir())])
    a.sh("touch /tmp/stop")
    for j in jobs:
        told = j.result(check=False)
        sent, received = count(told)
        assert sent == received, told
    assert ("until it is restarted" in said) == (box.unit("MainPID") == pid), said
    assert "+next" in box.ok("dpkg-query", "-W", "-f", "${Version}", "vhost-pcid")


def test_restart(box, guests):
    """The new program is taken by a restart: the guests reach each other again, and nobody started anything anew in them."""
    a, _ = guests
    pids = [vm.proc.pid for vm in guests]
    jobs = [(name, pings(a, net)) for name, _, net in LINKS]
    box.ok("systemctl", "restart", "vhost-pcid")
    for _, _, net in LINKS:
        a.until(f"ping -c 1 -W 1 10.{net}.0.2 >/dev/null", 60)
    a.sh("touch /tmp/stop")
    for name, j in jobs:
        sent, received = count(j.result(check=False))
        print(f"{name}: over a restart of the daemon {sent - received} of {sent} pings, five a second, were lost")
    assert [vm.proc.poll() for vm in guests] == [None, None] and pids == [vm.proc.pid for vm in guests]


def refused(box, name, domain):
    """What `virsh start` says of a domain that cannot start; it says so soon."""
    domain.find("name").text = name
    box.write(f"tmp/{name}.xml", ET.tostring(domain, encoding="unicode"))
    box.ok("virsh", "-q", "define", f"/tmp/{name}.xml")
    r = box.do("timeout", "60", "virsh", "start", name)
    assert r.returncode not in (0, 124), r.stdout
    box.ok("virsh", "-q", "undefine", name)
    return r.stdout


def test_refused_device_does_not_hang(box, guests):
    """The port is taken; then a VM whose users are others; then one that names no user at all."""
    said = refused(box, "second", generate(box, "slow", "--device"))
    assert "slow.device" in said or "ivshmem" in said, said
    box.wait(lambda: "another one is connected" in box.journal(), "the daemon does not say who was refused")
    for user, says in (("User=daemon\n", "add it to User= in c.vm"), ("", None)):
        box.write("etc/vhost-pci/c.vm", "[VM]\n" + user)
        box.write("etc/vhost-pci/other.link", f"[Link]\nMode=copy\n[Driver]\nVM=a\n[Device]\nVM=c\n{PORT}")
        box.ok("systemctl", "reload", "vhost-pcid")
        said = refused(box, "third", generate(box, "other", "--device"))
        if says:
            box.wait(lambda: says in box.journal(), "the daemon does not say who was refused")
        else:
            assert "Permission denied" in said and "needs User= in c.vm" in box.ok("vhost-pcictl", "show", "other")
        (box.root / "etc/vhost-pci/other.link").unlink()
        box.ok("systemctl", "reload", "vhost-pcid")


def test_occupied_root_port(box, guests):
    """A root port that somebody else put a device into is refused by name, with what is there."""
    a, b = guests
    used = show(box, "near")["sides"]["device"]["window_devices"][0]["bus"]
    other = "w1" if used == "w0" else "w0"

    def monitor(command, **args):
        return box.ok("virsh", "qemu-monitor-command", "b", json.dumps({"execute": command, "arguments": args}))

    def serve_again():
        b.sh("kill $(cat /run/near.pid); while kill -0 $(cat /run/near.pid) 2>/dev/null; do sleep 0.1; done", 60)
        box.wait(lambda: not show(box, "near")["sides"]["device"]["window_devices"], "the window stays")
        serve(b, "near", 2)

    monitor("object-add", **{"qom-type": "rng-builtin", "id": "vp-test-rng"})
    monitor("device_add", driver="virtio-rng-pci", id="rng", bus=other, rng="vp-test-rng")
    serve_again()
    error = lambda: [w["error"] for w in show(box, "near")["sides"]["device"]["windows"] if w["error"]]
    box.wait(error, "no window was refused")
    assert f"root port {other} is occupied (in use by virtio-rng-pci,id=rng)" in error()[0]


def test_apparmor(box, guests):
    """Which paths a domain's profile has, as libvirt works them out, and the rules of our package: without a kernel that enforces them."""
    rules = "/etc/apparmor.d/abstractions/libvirt-qemu.d/vhost-pci"
    assert box.do("test", "-f", rules).returncode == 0
    if "libvirt-qemu.d" not in box.ok("cat", "/etc/apparmor.d/abstractions/libvirt-qemu"):
        assert SUITE == "bookworm", "INSTALL.md says that later ones need no line"
        box.ok("sh", "-c", "echo '#include <abstractions/libvirt-qemu.d/vhost-pci>' >> /etc/apparmor.d/local/abstractions/libvirt-qemu")
    for vm, side in zip(guests, ("driver", "device")):
        box.ok("sh", "-c", f"virsh dumpxml {vm.name} > /tmp/{vm.name}.dump")
        uuid = ET.parse(box.root / f"tmp/{vm.name}.dump").findtext("uuid")
        own = box.ok("sh", "-c", f"/usr/lib/libvirt/virt-aa-helper -c -d -u libvirt-{uuid} < /tmp/{vm.name}.dump")
        for name, _, _ in LINKS:
            assert f'"/run/vhost-pci/{name}.{side}.sock" rw' in own
    profile = box.ok("sed", "s/LIBVIRT_TEMPLATE/libvirt-test/", "/etc/apparmor.d/libvirt/TEMPLATE.qemu")
    box.write("tmp/profile", profile)
    box.ok("apparmor_parser", "-QTK", "/tmp/profile")
    assert "/run/vhost-pci/*.qmp rw" in box.ok("apparmor_parser", "-QTK", "--preprocess", "/tmp/profile")


def test_removal_and_purge(box, guests):
    """With guests that run: they go on without their links, and nothing of ours stays."""
    box.ok(*APT, "purge", "vhost-pcid", "vhost-pci-agent", "vhost-pci-doc", "libvhostpci-dev", "libvhostpci0")
    assert [vm.proc.poll() for vm in guests] == [None, None]
    assert box.do("sh", "-c", "ls -d /etc/vhost-pci /run/vhost-pci /etc/apparmor.d/abstractions/libvirt-qemu.d/vhost-pci").stdout.count("No such file") == 3
    assert guests[0].sh("echo alive") == "alive\n"
