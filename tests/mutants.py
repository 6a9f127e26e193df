"""Mutation tests of the mathematics: ``make mutants`` changes one thing at a time and counts what no test notices.

Everything is imported and every test is collected once for a group of files; each mutant runs in a forked child that
swaps the code of one function and runs the tests that execute the changed lines, the quickest first, until one fails.
What is changed, :mod:`tests.mutations` says. What can't be told from the original is listed with its reason in
``equivalent_mutants.toml``.

Run some groups with ``python -m tests.mutants guard theory``, and only the last survivors with ``--survivors``.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import coverage
import pytest

from tests.mutations import PACKAGE, ROOT, Mutant, apply, live_functions, mutants_of

RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.toml"
BUDGET_S = 20.0
"""The slowest tests of a line that come after so much time of the quicker ones are left out: survivors may be too many,
never too few."""
OUTCOMES = {0: "survived", 1: "killed", 2: "broken", -signal.SIGXCPU: "timeout"}
"""Exit status of a child to what became of its mutant; another signal killed it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is mutated together, and what may notice."""

    files: tuple[str, ...]
    """In the package; a folder stands for its files."""
    tests: tuple[str, ...]
    """Files of ``tests/unit``."""
    only: str = ""
    """End of the names of the classes to mutate; all by default."""

    def paths(self) -> list[str]:
        """Return the files, relative to the package."""
        found = [p for f in self.files for p in (sorted((PACKAGE / f).glob("[a-z]*.py")) or [PACKAGE / f])]
        return [str(path.relative_to(PACKAGE)) for path in found]


GROUPS = {
    "losses": Group(
        files=("losses/imitation.py", "losses/policy_gradient.py", "losses/value.py"),
        tests=("losses", "off_policy"),
    ),
    "returns": Group(files=("losses/returns.py",), tests=("losses", "off_policy", "algorithms")),
    "separations": Group(
        files=("gradient_separation",),
        tests=("gradient_separation", "separation_backward", "relation", "interleaving"),
    ),
    "schedules": Group(files=("schedules",), tests=("schedules", "interleaving")),
    "theory": Group(files=("interleaving_theory.py",), tests=("theory", "schedules")),
    "guard": Group(files=("guard.py",), tests=("guard",)),
    "diagnostics": Group(files=("diagnostics.py",), tests=("diagnostics", "learner", "residual")),
    "statistics": Group(files=("statistics.py",), tests=("statistics",)),
    "chunking": Group(files=("envs/chunking.py",), tests=("chunking",)),
    "normalisers": Group(
        files=("policies/base.py", "policies/residual.py"), tests=("policies", "residual"), only="Normalizer"
    ),
    "replay": Group(files=("replay.py",), tests=("replay", "off_policy")),
}


class Runner:
    """A plugin of pytest that runs mutants in place of the collected tests."""

    def __init__(self, group: str, survivors_only: bool) -> None:
        self.group, self.survivors_only = group, survivors_only
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed."""
        if report.failed:
            self.failed.append(f"{report.nodeid}\n{report.longreprtext}")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the mutants."""
        if session.testsfailed:
            raise session.Interrupted("A file of tests can't be imported.")
        covering, seconds = self._measure(session)
        equivalent = {e["mutant"]: e["reason"] for e in tomllib.loads(EQUIVALENT.read_text())["equivalent"]}
        before = _results().get(self.group)
        mutants = mutants_of(GROUPS[self.group].paths(), GROUPS[self.group].only)
        gc.unfreeze()  # of the group before: what is frozen is not found
        self.live = {file: live_functions(file) for file in GROUPS[self.group].paths()}
        gc.freeze()  # children share its pages
        outcomes: dict[str, list[str]] = defaultdict(list)
        for i, mutant in enumerate(mutants):
            if mutant.name in equivalent:
                outcome = "equivalent"
            elif self.survivors_only and before and mutant.name not in before["survivors"]:
                outcome = "timeout" if mutant.name in before["timed_out"] else "killed"
            else:
                tests = _quickest(mutant, covering, seconds)
                chosen = sorted(
                    (item for item in session.items if item.nodeid in tests), key=lambda x: seconds[x.nodeid]
                )
                outcome = self._try(mutant, chosen, 10 + 5 * sum(seconds[t] for t in tests)) if chosen else "survived"
                if outcome != "killed":
                    print(f"{i + 1}/{len(mutants)} {outcome} ({len(chosen)} tests): {mutant.name}", flush=True)
            outcomes[outcome].append(mutant.name)
        if outcomes["broken"]:
            raise RuntimeError(f"{len(outcomes['broken'])} mutants could not be applied.")
        row = _row(outcomes)
        print(f"{self.group}: {_summary(row)}", flush=True)
        _write({**_results(), self.group: row})
        return True

    def _run(self, items: list[pytest.Item]) -> bool:
        """Run tests until one fails; return whether one did."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return True
        return False

    def _try(self, mutant: Mutant, items: list[pytest.Item], limit_s: float) -> str:
        def child() -> int:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 60))
            try:
                apply(mutant, self.live[mutant.file])
            except Exception:  # a changed definition may not even be executable
                return 1 if mutant.defined else 2
            return int(self._run(items))

        return OUTCOMES.get(_forked(child), "killed")

    def _measure(self, session: pytest.Session) -> tuple[dict[str, dict[int, set[str]]], dict[str, float]]:
        """Return the tests that execute each line of each file, and the CPU seconds of each test."""
        files = GROUPS[self.group].paths()
        with tempfile.NamedTemporaryFile() as out:

            def child() -> int:
                measured = coverage.Coverage(
                    data_file=None, config_file=False, include=[str(PACKAGE / file) for file in files]
                )
                measured.start()
                seconds = {}
                for item, following in zip(session.items, [*session.items[1:], None], strict=True):
                    measured.switch_context(item.nodeid)
                    start = time.process_time()
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    seconds[item.nodeid] = time.process_time() - start
                measured.stop()
                data = measured.get_data()
                lines = {file: data.contexts_by_lineno(str(PACKAGE / file)) for file in files}
                pickle.dump((lines, seconds, self.failed), out)
                out.flush()
                return 0

            if _forked(child) != 0:
                raise RuntimeError("The tests could not be run without a mutant.")
            lines, seconds, failed = pickle.load(open(out.name, "rb"))
        if failed:
            raise RuntimeError(f"Tests fail without a mutant: {failed[0]}")
        print(f"{len(seconds)} tests take {sum(seconds.values()):.0f} s of CPU.", flush=True)
        return {f: {n: set(t) - {""} for n, t in by.items()} for f, by in lines.items()}, seconds


def _forked(work: Callable[[], int]) -> int:
    """Return the exit status of work that a child does in silence; minus the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _quickest(
    mutant: Mutant, covering: Mapping[str, Mapping[int, set[str]]], seconds: Mapping[str, float]
) -> list[str]:
    """Return the tests that execute a mutant's lines, the quickest first, within the budget."""
    by_line = covering[mutant.file]
    tests = set().union(*(by_line.get(line, set()) for line in mutant.lines))
    if not tests and mutant.defined:
        tests = set().union(*by_line.values())
    chosen, spent = [], 0.0
    for test in sorted(tests, key=lambda t: seconds[t]):
        spent += seconds[test]
        if chosen and spent > BUDGET_S:
            break
        chosen.append(test)
    return chosen


def _results() -> dict[str, Any]:
    """Return the groups of the last results, which another process may have added to."""
    return json.loads(RESULTS.read_text())["groups"] if RESULTS.exists() else {}


def _row(outcomes: Mapping[str, list[str]]) -> dict[str, Any]:
    counts = {name: len(outcomes[name]) for name in ("killed", "survived", "timeout", "equivalent")}
    return {
        "mutants": sum(counts.values()),
        **counts,
        "survivors": outcomes["survived"],
        "timed_out": outcomes["timeout"],
        "equivalents": outcomes["equivalent"],
    }


def share(row: Mapping[str, Any]) -> float:
    """Return the share of the mutants that are not equivalent which tests notice."""
    return (row["killed"] + row["timeout"]) / max(1, row["mutants"] - row["equivalent"])


def _summary(row: Mapping[str, Any]) -> str:
    return (
        f"{100 * share(row):.1f} % of {row['mutants'] - row['equivalent']} killed ({row['timeout']} by time), "
        f"{row['survived']} survived, {row['equivalent']} equivalent"
    )


def _write(results: Mapping[str, Mapping[str, Any]]) -> None:
    names = ("mutants", "killed", "survived", "timeout", "equivalent")
    total = {name: sum(row[name] for row in results.values()) for name in names}
    record = {
        "date": datetime.date.today().isoformat(),
        "tool": f"mutators of mutmut {importlib.metadata.version('mutmut')}, run by tests/mutants.py",
        "share_killed": round(share(total), 4),
        "total": total,
        "groups": {name: results[name] for name in GROUPS if name in results},
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--survivors", action="store_true", help="try only those that survived the last time")
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f"unknown groups {sorted(unknown)}; there are {', '.join(GROUPS)}")
    options = ["-o", "addopts=--import-mode=importlib", "-s", "-p", "no:terminal", "-p", "no:xdist", "-p"]
    options += [
        "no:cacheprovider",
        "-p",
        "no:faulthandler",
        "--timeout=60",
        "-m",
        "not ray and not sim and not slow and not fuzz",
    ]
    for group in args.groups or GROUPS:
        tests = [str(ROOT / "tests" / "unit" / f"test_{name}.py") for name in GROUPS[group].tests]
        status = pytest.main([*options, *tests], plugins=[Runner(group, args.survivors)])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(int(status))


if __name__ == "__main__":
    main()
