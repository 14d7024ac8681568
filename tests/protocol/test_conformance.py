# SPDX-License-Identifier: BSD-3-Clause
"""The conformance suite: its checklist, and this implementation held against it, in both
directions."""
import ast
import json
import pathlib
import re
import subprocess
import time

import pytest

import checklist
import daemon_checks  # noqa: F401  (they add to checklist.CHECKS)
import daemon_life  # noqa: F401
import guest_checks  # noqa: F401
from conftest import BUILD

SUITE = pathlib.Path(checklist.__file__).parent
ECHO = str(BUILD / "examples/example-echo")
RULES = {r.id: r for r in checklist.rules()}


def run(*args, status=0, slow=6):
    r = subprocess.run([str(SUITE / "run"), "--json", "--slow", str(slow), *args],
                       capture_output=True, text=True, timeout=280)
    assert r.returncode == status, r.stdout + r.stderr
    return {x["id"]: x for x in json.loads(r.stdout)["rules"]}


def passes(rules):
    """The rules that were tested. None was broken."""
    assert not [x for x in rules.values() if x["result"] == "FAIL"]
    return {i for i, x in rules.items() if x["result"] == "pass"}


# ---- the checklist


def test_every_must_has_a_number_and_a_row():
    where, bare = {}, []
    text = checklist.SPEC.read_text()
    body = text[text.index("## 2. "):text.index("## 14. Checklist")]
    for part in re.split(r"^(?=## \d+\. )", body, flags=re.M)[1:]:
        section = re.match(r"## (\d+)\. ", part).group(1)
        flat = " ".join(re.sub(r"^```.*?^```", "", part, flags=re.M | re.S).split())
        for m in re.finditer(r"\bMUST(?: NOT)?\b(?: \(([DG]\d+)\))?(?=(.{0,60}))", flat):
            if not m.group(1):
                bare.append(f"section {section}: MUST{m.group(2)}")
                continue
            assert m.group(1) not in where, f"{m.group(1)} stands twice in the text"
            where[m.group(1)] = section
    assert not bare, "a MUST without a number: %s" % bare
    assert where == {r.id: r.section for r in RULES.values()}


def test_every_row_has_a_check_and_the_other_way_round():
    held = {}
    for name, f in checklist.CHECKS.items():
        for i in f.ids:
            held[i] = name
    assert held == {r.id: r.held for r in RULES.values() if r.held}
    for r in RULES.values():
        assert r.held or len(r.why) > 10


def test_numbers_of_the_minimal_driver():
    """What its comments name are rules."""
    text = checklist.SPEC.read_text()
    part = text[text.index("## 13. "):text.index("## 14. ")]
    named = set(re.findall(r"\b[DG]\d+\b", part))
    assert named <= set(RULES) and len(named) > 25


def test_suite_knows_nothing_of_the_c_code():
    """It imports what lies beside it and the standard library."""
    own = {p.stem for p in SUITE.glob("*.py")}
    for p in [*SUITE.glob("*.py"), SUITE / "run"]:
        for node in ast.walk(ast.parse(p.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                known = name in own or name.split(".")[0] in STANDARD
                assert known or (p.stem, name) == ("fakeport", "hotplug"), f"{p.name}: {name}"


STANDARD = {"argparse", "array", "contextlib", "ctypes", "fcntl", "json", "mmap", "os", "pathlib",
            "queue", "re", "select", "shutil",
            "socket", "struct", "subprocess", "sys", "tempfile", "threading", "time", "traceback"}


# ---- this implementation

# What only another attachment, or fast mode, can show.
ELSEWHERE = {
    ("local", "fast"): {"D41", "D42", "D43", "D44"},
    ("local", "copy"): {"D41", "D42", "D43", "D44", "D26", "D32", "D33", "D34", "D35", "D47", "D51",
                        "D56"},
    ("ivshmem", "fast"): {"D43", "D44", "D45", "D46", "D47", "D51"},
    ("shmem", "fast"): {"D41", "D42", "D45", "D46", "D47", "D51"},
}


@pytest.mark.parametrize("attachment, mode", ELSEWHERE)
def test_daemon(make_daemon, attachment, mode):
    d = make_daemon()
    qmp = str(d.tmp / "qmp")
    more = dict(Device_QMP=qmp, Device_HotplugBus="rp0 rp1") if attachment == "ivshmem" else {}
    d.link("ab", Device_Endpoint="port", Device_Attachment=attachment, Link_Mode=mode, **more)
    d.start()
    got = run("--daemon", d.sock("ab", "device"), "--driver", d.sock("ab", "driver"),
              *(["--qmp", qmp] if more else []))
    never = {r.id for r in RULES.values() if r.id[0] == "D" and not r.held}
    assert passes(got) == {i for i in RULES if i[0] == "D"} - never - ELSEWHERE[attachment, mode]


@pytest.mark.parametrize("guest", [ECHO, str(SUITE / "guestdouble.py")],
                         ids=["libvhostpci", "double"])
def test_guest(guest):
    got = run("--guest", guest, "{port}")
    assert passes(got) == {r.id for r in RULES.values() if r.id[0] == "G" and r.held}


def test_guest_that_came_by_itself(tmp_path):
    """One guest for all checks, as with a VM; what needs a new one is said to be not tested."""
    path = str(tmp_path / "port")
    suite = subprocess.Popen([str(SUITE / "run"), "--json", "--slow", "6", "--guest-socket", "local:" + path],
                             stdout=subprocess.PIPE, text=True)
    while not pathlib.Path(path).exists():
        assert suite.poll() is None
        time.sleep(0.01)
    guest = subprocess.Popen([ECHO, "unix:" + path])
    try:
        out, _ = suite.communicate(timeout=280)
        got = {x["id"]: x for x in json.loads(out)["rules"]}
        assert passes(got) >= {"G5", "G6", "G7", "G8", "G12", "G15", "G20", "G21", "G23", "G25",
                               "G29", "G31", "G35"}, out
        assert got["G1"]["result"] == "not tested"
    finally:
        suite.kill()
        suite.wait()
        guest.kill()
        guest.wait()
