"""Why a path can't be read, in words: what holds for every format."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/"
"""Beginning of the small text that Git keeps in place of a large file."""
HDF5 = b"\x89HDF\r\n\x1a\n"
KINDS = {
    b"PK\x03\x04": "it is a zip archive: unpack it first",
    b"\x1f\x8b": "it is compressed by gzip: unpack it first",
    b"BZh": "it is compressed by bzip2: unpack it first",
    b"\xfd7zXZ\x00": "it is compressed by xz: unpack it first, unless it is a pickle; then name it .pkl.xz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd: unpack it first",
    b"PAR1": "it is one Parquet file; LeRobot's and Minari's sets are given by their directory",
    b"\x93NUMPY": "it is a NumPy array",
    b"<": "it is a web page or XML: the download may have been answered by a page; download it again",
    b"{": "it is JSON; LeRobot's and Minari's sets are given by their directory",
    b"\x80": "it seems to be a pickle; furniture's end in .pkl or .pkl.xz",
}
"""Beginning of a file to what it is."""
TAR, TAR_AT = b"ustar", 257
BEGINNING = 512
"""Bytes of a file that are looked at."""
NAMES = 8
"""Entries of a directory that are listed."""


def beginning(path: Path) -> bytes:
    """Return the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(BEGINNING)


def cause(path: Path) -> str | None:
    """Return what keeps a file or a directory from being read, whatever its format; None if nothing does."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return None if any(path.iterdir()) else "is an empty directory."
        if not stat.S_ISREG(mode):
            return "is neither a file nor a directory."
        first = beginning(path)
    except FileNotFoundError:
        return f"is a link to {os.readlink(path)}, which does not exist." if path.is_symlink() else "does not exist."
    except OSError as error:
        return f"can't be read: {error.strerror or error}."
    if first.startswith(LFS):
        return "is a Git-LFS pointer, not the file that it stands for: run `git lfs pull` where it was cloned."
    return None if first else "is empty: 0 bytes."


def explained(path: Path, error: Exception) -> str:
    """Return what an error means that was raised when a path, or something in it, was read."""
    reason = str(error).strip() or type(error).__name__
    if "unable to lock file" in reason or "file is already open for write" in reason:
        return (
            "is open for writing in another program, or that program was killed: close it, or copy the file and read "
            f"the copy ({reason})."
        )
    if found := cause(path):
        return found
    name = getattr(error, "filename", None)
    if isinstance(error, PermissionError):
        return f"can't be read: {error.strerror or error} ({name or path})."
    if isinstance(error, FileNotFoundError) and name:
        return f"lacks {name}."
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE):
        return f"can't be read: {error.strerror}."
    return f"is damaged or truncated ({reason})."


def description(path: Path) -> str:
    """Return what a file or a directory is that no format recognises."""
    if path.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        closed = [error for error in _closed(path) if error.filename]
        if closed:
            return f"{closed[0].filename} in it can't be read: {closed[0].strerror}"
        return f"it holds {', '.join(names[:NAMES])}{', …' if len(names) > NAMES else ''}"
    first = beginning(path)
    if first[TAR_AT:].startswith(TAR):
        return "it is a tar archive: unpack it first"
    return next(
        (kind for magic, kind in KINDS.items() if first.lstrip().startswith(magic)), f"it begins {first[:16]!r}"
    )


def _closed(path: Path) -> list[OSError]:
    """Return the errors of directories below a path that can't be listed."""
    errors: list[OSError] = []
    for _ in os.walk(path, onerror=errors.append):
        pass
    return errors
