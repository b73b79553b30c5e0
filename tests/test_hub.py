"""Networks of the Hugging Face hub by name, against a server on this machine that speaks its endpoints."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

NAME = "test_resnet.r160_in1k"
COMMIT = "1234567890abcdef1234567890abcdef12345678"
SCRIPT = """
import json, sys, time
from pathlib import Path
from kernelsimp.cli.main import run
from kernelsimp.models.architectures import build_model
from kernelsimp.models.scannable import open_to_scan
from kernelsimp.settings import ModelSettings
for verb, name, *more in json.loads(sys.argv[1]):
    start, told = time.time(), {"code": 0}
    if verb == "open":
        opened = open_to_scan(Path(name), ModelSettings(*more))
        told |= {"sha256": opened.source["sha256"], "kernels": float(opened.bank.layers[0].kernels.sum())}
        told["kinds"] = [layer.kind for layer in opened.bank.layers]
    else:
        told["code"] = run([verb, name, *more])
    print(json.dumps({**told, "seconds": time.time() - start}), flush=True)
"""


def published() -> dict[str, bytes]:
    """Return the files of a small network on the hub, by owner, name and file."""
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", pretrained=False).state_dict()
    weights = save({name: item.contiguous() for name, item in state.items()})
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"tag": "r160_in1k"}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    return {f"{owner}/{name}": data for owner in (f"timm/{NAME}", "me/mine") for name, data in files.items()}


class Hub(BaseHTTPRequestHandler):
    """The endpoints that the hub's own library asks."""

    files: dict[str, bytes]
    broken = False

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        if self.broken:
            return self.send_error(503)
        if path.startswith("api/models/"):
            name = path.removeprefix("api/models/").partition("/revision/")[0]
            listed = [key.removeprefix(f"{name}/") for key in self.files if key.startswith(f"{name}/")]
            told = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": item} for item in listed]}
            return self.give(json.dumps(told).encode(), body) if listed else self.refuse("RepoNotFound")
        name, _, file = path.partition("/resolve/")
        data = self.files.get(f"{name}/{file.partition('/')[2]}")
        return self.refuse("EntryNotFound") if data is None else self.give(data, body)

    def give(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """The address of a running hub, and its class."""
    Hub.files = published()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Hub
    server.shutdown()
    server.server_close()


def ask(endpoint: str, home: Path, *commands: list[str]) -> tuple[list[dict], list[str]]:
    """Run commands in one new process; return exit codes with seconds, and the lines on stderr."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "COLUMNS": "300"}
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()


@pytest.fixture(scope="module")
def fetched(hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[str]]:
    """The cache after fetching, what each name gave, wrong ones last, and what was said."""
    home = tmp_path_factory.mktemp("home")
    mine = home / "mine.safetensors"
    mine.write_bytes(hub[1].files["me/mine/model.safetensors"])
    commands = [["open", name] for name in (f"timm:{NAME}", "timm:test_resnet", "hf-hub:me/mine")]
    commands.append(["open", str(mine), "hf-hub:me/mine"])
    wrong = ("hf-hub:me/other", "hf-hub:a/b/c", "timm:test_resnet.r161_in1k", "timm:test_resnett")
    return home, *ask(hub[0], home, *commands, *(["scan", name, "-q"] for name in wrong))


def test_published_weights_are_fetched_by_either_name(hub, fetched) -> None:
    opened = fetched[1][:4]
    weights = load(hub[1].files["me/mine/model.safetensors"])
    assert len({item["sha256"] for item in opened[:3]}) == 1
    assert all(item["kernels"] == float(weights["conv1.0.weight"].sum()) for item in opened)
    assert all(item["kinds"] == opened[0]["kinds"] for item in opened)


def test_names_that_the_hub_does_not_have_are_one_line_each(fetched) -> None:
    codes, said = fetched[1][4:], fetched[2]
    assert [code["code"] for code in codes] == [2] * 4
    assert len(said) == 4, said
    assert said[0].endswith("the hub has no such network, or only for those who are let in; check the name")
    assert said[1].endswith("expected hf-hub:OWNER/NAME")
    assert said[2].endswith("no such weights of test_resnet; did you mean 'r160_in1k'?")
    assert said[3].endswith("no such network; did you mean 'test_resnet'?")


NAMES = (f"timm:{NAME}", "hf-hub:me/mine")


@pytest.mark.parametrize("silence", ["closed", "broken"])
def test_without_the_hub_it_is_one_line_soon(silence: str, hub, tmp_path: Path, monkeypatch) -> None:
    endpoint, server = hub
    monkeypatch.setattr(server, "broken", True)
    place, why = (endpoint, "status 503") if silence == "broken" else ("http://127.0.0.1:9", "refused")
    codes, said = ask(place, tmp_path, *(["scan", name, "-q"] for name in NAMES))
    assert [code["code"] for code in codes] == [2, 2]
    assert len(said) == 2, said
    for name, line in zip(NAMES, said, strict=True):
        assert line.startswith(f"kernelsimp: {name}: {place} does not answer (")
        assert why in line
        advice = f"download the checkpoint yourself and pass its file with --arch {name}"
        assert line.endswith(f"and its files are not in the cache; {advice}")
    assert codes[1]["seconds"] < 10


def test_without_the_hub_the_cache_of_earlier_fetches_serves(fetched) -> None:
    codes, said = ask("http://127.0.0.1:9", fetched[0], *(["open", name] for name in NAMES))
    assert said == []
    assert [code["sha256"] for code in codes] == [fetched[1][0]["sha256"]] * 2
