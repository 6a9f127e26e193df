"""What a terminal, or whoever reads a command's output, may do to it, and it to them."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import threading
from typing import Any

STAND_INS = {"…": "...", "–": "-", "−": "-", "×": "x", "→": "->", "½": "1/2", "°": " deg", "ρ": "rho", "\u00a0": " "}
"""What is printed of our own characters where a terminal, a pipe or a log has no place for them."""


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(STAND_INS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error("inril", _stand_in)


def print_in_any_encoding() -> None:
    """Let this process print any text, whatever encoding its output has: what has no place there is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may have been replaced, as by a test or a notebook
            stream.reconfigure(errors="inril")


def is_text(value: str) -> bool:
    """Tell whether an argument can be printed and written to a file; names of files may be any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(text: str) -> str:
    """Return text, some of which may come from a file, without what a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class Lasting:
    """The output of a command that takes hours: it goes on when nobody reads it any more, as when `tee` was killed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to the stream, or nowhere."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        with contextlib.suppress(BrokenPipeError):  # the same reader
            print("inril: nobody reads the output any longer; the command goes on.", file=sys.__stderr__, flush=True)


def tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Say in a line what the system refused a thread, such as TensorBoard's; whoever waits for it has the error too."""
    if isinstance(failed.exc_value, OSError) and failed.exc_value.errno is not None:
        print(f"inril: a thread could not go on: {failed.exc_value.strerror}.", file=sys.stderr)
    else:
        threading.__excepthook__(failed)
