import errno
import sys

import pytest

from kernelsimp.errors import KernelsimpError, did_you_mean
from kernelsimp.files import run_file, write_atomically, write_text


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")

    def fill(partial):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KernelsimpError) as caught:
        write_atomically(target, fill)
    assert str(caught.value) == f"{target}: cannot write: No space left on device; choose another place"
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_is_written_can_be_read_by_whoever_reads_other_files(tmp_path):
    (tmp_path / "plain").touch()

    def write(partial):
        partial.unlink()
        partial.touch(mode=0o600)

    write_atomically(tmp_path / "written", write)
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_as_parent_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelsimpError, match="cannot write"):
        write_text(tmp_path / "file" / "run" / "x.txt", "text")


def test_did_you_mean_names_the_nearest_or_all():
    assert did_you_mean("miror-h", ["mirror-h", "zero"]) == "; did you mean 'mirror-h'?"
    assert did_you_mean("qqq", ["b", "a"]) == "; known: a, b"


def test_running_a_users_file_leaves_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    (tmp_path / "neighbour_of_nets.py").write_text("VALUE = 3")
    (tmp_path / "nets.py").write_text("from neighbour_of_nets import VALUE")
    assert run_file(tmp_path / "nets.py").VALUE == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["neighbour_of_nets.py", "nets.py"]
    assert sys.dont_write_bytecode is False
    sys.modules.pop("neighbour_of_nets")
