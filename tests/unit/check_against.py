#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What scripts/bench --against calls slower, faster, the same and too noisy.

usage: check_against.py SOURCE_ROOT
"""
import io
import os
import sys


def row(ours, ratio=None, unit="cycles/packet", case="copy", spread=0.02, peer="net_vhost", **more):
    return dict({"question": "hop", "case": case, "unit": unit, "ours": ours, "ratio": ratio, "spread": spread,
                 "peer_name": peer if ratio else None}, **more)


def main(root):
    sys.path.insert(0, os.path.join(root, "bench"))
    import against

    def word(ours, theirs, **kw):
        """One row, a round each."""
        (e,) = against.compare([[row(*v, **kw)] for v in ours], [[row(*v, **kw)] for v in theirs])
        return e["verdict"]

    # By the ratio to the peer, whatever the machine did to both.
    assert word([(50, 2.0), (80, 2.0)], [(40, 2.0), (90, 2.0)]) == "same"
    assert word([(50, 1.8), (50, 1.8)], [(50, 2.0), (50, 2.0)]) == "slower"
    assert word([(50, 2.0), (50, 2.0)], [(50, 1.8), (50, 1.8)]) == "faster"
    # Less than the margin, less than the rounds lie apart, less than half the spread of the pairs.
    assert word([(50, 1.96), (50, 1.96)], [(50, 2.0), (50, 2.0)]) == "same"
    assert word([(50, 1.8), (50, 2.0)], [(50, 2.0), (50, 2.0)]) == "same"
    assert word([(50, 1.8), (50, 1.8)], [(50, 2.0), (50, 2.0)], spread=0.24) == "same"
    assert word([(50, 1.0), (50, 2.0)], [(50, 2.0), (50, 2.0)]) == "too noisy"
    # Without a peer: fewer cycles and more packets are better.
    assert word([(60,), (60,)], [(50,), (50,)]) == "slower"
    assert word([(60,), (60,)], [(50,), (50,)], unit="packets/s") == "faster"
    assert word([(50,), (50,)], [(60,), (60,)], unit="packets/s") == "slower"
    assert word([(60,), (60,)], [(50,), (50,)], unit="us, 99 %") == "slower"
    # A ratio that one round refused: by the figures of all.
    ours = [[row(60, 1.5)], [row(60, 1.5)]]
    assert [e["verdict"] for e in against.compare(ours, [[row(50, 1.8)], [row(50, None, refused="noise", peer_name="net_vhost")]])] \
        == ["slower"]
    assert word([(60, None), (60, None)], [(50, None), (50, None)], refused="too noisy") == "no result"
    # Rows that only one side has are not compared; the same case against two peers is two rows.
    (a, b) = against.compare([[row(50, 1.0)], [row(50, 1.0)]], [[row(50, 1.0, case="new")], [row(50, 1.0, case="new")]])
    assert (a["verdict"], b["verdict"]) == ("only here", "only there") and a["change"] is None
    two = [[row(50, 1.0), row(50, 0.4, peer="memcpy")]] * 2
    assert [e["verdict"] for e in against.compare(two, two)] == ["same", "same"]
    out = io.StringIO()
    against.table(against.compare(two, two), "main", out)
    assert "against main" in out.getvalue() and "1.00x" in out.getvalue()
    print("verdicts are right")


if __name__ == "__main__":
    main(sys.argv[1])
