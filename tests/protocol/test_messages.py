# SPDX-License-Identifier: BSD-3-Clause
"""What somebody did wrong, and what must be said: the thing by its name, and the way out."""
import contextlib
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import threading

import pytest

import conftest
import portclient as pc
import vu
from test_control import ctl

BASE = {"a.vm": "[VM]\nTrustGroup=t\n", "b.vm": "[VM]\nTrustGroup=t\n"}
LINK = "[Link]\n{link}[Driver]\nVM=a\n[Device]\nVM=b\n{device}[Net]\n{net}"


def link(link="", device="", net=""):
    return LINK.format(link=link, device=device, net=net)


PORT = "Endpoint=port\nAttachment=local\n"
# files, what is said
CONFIG = {
    "comment behind a value": ({"l.link": link(net="MTU=1500  # jumbo frames later\n")},
                               ["l.link:7: MTU=", "comment behind its value", "line of its own"]),
    "pool of 3M": ({"l.link": link("Mode=copy\n", PORT + "PoolSize=3M\n")},
                   ["PoolSize=3M", "power of two from 1M to 4G, such as 16M"]),
    "aperture of 1M": ({"l.link": link("Mode=copy\n", "Endpoint=port\nAttachment=shmem\nApertureSize=1M\n")},
                       ["ApertureSize=1M", "power of two from 512M to 8192G, such as 512M"]),
    "bits": ({"l.link": link(net="BitsPerSecond=10Gbit\n")}, ["BitsPerSecond=10Gbit", "from 8K to 1T, like 2500M"]),
    "few bits": ({"l.link": link(net="BitsPerSecond=10\n")}, ["BitsPerSecond=10 "]),
    "description": ({"l.link": link("Description=\xff\n")}, ["Description=: byte 1 is not UTF-8"]),
    "long description": ({"l.link": link("Description=" + "x" * 128 + "\n")}, ["Description= is longer than 127 bytes"]),
    "bits in fast mode": ({"l.link": link("Mode=fast\n", PORT, "BitsPerSecond=1G\n")}, ["fast"]),
    "socket of the metrics": ({"vhost-pci.conf": "[Daemon]\nRuntimeDirectory=/tmp/x\n", "l.link": link(device="Socket=metrics.sock\n")},
                              ["/tmp/x/metrics.sock is the socket of the metrics"]),
    "pool for 8 queues": ({"l.link": link("Type=blk\nQueues=8\n", "Endpoint=vhost-user\nPoolSize=1M\n")},
                          ["l.link:9: PoolSize=1M has no room for 8 queues; write PoolSize=2M, or lower Queues="]),
    "pool for queues that nobody counts": ({"l.link": link("Type=fs\nQueues=6\n", "Endpoint=vhost-user\nPoolSize=1M\n")},
                                           ["PoolSize=1M has no room for 7 queues"]),
    "no socket to connect to": ({"l.link": link("Type=blk\n", "Endpoint=vhost-user\nSocketMode=client\n")},
                                ["the device side is SocketMode=client but has no Socket=; say where the back-end listens"]),
    "metrics on the control socket": ({"vhost-pci.conf": "[Control]\nSocket=/tmp/x/s\n[Metrics]\nSocket=/tmp/x/s\n"},
                                      ["[Metrics] Socket=/tmp/x/s is the control socket"]),
}


def check(*args):
    return subprocess.run([str(conftest.BUILD / "daemon/vhost-pcid"), *args], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", CONFIG)
def test_configuration(tmp_path, name):
    files, said = CONFIG[name]
    for file, text in {**BASE, **files}.items():
        (tmp_path / file).write_text(text, encoding="latin-1")
    r = check("--config", str(tmp_path), "--check-config")
    assert r.returncode == 1, r.stdout
    for s in said:
        assert s in r.stderr


def test_good_configuration(tmp_path):
    """What those must not be confused with."""
    files = {"l.link": link("Description=Hänge #1 # nicht ab\n", net="BitsPerSecond=2500M\n"), "# a comment.vm.bak": "x",
             "six.link": link("Type=blk\nQueues=6\n", "Endpoint=vhost-user\nPoolSize=1M\n"), "c.vm": "# whole lines\n; are comments\n[VM]\nTrustGroup=t\n"}
    for file, text in {**BASE, **files}.items():
        (tmp_path / file).write_text(text)
    r = check("--config", str(tmp_path), "--check-config")
    assert r.returncode == 0, r.stderr


def test_directory_that_is_not_there(tmp_path):
    r = check("--config", str(tmp_path / "none"), "--check-config")
    assert r.returncode == 1 and f"--config {tmp_path / 'none'}: No such file" in r.stderr


def test_file_for_a_directory(tmp_path):
    (tmp_path / "a.vm").write_text("[VM]\n")
    r = check("--config", str(tmp_path / "a.vm"), "--check-config")
    assert r.returncode == 1 and f"--config {tmp_path / 'a.vm'}: Not a directory; name a directory" in r.stderr
    r = check("--config", str(tmp_path), "--runtime-dir", str(tmp_path / "a.vm"))
    assert r.returncode == 1 and f"the runtime directory {tmp_path / 'a.vm'}: Not a directory; make it" in r.stderr
    r = check("--config", str(tmp_path), "--check-config")
    assert r.returncode == 0 and r.stdout == "configuration is valid: 1 VM, 0 links\n"


# arguments, what is said
START = {
    "CPU that is not there": (["--cpus", "4000"], ["data thread 0 cannot run on CPU 4000", "; allowed are {cpus}; see CPUs= and --cpus"]),
    "the second of them": (["--threads", "2", "--cpus", "{first},4000"], ["data thread 1 cannot run on CPU 4000", "; allowed are {cpus}"]),
    "log level": (["--log-level", "loud"], ["--log-level", "error, warning, notice, info or debug"]),
}


# The CPUs that this process, and what it starts, may run on: as the kernel writes them.
CPUS = next(x.split()[1] for x in open("/proc/self/status") if x.startswith("Cpus_allowed_list:"))
FIRST = str(min(os.sched_getaffinity(0)))


@pytest.mark.parametrize("name", START)
def test_start(tmp_path, name):
    args, said = START[name]
    r = check("--config", str(tmp_path), "--runtime-dir", str(tmp_path / "run"), *(a.format(first=FIRST) for a in args))
    assert r.returncode
    for s in said:
        assert s.format(cpus=CPUS) in r.stderr


@pytest.mark.parametrize("cpu,said", [("4000", "there is no such CPU here, or it is not allowed; allowed are " + CPUS), ("x", "the number of a CPU"),
                                      ("-1", "the number of a CPU"), ("99999999999", "no such CPU")])
def test_forwarder_on_a_cpu(cpu, said):
    r = subprocess.run([str(conftest.BUILD / "fwd/vhost-pci-fwd"), "--cpu", cpu, "unix:/none"], capture_output=True, text=True, timeout=60)
    assert r.returncode == 2 and f"vhost-pci-fwd: --cpu {cpu}: " in r.stderr and said in r.stderr


@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is not installed (package util-linux)")
def test_allowed_is_what_the_kernel_says(tmp_path):
    """Not all that the machine has: what was allowed to the program."""
    r = subprocess.run(["taskset", "-c", FIRST, str(conftest.BUILD / "fwd/vhost-pci-fwd"), "--cpu", "4000", "unix:/none"], capture_output=True, text=True,
                       timeout=60)
    assert r.stderr.endswith(f"allowed are {FIRST}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
def test_runtime_directory_of_another_user(tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    for d in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(d, 0o755)
    os.chown(tmp_path / "run", 1, 1)
    os.chmod(tmp_path / "run", 0o500)
    conf = tmp_path / "vhost-pci.conf"
    conf.write_text("")
    r = subprocess.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(conftest.BUILD / "daemon/vhost-pcid"),
                        "--config", str(tmp_path), "--runtime-dir", str(tmp_path / "run")], capture_output=True, text=True, timeout=60)
    if "cannot execute" in r.stderr or "Permission denied" in r.stderr and "vhost-pcid:" not in r.stderr:
        pytest.skip("another user cannot run this build")
    assert r.returncode and f"the runtime directory {tmp_path / 'run'}: Permission denied" in r.stderr
    assert "--runtime-dir" in r.stderr and "SocketDirectories" not in r.stderr


def test_whose_socket(daemon):
    """The link that has the socket, not the one that asks for it."""
    with pytest.raises(conftest.ControlError) as e:
        daemon.call("link.add", name="new", config={"Driver": {"VM": "a", "Socket": daemon.sock("ab", "device")}, "Device": {"VM": "b"}})
    assert "already belongs to the device side of link ab" in e.value.message


@pytest.mark.parametrize("name", ["control.sock", "metrics.sock"])
def test_sockets_of_the_daemon(daemon, name):
    for side, other in (("Driver", "Device"), ("Device", "Driver")):
        with pytest.raises(conftest.ControlError) as e:
            daemon.call("link.add", name="new", config={side: {"VM": "a", "Socket": str(daemon.run / name)}, other: {"VM": "b"}})
        assert "the daemon's own socket" in e.value.message


def test_memory_that_is_not_shared(daemon):
    """share=off: the VMM sends a file, and keeps what its guest writes to itself."""
    shared, kept = vu.Memory(16 << 20), vu.Memory(16 << 20)
    shared.map[0] = 1
    with vu.Nic(daemon.sock("ab", "driver"), mem=shared, fill=False):
        daemon.wait(lambda: daemon.show("ab")["sides"]["driver"]["queues"])
    real = kept.fd
    kept.fd = os.memfd_create("kept", os.MFD_CLOEXEC)
    os.ftruncate(kept.fd, 16 << 20)
    with vu.Nic(daemon.sock("cd", "driver"), mem=kept, fill=False):
        daemon.wait_log("share=on")
    os.close(real)
    lines = [x for x in daemon.log().splitlines() if "is not shared" in x]
    assert len(lines) == 1 and "link cd, driver side" in lines[0]


def test_no_memory(daemon):
    """QEMU's memory cannot be sent at all: it says so, and leaves."""
    for _ in range(3):
        with vu.Frontend(daemon.sock("ab", "driver")) as f:
            f.negotiate(vu.BASIC)
        daemon.wait(lambda: daemon.show("ab")["status"] == "waiting")
    daemon.wait_log("without sending any memory")
    assert daemon.log().count("without sending any memory") == 1 and "share=on" in daemon.log()


def test_log_level(daemon):
    assert ctl(daemon, "log-level").stdout == "debug\n"
    assert ctl(daemon, "log-level", "warning").stdout == "warning\n"
    daemon.call("link.down", name="ab")
    daemon.call("link.up", name="ab")
    assert "link ab: set down" not in daemon.log()
    assert ctl(daemon, "log-level", "info").stdout == "info\n"
    daemon.call("link.down", name="ab")
    daemon.wait_log("link ab: set down")
    r = ctl(daemon, "log-level", "loud")
    assert r.returncode == 1 and "error, warning, notice, info or debug" in r.stderr


def test_link_lines(daemon):
    with vu.Nic(daemon.sock("ab", "driver")), vu.Nic(daemon.sock("ab", "device")):
        daemon.wait_log("link ab: up")
    daemon.wait_log("link ab: no longer up")


def test_description(daemon):
    daemon.link("ab", Link_Description="the web server's way out")
    before = daemon.show("ab")
    with vu.Frontend(daemon.sock("ab", "driver")):
        assert daemon.call("daemon.reload")["changed"] == 1
        now = daemon.show("ab")
        assert before["description"] is None and now["description"] == "the web server's way out"
        assert daemon.show("ab")["sides"]["driver"]["sessions"] == 1
    assert "the web server's way out" in ctl(daemon, "show", "ab").stdout


def test_front_end_with_too_many_queues(daemon):
    """QEMU that has more queues than the link comes back at once, each time that it finds out: said once, not a thousand times."""
    def look():
        with vu.Frontend(daemon.sock("ab", "driver")) as f:
            f.tell(vu.SET_OWNER)
            f.ask_u64(vu.GET_FEATURES)
            f.ask_u64(vu.GET_PROTOCOL_FEATURES)
    for n in range(1, 301):
        look()
        daemon.wait(lambda: daemon.show("ab")["sides"]["driver"]["sessions"] == n and not daemon.show("ab")["sides"]["driver"]["connected"])
    lines = [x for x in daemon.log().splitlines() if "link ab, driver side" in x and "debug: " not in x]
    assert len(lines) < 10, lines
    said, = [x for x in lines if "comes and leaves at once" in x]
    assert "2 here (Queues= of a network's link counts pairs)" in said and "generate" in said
    # One that means it is told of as ever.
    with vu.Nic(daemon.sock("ab", "driver")):
        pass
    daemon.wait(lambda: "driver side: front-end connected" in daemon.log().splitlines()[-1] or "session with" in daemon.log().splitlines()[-1])


def test_who_may_open_a_socket(make_daemon):
    """Whom the kernel turns away the daemon never sees: `show` and `doctor` say whom it lets in. A reload opens the sockets of links that are there."""
    d = make_daemon()
    d.link("ab", Link_Mode="fast", Device_Endpoint="port", Device_Attachment="ivshmem", Device_QMP="b.qmp", Device_QMPMode="server",
           Device_HotplugBus="rp0 rp1")
    d.start()
    sockets = [d.sock("ab", "driver"), d.sock("ab", "device"), str(d.run / "b.qmp")]
    mode = lambda: {os.stat(s).st_mode & 0o777 for s in sockets}
    assert mode() == {0o600}
    for vm, side in (("a", "driver"), ("b", "device")):
        assert f"a VMM of another user needs User= in {vm}.vm" in ctl(d, "show", "ab").stdout
        assert f"ab.{side}.sock" in ctl(d, "doctor", "ab").stdout
    for vm in "ab":
        d.write(f"{vm}.vm", "[VM]\nTrustGroup=test\nUser=nobody\n")
    assert d.call("daemon.reload")["changed"] == 1
    assert mode() == {0o666}
    assert "may open" not in ctl(d, "show", "ab").stdout and ".sock" not in ctl(d, "doctor", "ab").stdout
    for vm in "ab":
        d.write(f"{vm}.vm", "[VM]\nTrustGroup=test\n")
    assert d.call("daemon.reload")["changed"] == 1 and mode() == {0o600}
    assert d.call("daemon.reload")["changed"] == 0


def test_device_without_a_data_path(make_daemon):
    """A guest that cannot use its device says so to nobody here: what it has to have is said, and where to look."""
    d = make_daemon()
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem", Link_Queues="2")
    d.start()
    with pc.Ivshmem(d.sock("ab", "device")):
        d.wait_log("it has to have vectors=5")
        r = ctl(d, "doctor", "ab")
        assert "no data path is attached" in r.stdout and "too few vectors=" in r.stdout


def test_vm_without_a_driver(make_daemon):
    """Connected, and nobody in the guest drives the device: the VM is named, and only as long as that is so."""
    d = make_daemon()
    d.link("ab")
    d.start()
    with vu.Frontend(d.sock("ab", "driver")) as f:
        f.ask_u64(vu.GET_FEATURES)
        r = ctl(d, "doctor", "ab")
        assert "the VMM of VM a is connected, and no driver runs" in r.stdout and "VM b is connected" not in r.stdout
    with vu.Nic(d.sock("ab", "driver")):
        assert "no driver runs" not in ctl(d, "doctor", "ab").stdout


def test_device_of_a_user_who_may_not(make_daemon):
    """It is answered at once, so that its VMM ends, and the log says what to write where."""
    d = make_daemon()
    d.link("ab", Link_Mode="copy", Device_Endpoint="port", Device_Attachment="ivshmem")
    d.write("b.vm", "[VM]\nUser=daemon\n")
    os.chmod(d.tmp, 0o755)
    d.start()
    os.chmod(d.run, 0o755)
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({d.sock('ab', 'device')!r}); s.settimeout(60); print(s.recv(8))"
    r = subprocess.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", code], capture_output=True,
                       text=True, timeout=90)
    assert r.stdout == str(struct.pack("<q", -1)) + "\n", r  # a version that no QEMU knows
    d.wait_log("this user may not run the VM; add it to User= in b.vm")


class Monitor:
    """A QMP socket that somebody else has (a connection is closed unheard), or whose QEMU ends once the daemon has said its first word."""

    def __init__(self, path, greets):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.greets = greets
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                with self.listener.accept()[0] as c:
                    if self.greets:
                        c.sendall(b'{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":""},"capabilities":[]}}\n')
                        f = c.makefile("rb")
                        m = json.loads(f.readline())
                        c.sendall(json.dumps({"return": {}, "id": m["id"]}).encode() + b"\n")
                        f.readline()
                        f.close()


ENDS = {True: "closed: its QEMU has ended", False: "QMP serves one client at a time, give the daemon a -qmp of its own"}


@pytest.mark.parametrize("greets", ENDS, ids=["qemu ended", "taken"])
def test_monitor_that_closes(make_daemon, greets):
    """A QEMU that has ended is told from a monitor that another program has."""
    d = make_daemon()
    path = str(d.tmp / "qmp")
    d.link("ab", Link_Mode="fast", Device_Endpoint="port", Device_Attachment="local", Driver_QMP=path, Driver_NIC="d0")
    m = Monitor(path, greets)
    try:
        d.start()
        d.wait_log(ENDS[greets])
        assert ENDS[not greets] not in d.log()
    finally:
        m.listener.close()


@pytest.mark.parametrize("key", ["PoolSize=", "Attachment=", "PackedRings=", "ApertureSize="])
def test_default_is_in_the_man_page(key):
    page = (pathlib.Path(__file__).parents[2] / "docs/man/vhost-pci.link.5").read_text()
    part, = [x for x in page.split(".TP\n") if x.startswith(f".B {key}\n")]
    assert "default" in part.lower()


@pytest.mark.parametrize("share", [False, True])
def test_memory_that_a_vmm_keeps_to_itself(daemon, tmp_path, share):
    """share=off of a memfd: the VMM sends the file, and its guest writes to pages of its own. Nothing fails, and nothing is ever served."""
    vmm = tmp_path / "qemu-system-test"
    vmm.symlink_to("/usr/bin/python3")
    kind = "SHARED" if share else "PRIVATE"
    code = ("import mmap, os, socket; fd = os.memfd_create('m'); os.truncate(fd, 128 << 20);"
            f"m = mmap.mmap(fd, 128 << 20, flags=mmap.MAP_{kind}); s = socket.socket(socket.AF_UNIX);"
            f"s.connect({daemon.sock('ab', 'driver')!r}); print(flush=True); input()")
    with subprocess.Popen([vmm, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        daemon.wait(lambda: daemon.show("ab")["sides"]["driver"]["connected"])
        found = [f for f in json.loads(ctl(daemon, "doctor", "ab", "--json").stdout)["findings"] if f["subject"] == "VM a"]
        p.communicate(b"\n")
    assert [f["check"] for f in found if f["check"] in ("memory", "hugepages")] == ["hugepages" if share else "memory"], found
    assert share or "share=on" in str(found)
