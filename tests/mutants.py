"""Mutation tests of the mathematics: ``make mutants`` changes one thing at a time and counts what no test notices.

The changes are mutmut's. Everything is imported and every test is collected once; each mutant runs in a forked child
that swaps one code object and runs the tests that execute the changed lines, the quickest first, until one fails.

Not mutated, by rule: annotations, decorators, docstrings, imports, ``len`` and ``isinstance``, sentences (string
literals with a space), ``zip``'s ``strict`` (which only refuses what can't come), and the defaults of fields (settings,
which the tests of the presets hold). A string literal is changed in one way only. What is left and can't be told from
the original is listed with its reason in ``equivalent_mutants.toml``.

Run some groups with ``python -m tests.mutants guard theory``, and only the last survivors with ``--survivors``.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import gc
import importlib
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import coverage
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "inril_ray"
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.toml"


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is mutated together, and what may notice."""

    files: tuple[str, ...]
    """In the package; a folder stands for its files."""
    tests: tuple[str, ...]
    """Files of ``tests/unit``."""
    only: str = ""
    """The class to mutate; all by default."""


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
BUDGET_S = 20.0
"""The slowest tests of a line that come after so much time of the quicker ones are left out: survivors may be too many,
never too few."""
OUTCOMES = {0: "survived", 1: "killed", 2: "broken", -signal.SIGXCPU: "timeout"}
"""Exit status of a child to what became of its mutant; another signal killed it."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change."""

    group: str
    file: str
    """In the package."""
    function: str
    """Dotted name of the innermost named scope; empty in the module's body."""
    lines: range
    """Of the changed statement."""
    change: str
    """``old -> new`` of the changed lines."""
    source: str
    """The whole file with the change."""
    defined: bool
    """It is executed where the file is imported: a constant, a class variable or a default."""

    @property
    def name(self) -> str:
        """What identifies it, whatever moves around it."""
        return f"{self.file} {self.function}: {self.change}"


# -- making mutants ---------------------------------------------------------------------------------------------------
class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, only: str) -> None:
        super().__init__()
        self.only = only
        self.scope: list[cst.FunctionDef | cst.ClassDef] = []
        self.statement: cst.CSTNode | None = None
        self.defaults: cst.Parameters | None = None
        self.found: list[tuple[str, range, bool, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if self._spared(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.scope.append(node)
        if isinstance(node, cst.SimpleStatementLine):
            self.statement = node
        functions = [s for s in self.scope if isinstance(s, cst.FunctionDef)]
        if functions and node is functions[-1].params:
            self.defaults = node
        defined = not functions or (len(functions) == 1 and self.defaults is not None)
        names = [s.name.value for s in self.scope]
        if any(name.endswith(self.only) for name in names) or not self.only:
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    for mutated in operator(node):
                        if _counts(node, mutated):
                            self.found.append((".".join(names), self._lines(node), defined, node, mutated))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if self.scope and node is self.scope[-1]:
            self.scope.pop()
        if node is self.statement:
            self.statement = None
        if node is self.defaults:
            self.defaults = None

    def _lines(self, node: cst.CSTNode) -> range:
        where = self.get_metadata(PositionProvider, self.statement or node)
        return range(where.start.line, where.end.line + 1)

    def _spared(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
            return True
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):
            return True
        if isinstance(node, cst.SimpleString):
            return " " in node.value
        if isinstance(node, cst.Arg):
            return node.keyword is not None and node.keyword.value == "strict"
        if isinstance(node, cst.AnnAssign) and self.scope and isinstance(self.scope[-1], cst.ClassDef):
            return True
        return (
            isinstance(node, cst.Call)
            and isinstance(node.func, cst.Name)
            and node.func.value in ("len", "isinstance", "TypeVar", "super")
        )


def _counts(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """Leave out all ways but one to change a string, and the changes of a call's argument ``strict``."""
    if isinstance(node, cst.SimpleString):
        return mutated.value[1:3] == "XX"
    if isinstance(node, cst.Call) and isinstance(mutated, cst.Call):
        before, after = ([a for a in c.args if a.keyword and a.keyword.value == "strict"] for c in (node, mutated))
        return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
    return True


def files_of(group: str) -> list[str]:
    """Return the files of a group, relative to the package."""
    found = []
    for name in GROUPS[group].files:
        path = PACKAGE / name
        files = sorted(path.glob("[a-z]*.py")) if path.is_dir() else [path]
        found += [str(file.relative_to(PACKAGE)) for file in files]
    return found


def mutants_of(group: str) -> list[Mutant]:
    """Return all changes of a group's files."""
    found: dict[str, Mutant] = {}
    for file in files_of(group):
        source = (PACKAGE / file).read_text()
        wrapper = MetadataWrapper(cst.parse_module(source))
        visitor = _Visitor(GROUPS[group].only)
        wrapper.visit(visitor)
        for function, lines, defined, old, new in visitor.found:
            mutated = wrapper.module.deep_replace(old, new).code  # type: ignore[union-attr]
            try:
                compile(mutated, file, "exec")
            except SyntaxError:
                continue
            change = _change(source, mutated)
            mutant = Mutant(
                group=group, file=file, function=function, lines=lines, change=change, source=mutated, defined=defined
            )
            if mutated != source:
                found[mutated] = mutant
    return list(found.values())


def _change(old: str, new: str) -> str:
    rows = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[3:]
    gone, come = (" ".join(r[1:].strip() for r in rows if r[0] == sign) for sign in "-+")
    return f"{gone} -> {come}"


# -- applying one -----------------------------------------------------------------------------------------------------
def module_name(file: str) -> str:
    """Return the dotted name of a file of the package."""
    return ".".join(("inril_ray", *Path(file).with_suffix("").parts))


def live_functions(path: str) -> dict[str, list[FunctionType]]:
    """Return the functions that were compiled from a file, by qualified name, from first to last line."""
    found = [o for o in gc.get_objects() if isinstance(o, FunctionType) and o.__code__.co_filename == path]
    by_name = defaultdict(list)
    for function in sorted(found, key=lambda f: f.__code__.co_firstlineno):
        by_name[function.__code__.co_qualname].append(function)
    return by_name


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions in a code object."""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from codes_of(const)


def apply(mutant: Mutant, live: Mapping[str, list[FunctionType]]) -> None:
    """Make this process run the changed code.

    Args:
        mutant: the change.
        live: :func:`live_functions` of its file.
    """
    path = str(PACKAGE / mutant.file)
    if mutant.defined:
        return _apply_definitions(importlib.import_module(module_name(mutant.file)), mutant, path, live)
    by_name = defaultdict(list)
    for code in codes_of(compile(mutant.source, path, "exec")):
        by_name[code.co_qualname].append(code)
    for name, functions in live.items():
        lines = sorted({f.__code__.co_firstlineno for f in functions})
        for function in functions:
            function.__code__ = by_name[name][lines.index(function.__code__.co_firstlineno)]
    return None


def _apply_definitions(module: ModuleType, mutant: Mutant, path: str, live: Mapping[str, list[FunctionType]]) -> None:
    """Take over constants, class variables and defaults, which are made when the module is executed."""
    namespace: dict[str, Any] = {"__name__": module.__name__, "__file__": path}
    exec(compile(mutant.source, path, "exec"), namespace)
    modules = [m.__dict__ for n, m in sys.modules.items() if n.split(".")[0] in ("inril_ray", "tests")]
    old = module.__dict__
    for name, new in namespace.items():
        if name.startswith("__") or name not in old:
            continue
        if isinstance(new, type) and new.__module__ == module.__name__:
            for key, value in vars(new).items():
                if not key.startswith("__") and _is_data(value) and vars(old[name]).get(key) != value:
                    setattr(old[name], key, value)
        elif _is_data(new) and new != old[name]:
            before = old[name]
            for names in modules:
                if name in names and names[name] is before:
                    names[name] = new
        elif type(new).__module__ == module.__name__ and not isinstance(new, type | FunctionType):
            vars(old[name]).update(vars(new))  # a constant of a class of this module keeps its identity
    fresh = [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__globals__ is namespace]
    for function in fresh:
        for target in live.get(function.__code__.co_qualname, ()):
            if target.__code__.co_firstlineno != function.__code__.co_firstlineno:
                continue
            if _is_data(function.__defaults__):
                target.__defaults__ = function.__defaults__
            if _is_data(function.__kwdefaults__):
                target.__kwdefaults__ = function.__kwdefaults__


def _is_data(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


# -- running ----------------------------------------------------------------------------------------------------------
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
        results = json.loads(RESULTS.read_text())["groups"] if RESULTS.exists() else {}
        before = results.get(self.group)
        mutants = mutants_of(self.group)
        self.live = {file: live_functions(str(PACKAGE / file)) for file in files_of(self.group)}
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
        results[self.group] = _row(outcomes)
        print(f"{self.group}: {_summary(results[self.group])}", flush=True)
        _write(results)
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
            except ValueError:
                return 2
            except Exception:  # a changed definition that can't even be executed
                return 1
            return int(self._run(items))

        return OUTCOMES.get(_forked(child), "killed")

    def _measure(self, session: pytest.Session) -> tuple[dict[str, dict[int, set[str]]], dict[str, float]]:
        """Return the tests that execute each line of each file, and the CPU seconds of each test."""
        files = files_of(self.group)
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
            if "MUTANTS_DEBUG" not in os.environ:
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
    options += ["no:cacheprovider", "--timeout=60", "-m", "not ray and not sim and not slow and not fuzz"]
    for group in args.groups or GROUPS:
        tests = [str(ROOT / "tests" / "unit" / f"test_{name}.py") for name in GROUPS[group].tests]
        status = pytest.main([*options, *tests], plugins=[Runner(group, args.survivors)])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            sys.exit(int(status))


if __name__ == "__main__":
    main()
