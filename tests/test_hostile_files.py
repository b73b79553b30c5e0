"""Crafted files end in one line, or are read with a warning, within 30 CPU seconds and little memory."""

from pathlib import Path

import pytest
from crafted import CRAFTED
from processes import HERE, run_warm

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:Sparse invariant")

GIGABYTES, SECONDS = "2.5", "30"
"""What a process that has imported torch may take beside it, and a third of what the files would ask for."""

READ = {
    "sparse": "'c.weight' is stored sparse",
    "pt2 transposed in odd groups": "'1.weight' of 4 channels is convolved in 3 groups; it is passed over",
    "code of megabytes": "9.0 MB of program text are not read: kinds are guessed from shapes",
}
"""Files in which there is something to scan beside what is passed over."""

REFUSED = {
    "stride 0 in a zip": "repeats 9 numbers to 9.66 GB",
    "stride 0 in a legacy file": "repeats 9 numbers to 9.66 GB",
    "overlapping steps": "repeats 16,391 numbers to 2.42 GB",
    "on the meta device": "a shape without numbers",
    "a record that inflates": "bytes would inflate to 268,43",
    "a record that no tensor has": "bytes would inflate to 268,43",
    "a pickle that inflates": "would inflate to 268,435,456",
    "a TorchScript record that inflates": "bytes would inflate to 268,4",
    "a pt2 record that inflates": "bytes would inflate to 268,4",
    "pt2 sizes of text": "not a valid .pt2 archive",
    "pt2 of stride 0": "repeats 9 numbers to 9.66 GB",
    "pt2 with a list for an object": "not a valid .pt2 archive",
    "memo": "no convolution found among 0 tensors",
    "modules that double": "its modules are seen as more than 100,000",
    "dicts that double": "no state dict",
    "states that double": "holds more than 100 state dicts",
    "many names of one storage": "200 tensors see 4,000,000 bytes as 0.799 GB",
    "a kspack header that inflates": "inflates beyond 4,194,304 bytes",
    "a kspack plane that inflates": "would unpack to 268,435,456",
    "a kspack dtype of control characters": r"there is no dtype '\x1b[2J\x00\u202e'",
    "ten thousand layers": "10,000 layers; at most 2,000 at once",
    "two thousand shapes": "2,000 kernel shapes; at most 50 at once",
    "a huge kernel": "kernels of 4096 x 4096: up to 4,096 cells are looked at",
    "an empty axis": "'l.weight' is empty",
    "a hostile class": r"os\x1b[2J.sys\x1b]0;x\x07tem",
}


def test_every_crafted_file_has_its_words() -> None:
    assert set(CRAFTED) == {*READ, *REFUSED}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_costs_little(name: str, tmp_path: Path) -> None:
    path = CRAFTED[name](tmp_path)
    done = run_warm(HERE / "bounded.py", GIGABYTES, SECONDS, "scan", str(path), "-q", folder=tmp_path)
    assert done.returncode == (0 if name in READ else 2), done.stderr
    lines = done.stderr.splitlines()
    assert (READ | REFUSED)[name] in " ".join(lines)
    assert name in READ or len(lines) == 1
    assert done.stderr.replace("\n", "").isprintable()
