# SPDX-License-Identifier: BSD-3-Clause
"""protect: what the gate of the protected view costs (lib/vhostpci/gate.h).

Instructions that a burst executes because its port is protected, counted in the library's machine code: those of
vhp_gate_open() and vhp_gate_close(), and the calls of both. A burst goes through the gate once, however many packets it
has. "ours" is the count for a burst, and the note says what that is for each of 32 packets. A port that is not
protected executes a compare and a branch on the way in and on the way out.

Cycles are measured only where the processor has protection keys, by bench/gate: the writing of PKRU is most of it, and
no count of instructions shows that.
"""
import json
import re
import subprocess

import harness
import middle

BURST = 32
BURSTS = ["vhp_recv", "vhp_send"]


def functions(library):
    """{function: [mnemonic and operands]}"""
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", library], check=True, capture_output=True, text=True).stdout
    found, name = {}, None
    for line in text.splitlines():
        m = re.match(r"[0-9a-f]+ <([\w.]+)>:", line)
        # A label inside of a function.
        if m and m[1].startswith("vhp_gate_insn_"):
            continue
        if m:
            name = m[1]
            found[name] = []
        elif name and (m := re.match(r"\s+[0-9a-f]+:\s+(.*)", line)):
            found[name].append(m[1])
    return found


def straight(code, name):
    """Instructions up to the return, of which there is one: nothing in there jumps."""
    out = []
    for insn in code[name]:
        out.append(insn)
        if insn.startswith("ret"):
            return out
        if insn.startswith("j"):
            break
    raise harness.BenchError("%s does not go straight to its return: %s" % (name, out))


def cycles(opt, ms):
    """Of opening and closing, or None without protection keys."""
    p = subprocess.run([middle.program(opt, "bench", "gate"), str(ms)], capture_output=True, text=True)
    if p.returncode == 3:
        return None
    if p.returncode:
        raise harness.BenchError("bench/gate ended with code %d: %s" % (p.returncode, p.stderr.strip()))
    return json.loads(p.stdout)["cycles"]


def run(opt):
    code = functions(middle.program(opt, "lib", "vhostpci", "libvhostpci.so.0"))
    gate = straight(code, "vhp_gate_open") + straight(code, "vhp_gate_close")
    n = len(gate) + 2  # and two calls
    pkru = [i.split()[0] for i in gate if "pkru" in i]
    results = []
    for name in BURSTS:
        # Compilers split functions: name.part.0 and such are theirs.
        calls = [i for f, body in code.items() if f.split(".")[0] == name for i in body if "<vhp_gate_open>" in i]
        if not calls:
            raise harness.BenchError("%s does not go through the gate" % name)
        results.append({"question": "protect", "case": "%s, a burst of %d" % (name, BURST), "unit": "instructions for the gate", "ours": n,
                        "peer": 0, "peer_name": "a port without protect", "ratio": None, "runs": 1, "spread": None,
                        "note": "%.2f a packet; of these %s" % (n / BURST, ", ".join("%d %s" % (pkru.count(k), k) for k in sorted(set(pkru))))})
    values = [c for c in (cycles(opt, 100) for _ in range(opt.pairs)) if c is not None]
    if values:
        results.append(harness.single("protect", "open and close the gate", "cycles", values, note="%.1f a packet of a burst of %d" %
                                      (min(values) / BURST, BURST)))
    else:
        results.append({"question": "protect", "case": "open and close the gate", "unit": "cycles", "ours": None, "peer": None, "peer_name": None,
                        "ratio": None, "runs": 0, "spread": None, "note": "not measurable here: the processor has no protection keys"})
    return results
