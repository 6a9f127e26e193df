"""Downloads from a server on this machine: interrupted, resumed, refused, falsified and unreachable."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from inril_ray.cli import main
from inril_ray.demos import download as module
from inril_ray.demos.download import SIGNATURES, SOURCES, Source, _Redirects, download, source
from inril_ray.types import InrilError

METADATA = b'{"total_episodes": 1}'
CONTENT = SIGNATURES[".hdf5"] + bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT, and METADATA as JSON; tests say how it misbehaves."""

    ranges = True
    sent_at_most: int | None = None
    digest: str | None = None
    redirects = False
    version: str | None = None
    requests: list[tuple[str, str | None]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        content = METADATA if self.path.endswith(".json") else CONTENT
        self.server.requests.append((self.path, wanted))
        if self.path == "/gone":
            self.send_error(404)
            return
        if self.server.redirects and self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self._digest()
            self.end_headers()
            return
        if self.headers.get("If-Range", self.server.version) != self.server.version:
            wanted = None  # the rest of another file is of no use
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        if not self.server.redirects:
            self._digest()
        if self.server.version:
            self.send_header("ETag", self.server.version)
        self.end_headers()
        self.wfile.write(body[: self.server.sent_at_most])

    def _digest(self) -> None:
        if self.server.digest:
            self.send_header("X-Linked-ETag", f'"{self.server.digest}"')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def at(server: Server, path: str = "/file", sha256: str | None = None) -> Source:
    return Source(f"http://127.0.0.1:{server.server_port}{path}", "demos.hdf5", sha256)


def test_a_whole_download(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    file = download(at(server), tmp_path / "new", lines.append)
    assert file == tmp_path / "new" / "demos.hdf5"
    assert file.read_bytes() == CONTENT
    assert (tmp_path / "new" / "demos.hdf5.sha256").read_text() == f"{DIGEST}  demos.hdf5\n"
    assert sorted(p.name for p in file.parent.iterdir()) == ["demos.hdf5", "demos.hdf5.sha256"]
    assert "1.0 MB" in lines[0]
    assert DIGEST in lines[1]
    assert "not stated by the server" in lines[1]


def test_it_goes_on_where_it_was_interrupted(server: Server, tmp_path: Path) -> None:
    server.sent_at_most = 300_000
    with pytest.raises(InrilError, match=rf"sent 300000 of {len(CONTENT)} bytes.*Run the command again"):
        download(at(server), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".demos.hdf5.partial"]
    server.sent_at_most = None
    lines: list[str] = []
    assert download(at(server), tmp_path, lines.append).read_bytes() == CONTENT
    assert server.requests == [("/file", None), ("/file", "bytes=300000-")]
    assert "going on at 0.3 MB" in lines[0]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / ".demos.hdf5.partial").write_bytes(b"x" * 1000)
    assert download(at(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("already", [CONTENT, CONTENT + b"more"])
def test_a_partial_file_that_is_complete_or_too_long(server: Server, tmp_path: Path, already: bytes) -> None:
    (tmp_path / ".demos.hdf5.partial").write_bytes(already)
    assert download(at(server), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == (1 if already == CONTENT else 2)


@pytest.mark.parametrize("redirects", [False, True])
def test_the_checksum_that_the_server_states(server: Server, tmp_path: Path, redirects: bool) -> None:
    server.redirects, server.digest = redirects, "0" * 64
    with pytest.raises(InrilError, match=f"SHA-256 is {DIGEST}, {'0' * 64} is expected"):
        download(at(server), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.digest = DIGEST
    lines: list[str] = []
    assert download(at(server), tmp_path, lines.append).read_bytes() == CONTENT
    assert "not stated" not in lines[-1]


def test_an_etag_that_is_no_checksum_is_not_taken_for_one(server: Server, tmp_path: Path) -> None:
    server.digest = "a1b2"
    assert download(at(server), tmp_path).is_file()


def test_the_checksum_of_the_table_counts(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InrilError, match="is expected"):
        download(at(server, sha256="1" * 64), tmp_path)
    assert download(at(server, sha256=DIGEST), tmp_path).is_file()


def test_a_file_that_is_there_is_verified_and_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    file = download(at(server), tmp_path)
    lines: list[str] = []
    download(at(server), tmp_path, lines.append)
    assert len(server.requests) == 1
    assert "already there" in lines[0]
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(InrilError, match="Delete it to download it again"):
        download(at(server), tmp_path)


def test_bytes_that_changed_between_attempts_are_found_by_the_kept_checksum(server: Server, tmp_path: Path) -> None:
    download(at(server), tmp_path).unlink()
    (tmp_path / ".demos.hdf5.partial").write_bytes(b"x" * 1000)
    with pytest.raises(InrilError, match="is expected"):
        download(at(server), tmp_path)
    assert download(at(server), tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InrilError, match=r"127\.0\.0\.1:\d+ answered 404 Not Found for http"):
        download(at(server, "/gone"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_network(tmp_path: Path) -> None:
    where = Source(f"http://127.0.0.1:{closed_port()}/file", "demos.hdf5")
    with pytest.raises(InrilError, match=r"could not reach 127\.0\.0\.1:\d+: .*elsewhere and pass --demos FILE"):
        download(where, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = Source(f"http://127.0.0.1:{silent.getsockname()[1]}/file", "demos.hdf5")
        with pytest.raises(InrilError, match="could not reach.*timed out"):
            download(where, tmp_path)


def test_the_table_of_sources() -> None:
    names = [s.name for variants in SOURCES.values() for s in variants.values()]
    assert len(names) == len(set(names)), "files would overwrite each other"
    assert source("robomimic/can").url.endswith("v1.5/can/ph/low_dim_v15.hdf5")
    assert source("robomimic/can", "mh_v141").url.endswith("rt_benchmark/can/mh/low_dim_v141.hdf5")
    assert source("adroit/hammer").url.endswith("farama-minari/D4RL/resolve/main/hammer/human-v2")
    assert source("gym/hopper").name == "hopper_medium-v2.hdf5"
    with pytest.raises(InrilError, match="No public demonstrations are known for task 'robomimic/tin'"):
        source("robomimic/tin")
    with pytest.raises(InrilError, match="variant 'xh': robomimic/can has ph, mh, ph_v141, mh_v141"):
        source("robomimic/can", "xh")


def test_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "robomimic/lift", {"ph": at(server), "mh": at(server, "/gone")})
    command = ["demos", "download", "robomimic/lift", "--out", str(tmp_path)]
    assert main(command) == 0
    assert f"--task robomimic/lift --demos {tmp_path / 'demos.hdf5'}" in capsys.readouterr().out
    (tmp_path / "demos.hdf5").unlink()
    assert main([*command, "--variant", "mh"]) == 1
    assert "answered 404" in capsys.readouterr().err


def test_a_file_that_changed_meanwhile_is_sent_from_its_beginning(server: Server, tmp_path: Path) -> None:
    """The server is asked for the rest only if it is the rest of the same file."""
    server.version, server.sent_at_most = '"v1"', 5000
    with pytest.raises(InrilError, match="Run the command again"):
        download(at(server), tmp_path)
    (tmp_path / ".demos.hdf5.partial").write_bytes(b"x" * 5000)  # as if another file had been there
    server.version, server.sent_at_most = '"v2"', None
    assert download(at(server), tmp_path).read_bytes() == CONTENT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demos.hdf5", "demos.hdf5.sha256"]


def test_what_is_no_hdf5_file_is_deleted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.SIGNATURES, ".hdf5", b"another!")
    with pytest.raises(InrilError, match=r"is no hdf5 file; it begins with b'.x89HDF"):
        download(at(server), tmp_path)
    assert not list(tmp_path.glob("*.hdf5"))


def test_the_files_of_a_directory(server: Server, tmp_path: Path) -> None:
    """Minari's data sets are directories; each file goes on by itself."""
    members = ("data/metadata.json", "data/main_data.hdf5")
    source = Source(f"http://127.0.0.1:{server.server_port}/hammer", "hammer_human", members=members)
    server.sent_at_most = 300_000
    with pytest.raises(InrilError, match="Run the command again"):
        download(source, tmp_path)
    server.sent_at_most = None
    assert download(source, tmp_path) == tmp_path / "hammer_human"
    assert (tmp_path / "hammer_human" / "data" / "metadata.json").read_bytes() == METADATA
    assert (tmp_path / "hammer_human" / "data" / "main_data.hdf5").read_bytes() == CONTENT
    asked = [("/hammer/data/metadata.json", None), ("/hammer/data/main_data.hdf5", None)]
    assert server.requests == [*asked, ("/hammer/data/main_data.hdf5", "bytes=300000-")]


def test_a_secure_connection_stays_one() -> None:
    redirects, request = _Redirects(), urllib.request.Request("https://example.org/a")
    assert redirects.redirect_request(request, None, 302, "", {}, "https://example.org/b").full_url.endswith("/b")
    with pytest.raises(urllib.error.URLError, match="redirects to http://example.org/b, which is not https"):
        redirects.redirect_request(request, None, 302, "", {}, "http://example.org/b")
