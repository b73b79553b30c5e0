"""What a GPU answers, beside the CPU: the correctness half of `scripts/gpu_check`, wherever there is CUDA."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_every_command_gives_on_a_gpu_what_it_gives_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu_check.json"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--no-speed", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    checks = json.loads(out.read_text())["checks"]
    assert checks
    assert all(check["ok"] for check in checks), checks
