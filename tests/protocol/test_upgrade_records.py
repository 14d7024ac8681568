# SPDX-License-Identifier: BSD-3-Clause
"""Upgrades whose records are wrong: cut off, forged, of another user. The old daemon goes on, and nothing is believed."""
import contextlib
import os
import socket
import struct
import subprocess
import threading

import conftest
import pytest
import vu
from test_relay import both_ways
from test_upgrade import DATA, DONE, END, FAILED, HELLO, MAGIC, READY, flows, with_binaries, wrapper


class Forger:
    """Between the daemon and its successor, with the records in hand: what reaches the successor may be something else."""

    def __init__(self, d):
        self.d = d
        self.listen = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.path = str(d.tmp / "forge")
        self.listen.bind(self.path)
        self.listen.listen(1)
        self.listen.settimeout(60)


def records(d, path):
    """Let the daemon hand its records to us, and then go on: both parts, each its bytes and fds."""
    f = Forger(d)
    answers = []
    t = threading.Thread(target=lambda: answers.append(attempt(d, path)))
    t.start()
    con, _ = f.listen.accept()
    _, (s,), _, _ = socket.recv_fds(con, 1, 1)
    s = socket.socket(fileno=s)
    con.close()
    f.listen.close()
    os.unlink(f.path)
    s.settimeout(60)

    def part():
        got, fds = b"", []
        while True:
            data, some, _, _ = socket.recv_fds(s, 100000, 64)
            magic, kind, n, nfds = struct.unpack_from("<IIQQ", data)
            assert magic == MAGIC
            fds += some
            if kind == END:
                assert n == len(got) and nfds == len(fds)
                return got, fds
            got += data[24:]

    s.send(struct.pack("<IIQQ", MAGIC, HELLO, 72, 0) + struct.pack("<Ii64s", 1, os.getpid(), b"test"))
    first = part()
    s.send(struct.pack("<IIQQ", MAGIC, READY, 0, 0))
    second = part()
    s.send(struct.pack("<IIQQ", MAGIC, FAILED, 4, 0) + b"test")
    t.join()
    s.close()
    assert "test" in answers[0]
    return first, second


def attempt(d, path):
    try:
        d.call("daemon.upgrade", binary=path)
    except conftest.ControlError as err:
        return err.message
    return None


PASS_ON = """exec /usr/bin/python3 -B -c '
import socket, time
c = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
c.connect("%s")
socket.send_fds(c, [b"x"], [3])
'
"""


def give(d, *parts, end=True):
    """
    A successor that is given these records, each part as (bytes, fds, what the end says of it); what it says of them, or None: it was
    content.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The daemon went on, when these records were taken: here that is open again.
    for fd in (fd for _, fds, _ in parts for fd in fds if "vhost-pci verdict" in os.readlink(f"/proc/self/fd/{fd}")):
        os.pwrite(fd, bytes(4), 0)
    with open(d.tmp / "log", "ab") as log:
        p = subprocess.Popen(d.command("--take-over", str(theirs.fileno())), pass_fds=[theirs.fileno()], stderr=log)
    theirs.close()
    ours.settimeout(60)
    try:
        for i, (got, fds, total) in enumerate(parts):
            try:
                said = ours.recv(1000)
            except ConnectionResetError:
                said = b""
            if not said or struct.unpack_from("<II", said)[1] != (READY if i else HELLO):
                return said[24:].decode(errors='replace') if said else "ended"
            n, left = (len(got), len(fds)) if total is None else total, fds
            while got or left:
                socket.send_fds(ours, [struct.pack("<IIQQ", MAGIC, DATA, len(got[:30000]), len(left[:30])) + got[:30000]], left[:30])
                got, left = got[30000:], left[30:]
            if not end and i:
                ours.close()
                assert p.wait(60)
                return "ended"
            ours.send(struct.pack("<IIQQ", MAGIC, END, *n))
        answer = ours.recv(1000)
        kind = struct.unpack_from("<II", answer)[1] if answer else 0
        return None if kind == DONE else answer[24:].decode(errors='replace') if answer else "ended"
    except (BrokenPipeError, ConnectionResetError):
        return "ended"
    finally:
        with contextlib.suppress(OSError):
            ours.close()
        p.kill()
        p.wait()


def forged(make_daemon):
    d, _ = with_binaries(make_daemon, [])
    path = wrapper(d, "pass", PASS_ON % (d.tmp / "forge"))
    d.stop()
    d.write("vhost-pci.conf", f"[Daemon]\nUpgradeBinaries={path}\n")
    return d.start(), path


def test_bad_records(make_daemon):
    """Cut short, of another version, with fds missing or swapped: the new one refuses them, and the old one goes on."""
    d, path = forged(make_daemon)
    said = {}
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b, flows((a, b), (b, a)) as more:
        (one, fds1), (two, fds2) = records(d, path)
        more()
        first, second = (one, fds1, None), (two, fds2, None)
        for part, got, fds in ((0, one, fds1), (1, two, fds2)):
            def give_with(got, fds, total=None, part=part):
                bad = (got, fds, total)
                return give(d, *((first, bad) if part else (bad, second)))

            whole = (len(got), len(fds))
            said[part, "cut"] = give_with(got[:len(got) // 2], fds, whole)
            said[part, "cut, and its end says so"] = give_with(got[:len(got) // 2], fds)
            said[part, "no bytes"] = give_with(b"", fds)
            said[part, "fewer fds"] = give_with(got, fds[:-1], whole)
            said[part, "no fds"] = give_with(got, [])
            said[part, "swapped"] = give_with(got, fds[::-1] if len(fds) > 1 else fds1[:1])
        said["fewer fds, and its end says so"] = give(d, (one, fds1[:-1], None), second)
        said["first two swapped"] = give(d, (one, fds1[1::-1] + fds1[2:], None), second)
        said["no end"] = give(d, first, second, end=False)
        said["parts swapped"] = give(d, second, first)
        # A structure that is longer than the reader's is of a newer version.
        size = struct.unpack_from("<II", two)[1]
        said["newer"] = give(d, first, (struct.pack("<II", 1, size + 8) + two[8:8 + size] + bytes(8) + two[8 + size:], fds2, None))
        for fd in fds1 + fds2:
            os.close(fd)
        more()
    assert all(said.values()), said
    assert "cut short" in said[0, "cut"] and "cut short" in said[1, "cut"] and "version" in said["newer"], said
    assert d.show("ab")["sides"]["driver"]["sessions"] == 1


def test_bytes_that_lie(make_daemon):
    """Any one byte of the records is another one: the new daemon refuses or takes them, and never crashes."""
    d, path = forged(make_daemon)
    with vu.Nic(d.sock("ab", "driver")) as a, vu.Nic(d.sock("ab", "device")) as b:
        both_ways(a, b, (64,))
        parts, taken = records(d, path), 0
        for part, (got, fds) in enumerate(parts):
            for at in range(0, len(got), max(len(got) // 16, 1)):
                bad = bytearray(got)
                bad[at] ^= 0xff
                both = [(*p, None) for p in parts]
                both[part] = (bytes(bad), fds, None)
                # One that is content begins its work, and is ended: nothing is sent meanwhile.
                taken += give(d, *both) is None
        for _, fds in parts:
            for fd in fds:
                os.close(fd)
        both_ways(a, b)
    assert taken, "no byte is one that does not matter"
    assert "AddressSanitizer" not in d.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_records_of_another_user(daemon):
    """Who is neither root nor the daemon's user cannot make a daemon serve what he has."""
    code = ("import os, socket, subprocess, sys\n"
            "os.setresuid(65534, 65534, 0)\n"
            "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "os.setresuid(0, 0, 0)\n"
            "p = subprocess.Popen(sys.argv[1:] + ['--take-over', str(b.fileno())], pass_fds=[b.fileno()], stderr=subprocess.PIPE)\n"
            "print(p.communicate(timeout=60)[1].decode())\n")
    r = subprocess.run(["/usr/bin/python3", "-c", code, *daemon.command()], capture_output=True, text=True, timeout=120)
    assert "records come from user 65534" in r.stdout, r
