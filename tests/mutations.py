"""Changes of source code, one at a time, and how a running process takes one over.

The changes are those of mutmut's operators. Not made, by rule: of annotations, decorators, docstrings, imports, ``len``
and ``isinstance``, sentences (string literals with a space), ``zip``'s ``strict`` (which only refuses what can't come),
and the defaults of fields (settings, which the tests of the presets hold). A string literal is changed in one way only.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "inril_ray"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change."""

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


def mutants_of(files: Sequence[str], only: str = "") -> list[Mutant]:
    """Return all changes of files of the package.

    Args:
        files: relative to the package.
        only: end of the names of the classes to change; all that is there by default.
    """
    found: dict[str, Mutant] = {}
    for file in files:
        source = (PACKAGE / file).read_text()
        wrapper = MetadataWrapper(cst.parse_module(source))
        visitor = _Visitor(only)
        wrapper.visit(visitor)
        for function, lines, defined, old, new in visitor.found:
            mutated = wrapper.module.deep_replace(old, new).code  # type: ignore[union-attr]
            try:
                compile(mutated, file, "exec")
            except SyntaxError:
                continue
            change = _change(source, mutated)
            mutant = Mutant(file=file, function=function, lines=lines, change=change, source=mutated, defined=defined)
            if mutated != source:
                found[mutated] = mutant
    return list(found.values())


def _change(old: str, new: str) -> str:
    rows = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[3:]
    gone, come = (" ".join(r[1:].strip() for r in rows if r[0] == sign) for sign in "-+")
    return f"{gone} -> {come}"


# -- applying one -----------------------------------------------------------------------------------------------------
def module_of(file: str) -> ModuleType:
    """Import a file of the package; plug-ins are not imported before somebody asks for them."""
    return importlib.import_module(".".join(("inril_ray", *Path(file).with_suffix("").parts)))


def live_functions(file: str) -> dict[str, list[FunctionType]]:
    """Return the functions of a file of the package, by qualified name, from first to last line."""
    path = module_of(file).__file__
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

    Raises:
        ValueError: its functions are not found, or have other closures.
    """
    path = str(PACKAGE / mutant.file)
    if mutant.defined:
        return _apply_definitions(module_of(mutant.file), mutant, path, live)
    if not live:
        raise ValueError(f"No function of {mutant.file} is found.")
    by_name = defaultdict(list)
    for code in codes_of(compile(mutant.source, path, "exec")):
        by_name[code.co_qualname].append(code)
    for name, functions in live.items():
        if "<" in name:  # made anew by the changed function around it
            continue
        lines = sorted({f.__code__.co_firstlineno for f in functions})
        for function in functions:
            code = by_name[name][lines.index(function.__code__.co_firstlineno)]
            if not code.co_freevars:  # a change that drops `super()` needs no cell, but the function has one
                code = code.replace(co_freevars=function.__code__.co_freevars)
            function.__code__ = code
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
