"""Public demonstrations: where they are, and a download that can be interrupted and is verified."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inril_ray.types import InrilError

BLOCK = 1 << 20
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Source:
    """One public file or directory."""

    url: str
    name: str
    """Name of the local file or directory."""
    sha256: str | None = None
    """Checksum, where its publisher states one that does not come with the file."""
    members: tuple[str, ...] = ()
    """Files behind ``url``, where the source is a directory."""


SIGNATURES = {".hdf5": b"\x89HDF\r\n\x1a\n", ".json": b"{"}
"""Suffix to the first bytes of such a file; an error page of a server begins otherwise."""
STANFORD = "http://downloads.cs.stanford.edu/downloads/rt_benchmark"
ROBOMIMIC = "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/v1.5"
D4RL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"
MINARI = "https://huggingface.co/datasets/farama-minari/D4RL/resolve/main"
MIMICGEN = "https://huggingface.co/datasets/amandlek/mimicgen_datasets/resolve/main/core"


def _robomimic(task: str) -> dict[str, Source]:
    """Proficient (``ph``) and mixed (``mh``) human demonstrations, recorded with robosuite 1.5 and with 1.4.1."""
    new = {k: Source(f"{ROBOMIMIC}/{task}/{k}/low_dim_v15.hdf5", f"{task}_{k}_v15.hdf5") for k in ("ph", "mh")}
    old = {
        f"{k}_v141": Source(f"{STANFORD}/{task}/{k}/low_dim_v141.hdf5", f"{task}_{k}_v141.hdf5") for k in ("ph", "mh")
    }
    return new | old


def _minari(name: str, *variants: str) -> dict[str, Source]:
    """D4RL's data as Minari publishes them."""
    members = ("data/metadata.json", "data/main_data.hdf5")
    return {v: Source(f"{MINARI}/{name}/{v}-v2", f"{name}_{v}-v2", members=members) for v in variants}


def _one(variant: str, base: str, name: str) -> dict[str, Source]:
    return {variant: Source(f"{base}/{name}", name)}


SOURCES: dict[str, dict[str, Source]] = {
    **{f"robomimic/{task}": _robomimic(task) for task in ("lift", "can", "square", "transport")},
    **{f"gym/{task}": _one("medium", D4RL, f"{task}_medium-v2.hdf5") for task in ("hopper", "walker2d", "halfcheetah")},
    "adroit/hammer": _minari("hammer", "human", "expert", "cloned"),
    **{
        f"mimicgen/{task}": _one("core", MIMICGEN, f"{task}_d0.hdf5")
        for task in ("coffee", "threading", "nut_assembly", "mug_cleanup", "hammer_cleanup")
    },
    **{
        f"mimicgen/{task}": _one("core", MIMICGEN, f"{task}.hdf5")
        for task in ("coffee_d1", "coffee_d2", "threading_d1", "threading_d2", "mug_cleanup_d1", "hammer_cleanup_d1")
    },
}
"""Task to its public files by variant; the first variant is the default. Fetch has none: they can be made here."""


def source(task: str, variant: str | None = None) -> Source:
    """Return where the demonstrations of a task are.

    Raises:
        InrilError: no public file is known for the task or the variant; lists the choices.
    """
    if task not in SOURCES:
        raise InrilError(
            f"No public demonstrations are known for task {task!r}; `inril demos make` can record some for many tasks. "
            f"Known: {', '.join(SOURCES)}."
        )
    variants = SOURCES[task]
    variant = variant or next(iter(variants))
    if variant not in variants:
        raise InrilError(f"variant {variant!r}: {task} has {', '.join(variants)}.")
    return variants[variant]


def download(where: Source, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Download a file, or the files of a directory, going on where an earlier attempt stopped.

    The bytes go to ``.NAME.partial``; the file appears under its name only when size and checksum are right. Its
    SHA-256 is kept in ``NAME.sha256``, so that a later download can be compared.

    Args:
        where: what to download.
        folder: directory for the file.
        say: takes lines about progress.

    Returns:
        The file or directory.

    Raises:
        InrilError: the server can't be reached, does not have the file, or sent other bytes than it announced.
    """
    for member in where.members:
        part = folder / where.name / member
        download(Source(f"{where.url}/{member}", part.name), part.parent, say)
    if where.members:
        return folder / where.name
    target, record = folder / where.name, folder / f"{where.name}.sha256"
    if target.exists():
        found, known = _digest(target), where.sha256 or _recorded(record)
        if known is not None and found != known:
            raise InrilError(f"{target} has SHA-256 {found}, {known} is expected. Delete it to download it again.")
        say(f"{target} is already there, SHA-256 {found}")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{where.name}.partial"
    announced = _fetch(where, partial, say)
    found, known = _digest(partial), where.sha256 or announced or _recorded(record)
    if known is not None and found != known:
        partial.unlink()
        raise InrilError(f"{where.url}: SHA-256 is {found}, {known} is expected. The file was deleted; try again.")
    signature = SIGNATURES[target.suffix]
    with partial.open("rb") as file:
        begins = file.read(len(signature))
    if begins != signature:
        partial.unlink()
        raise InrilError(f"{where.url} is no {target.suffix[1:]} file; it begins with {begins!r}. It was deleted.")
    os.replace(partial, target)
    partial.with_name(f"{partial.name}.version").unlink(missing_ok=True)
    record.write_text(f"{found}  {where.name}\n")
    say(f"{target}: {target.stat().st_size} bytes, SHA-256 {found}{'' if known else ' (not stated by the server)'}")
    return target


def _fetch(where: Source, partial: Path, say: Callable[[str], None]) -> str | None:
    """Bring a partial file to its full size; return the SHA-256 that the server announced, if any."""
    host = urlsplit(where.url).netloc
    redirects = _Redirects()
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(where.url, headers={"User-Agent": "inril_ray", "Accept-Encoding": "identity"})
    version = partial.with_name(f"{partial.name}.version")
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version.is_file():  # a file that has changed meanwhile is sent from its beginning
            request.add_header("If-Range", version.read_text())
    try:
        answer = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return redirects.announced or _checksum(error.headers)
            partial.unlink()
            return _fetch(where, partial, say)
        raise InrilError(f"{host} answered {error.code} {error.reason} for {where.url}.") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InrilError(
            f"could not reach {host}: {reason}; download {where.url} elsewhere and pass --demos FILE."
        ) from None
    with answer:
        # A server without ranges sends the file from its beginning.
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length") or ""
        total = start + int(length) if length.isdigit() else None
        size = f"{total / 1e6:.1f} MB" if total else "unknown size"
        say(f"{where.url}: {size}" + (f", going on at {start / 1e6:.1f} MB" if start else ""))
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if mark and not mark.startswith("W/"):
            version.write_text(mark)
        else:
            version.unlink(missing_ok=True)
        problem = _copy(answer, partial, start)
    done = partial.stat().st_size
    if problem or total not in (None, done):
        raise InrilError(
            f"{host} sent {done} of {total or 'unknown'} bytes of {where.url}{f' ({problem})' if problem else ''}. "
            "Run the command again to go on."
        )
    return redirects.announced or _checksum(answer.headers)


def _copy(answer: Any, partial: Path, start: int) -> str:
    """Write what the server sends behind the first ``start`` bytes, and return what went wrong, if anything did."""
    with partial.open("r+b" if start else "wb") as file:
        file.seek(start)
        try:
            while block := answer.read(BLOCK):
                file.write(block)
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
    return ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and remembers the checksum that Hugging Face states in its own answer only."""

    announced: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Note the checksum, then go on as usual, but never from https to a connection that can be tampered with."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        self.announced = self.announced or _checksum(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _checksum(headers: Any) -> str | None:
    """Return the SHA-256 in ``X-Linked-ETag``, which for large files of Hugging Face is one."""
    found = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag") or "")
    return found[1] if found else None


def _recorded(record: Path) -> str | None:
    found = re.match(r"[0-9a-f]{64}\b", record.read_text()) if record.is_file() else None
    return found[0] if found else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
