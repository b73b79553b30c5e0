"""Networks at addresses: by ranges from a server on the loopback, from memory and local file systems."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from builders import tiny_state, write_zip
from safetensors.torch import save
from saying import command_refusal, refusal

from kernelsimp.cli.main import run
from kernelsimp.models.remote import fetched, wanted_ranges
from kernelsimp.models.scannable import open_address, open_to_scan
from kernelsimp.report.dataset import Dataset
from kernelsimp.settings import ModelSettings

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

MATRIX = 3_000_000


class Server(ThreadingHTTPServer):
    """Serves bytes by path; `sent` counts them, `change` replaces them after so many requests."""

    files: dict[str, bytes]
    sent = 0
    requests = 0
    change_after = 10**9
    ranges = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.requests += 1
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        tag = "new" if self.server.requests > self.server.change_after else "old"
        start, stop, status = 0, len(data), 200
        if self.server.ranges and (asked := self.headers.get("Range")):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), int(last) + 1 if last else len(data), 206
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(data[start:stop])
            self.server.sent += stop - start


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {**tiny_state(), "zz.weight": torch.randn(1000, MATRIX // 1000)}


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    held = Server(("127.0.0.1", 0), Handler)
    held.files = {"/net.safetensors": save(state())}
    threading.Thread(target=held.serve_forever, daemon=True).start()
    yield held, f"http://127.0.0.1:{held.server_address[1]}"
    held.shutdown()
    held.server_close()


def test_only_kernels_are_fetched_and_they_are_those_of_the_file(server, tmp_path: Path) -> None:
    held, address = server
    opened = open_address(f"{address}/net.safetensors", ModelSettings())
    assert held.sent < 20_000 < 4 * MATRIX
    (tmp_path / "net.safetensors").write_bytes(held.files["/net.safetensors"])
    local = open_to_scan(tmp_path / "net.safetensors", ModelSettings())
    assert [layer.name for layer in opened.bank.layers] == [layer.name for layer in local.bank.layers]
    for mine, theirs in zip(opened.bank.layers, local.bank.layers, strict=True):
        assert (mine.kind, mine.groups) == (theirs.kind, theirs.groups)
        assert torch.equal(mine.kernels, theirs.kernels)
    assert opened.source["path"] == f"{address}/net.safetensors"


def test_a_source_that_changes_while_it_is_read_is_one_line(server) -> None:
    held, address = server
    held.change_after = 3
    words = refusal(lambda: open_address(f"{address}/net.safetensors", ModelSettings()))
    assert words.endswith(
        "net.safetensors: changed while it was read; wait until it is written, then try again"
    )


def test_a_server_without_ranges_is_one_line(server) -> None:
    held, address = server
    held.ranges = False
    words = refusal(lambda: open_address(f"{address}/net.safetensors", ModelSettings()))
    assert "no ranges, or cut" in words or "cannot be had" in words


def test_what_cannot_be_had_is_a_row_with_its_reason_and_the_run_goes_on(server, tmp_path: Path) -> None:
    _, address = server
    sources = [f"{address}/net.safetensors", f"{address}/gone.safetensors"]
    command = ["scan", *sources, "http://127.0.0.1:9/a.pt", "--dataset", str(tmp_path / "set"), "-q"]
    assert run([*command, "--depth", "shallow"]) == 0
    rows = {row["source"]: row for row in Dataset(tmp_path / "set").networks}
    assert len(rows) == 3
    assert rows[sources[0]]["kernels"] == 16
    assert "cannot be had" in rows[sources[1]]["error"]
    assert "cannot be had" in rows["http://127.0.0.1:9/a.pt"]["error"]


def test_folders_in_memory_and_in_files_are_sources(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/zoo/a.safetensors", save(state()))
    memory.pipe("/zoo/notes.md", b"no network")
    write_zip(tiny_state(), tmp_path / "b.pt")
    sources = ["memory://zoo", f"file://{tmp_path}/*.pt"]
    try:
        assert run(["scan", *sources, "--json", str(tmp_path / "out"), "-q", "--depth", "shallow"]) == 0
    finally:
        memory.rm("/zoo", recursive=True)
    told = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").rglob("*.json"))]
    assert sorted(item["totals"]["kernels"] for item in told) == [16, 16]


def test_a_damaged_header_is_one_line() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bad.safetensors", (1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(Exception, match="its header would be"), fetched("memory://bad.safetensors"):
        pass
    assert "cannot be read" in refusal(lambda: wanted_ranges(b"[1]", "x"))


def test_ranges_leave_out_matrices_and_join_neighbours() -> None:
    header = {
        "a": {"shape": [4, 3, 3, 3], "data_offsets": [0, 432]},
        "b": {"shape": [4], "data_offsets": [500, 516]},
        "m": {"shape": [1000, 1000], "data_offsets": [516, 4_000_516]},
        "c": {"shape": [4, 3, 3, 3], "data_offsets": [4_000_516, 4_000_948]},
    }
    assert wanted_ranges(json.dumps(header).encode(), "x") == [(0, 516), (4_000_516, 4_000_948)]


def test_without_fsspec_one_line_says_what_to_install(capsys, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    words = command_refusal(["scan", "s3://bucket/a.pt", "-q"], capsys)
    assert words == "s3://bucket/a.pt: none of 1 checkpoint could be scanned"
