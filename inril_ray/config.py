"""Strict configuration: mappings and ``a.b=c`` overrides to frozen dataclasses.

Every configurable class has a ``Config`` beside it, made with :func:`config`. Validation is pydantic's; what is added
here is that an unknown key lists the choices and that every message names the full path of the field and its value.
There is no interpolation and nothing is evaluated: a value is data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from inril_ray.types import InrilError

T = TypeVar("T")
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError)
"""What PyYAML raises on text that it can't read: beside its own error whatever Python says of a date or a number."""


CREDENTIALS = re.compile(r"(:/+)\S*@")


def masked(text: str) -> str:
    """Return text without what may be the credentials of an address."""
    return CREDENTIALS.sub(r"\1…@", text)


class _Shown(reprlib.Repr):
    """Values for messages: short, whatever YAML's aliases make of a small file, and without credentials."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 300

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(masked(x), level)


shown = _Shown().repr


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, dataclasses.field))
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, validated configuration section: no unknown keys, only finite numbers."""
    rules = ConfigDict(extra="forbid", allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, kw_only=True, config=rules)(cls)  # type: ignore[return-value]


def _located(path: str) -> str:
    if not path or "\0" in path or path.encode(errors="ignore").decode() != path:
        raise ValueError("the path of a file or a directory is needed")
    return path if os.path.isabs(path) else os.path.realpath(path)


def _located_store(uri: str) -> str:
    kind, separator, place = uri.partition(":///")
    if separator and kind.startswith("sqlite"):
        return f"{kind}:///{_located(place)}"
    return uri if ":" in uri or uri.startswith("databricks") else _located(uri)


LocalPath = Annotated[str, AfterValidator(_located)]
"""A path, made absolute, so that what is saved does not depend on where the command was typed."""
StoreUri = Annotated[str, AfterValidator(_located_store)]
"""Address of a server, or of a store on this machine, whose path is made absolute too."""


def build(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Make a configuration section from plain data.

    Args:
        cls: a class made with :func:`config`.
        values: nested mappings of plain values; sections that are already instances are taken as they are.
        path: where the section stands in the whole configuration, for messages.

    Raises:
        InrilError: unknown key, wrong type or value out of range; names every offending field with its value.
    """
    if not isinstance(values, Mapping):
        raise InrilError(f"Configuration section {path or 'top level'} must be a mapping, got {shown(values)}.")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        lines = [_explain(cls, e, path) for e in error.errors()]
        raise InrilError("\n".join(lines)) from None


def _explain(cls: type, error: Any, path: str) -> str:
    # pydantic's locations also hold labels of union members, which no user has written.
    parts, section = [], cls
    for part in map(str, error["loc"]):
        names = _field_types(section)
        if part in names or error["type"] == "unexpected_keyword_argument":
            parts.append(part)
        section = names.get(part, section)
    name = masked(".".join(([path] if path else []) + parts))
    if error["type"] == "unexpected_keyword_argument":
        return unknown_key(name, list(_field_types(section)))
    if error["type"] == "missing":  # the input is all that is around it
        return f"Configuration {name} is missing."
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        said = "a list is needed" + (f", such as [{error['input']}]" if str(error["input"]).isalnum() else "")
    return f"Configuration {name} = {shown(error['input'])}: {said}."


def unknown_key(name: str, choices: Sequence[str]) -> str:
    """Return what is said of a key, given by its dotted name, that is none of those there."""
    near = get_close_matches(name.rpartition(".")[2], choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown configuration key {masked(name)!r}.{hint} Keys here: {', '.join(choices)}."


def keys_of(cls: type) -> dict[str, Any]:
    """Return the keys of a section as nested mappings, whose leaves are None."""
    fields = _field_types(cls)
    return {
        name: keys_of(t) if isinstance(t, type) and dataclasses.is_dataclass(t) else None for name, t in fields.items()
    }


def _field_types(section: Any) -> dict[str, Any]:
    return typing.get_type_hints(section) if dataclasses.is_dataclass(section) else {}


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn ``["a.b=1", "c=x"]`` into ``{"a": {"b": 1}, "c": "x"}``. Values are YAML scalars or lists.

    Raises:
        InrilError: an item is not of the form ``key=value``, or sets both a section and a key in it.
    """
    result: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        keys = key.strip().split(".")
        if not equals or not all(k.isidentifier() for k in keys):
            raise InrilError(f"Override {shown(item)} is not of the form key=value, such as interleave.every=10.")
        try:
            value = yaml.safe_load(text) if text.strip() else ""
        except NOT_YAML as error:
            raise InrilError(f"Override {shown(item)}: the value is not valid YAML ({_where(error)}).") from None
        section = result
        for k in keys[:-1]:
            section = section.setdefault(k, {})
            if not isinstance(section, dict):
                raise InrilError(f"Override {shown(item)}: {k!r} is already set to a value.")
        if isinstance(section.get(keys[-1]), dict):
            raise InrilError(f"Override {shown(item)}: keys of {keys[-1]!r} are already set.")
        section[keys[-1]] = value
    return result


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"a.b": 1, "c": 2}`` into ``{"a": {"b": 1}, "c": 2}``."""
    result: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, last = key.split(".")
        inner: Any = {last: value}
        for name in reversed(sections):
            inner = {name: inner}
        result = merge(result, inner)
    return result


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``top`` laid over it, section by section."""
    result = dict(base)
    for key, value in top.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key, such as ``interleave.every``; lists are values."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        InrilError: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InrilError(f"Cannot read configuration file {path}: {error.strerror}.") from None
    except NOT_YAML as error:
        raise InrilError(f"Configuration file {path} is not valid YAML: {_where(error)}.") from None
    if not isinstance(values, dict):
        raise InrilError(f"Configuration file {path} must hold a mapping, got {type(values).__name__}.")
    return values


def _where(error: Exception) -> str:
    """Say what is wrong with a YAML text without quoting it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return masked(str(error))


def to_dict(section: Any) -> dict[str, Any]:
    """Return a configuration as plain data: what is printed, hashed and saved."""
    return dataclasses.asdict(section)


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return a 12-digit hash of plain configuration data, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]
