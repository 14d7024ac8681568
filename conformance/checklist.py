# SPDX-License-Identifier: BSD-3-Clause
"""The checklist of docs/spec.md, the checks that hold its rules, and how both are reported."""
import json
import pathlib
import re
import time
import traceback

SPEC = pathlib.Path(__file__).resolve().parent.parent / "docs" / "spec.md"
ROW = re.compile(r"^\| ([DG]\d+) \| \[([^]]+)\]\(#[^)]*\) \| (.*) \| (.*) \|$")
NOT_TESTED = "not tested: "


class Rule:
    """One row: @held is the name of a check, or None and @why."""

    def __init__(self, ident, section, text, held):
        self.id, self.section, self.text = ident, section, text
        self.held = None if held.startswith(NOT_TESTED) else held.strip("`")
        self.why = held[len(NOT_TESTED):] if self.held is None else None


def rules(spec=SPEC):
    """All rows of the checklist, in order."""
    out = [Rule(*m.groups()) for m in map(ROW.match, spec.read_text().splitlines()) if m]
    assert out, f"{spec} has no checklist"
    return out


class NotTested(Exception):
    """Raised by a check that cannot say anything here; its text says why."""


CHECKS = {}


def holds(*ids, needs=()):
    """Marks a check. @ids: the rules that it holds. @needs: what of the context it cannot do
    without."""
    def mark(f):
        assert f.__name__ not in CHECKS, f.__name__
        f.ids, f.needs = ids, needs
        CHECKS[f.__name__] = f
        return f
    return mark


def expect(truth, seen):
    """@seen: what is reported when @truth is false."""
    if not truth:
        raise AssertionError(seen)


def seen(err):
    """What an exception says; one that says nothing is told by the line that raised it."""
    if isinstance(err, AssertionError) and str(err):
        return " ".join(str(err).split())
    frames = traceback.extract_tb(err.__traceback__)
    where = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"
    return where if isinstance(err, AssertionError) else f"{type(err).__name__}: {err} ({where})"


class Report:
    def __init__(self, as_json):
        self.as_json, self.rows = as_json, []

    def add(self, rule, result, detail=""):
        self.rows.append({"id": rule.id, "section": rule.section, "rule": rule.text,
                          "check": rule.held, "result": result,
                          "detail": detail})
        if not self.as_json:
            said = {"pass": rule.text, "FAIL": f"{rule.text} -- seen: {detail}",
                    "not tested": f"{detail} -- {rule.text}"}
            print(f"{rule.id:4} {result:10}  {said[result]}", flush=True)

    def count(self, result):
        return sum(r["result"] == result for r in self.rows)

    def end(self, what):
        """Prints the sum; the exit status."""
        sums = {k: self.count(k) for k in ("pass", "FAIL", "not tested")}
        if self.as_json:
            print(json.dumps(dict(what, rules=self.rows, passed=sums["pass"], failed=sums["FAIL"],
                                  not_tested=sums["not tested"]),
                             indent=1))
        else:
            print(f"{sums['pass']} passed, {sums['FAIL']} failed, {sums['not tested']} not tested")
        return 1 if sums["FAIL"] else 0


def run(side, context, report, only=()):
    """Run what holds the rules of @side ("D" or "G"). A check that holds several rules runs
    once."""
    done = {}
    for rule in rules():
        if rule.id[0] != side or only and rule.id not in only:
            continue
        if rule.held is None:
            report.add(rule, "not tested", rule.why)
            continue
        if rule.held not in done:
            done[rule.held] = one(CHECKS[rule.held], context)
        report.add(rule, *done[rule.held])


def one(check, context):
    for need in check.needs:
        why = context.lacks(need)
        if why:
            return "not tested", why
    t = time.monotonic()
    try:
        check(context)
        result = "pass", ""
    except NotTested as err:
        result = "not tested", str(err)
    except KeyboardInterrupt:
        raise
    except Exception as err:  # whatever the other side did to us is a finding
        result = "FAIL", seen(err)
    context.after(check.__name__, time.monotonic() - t)
    return result
