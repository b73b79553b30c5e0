"""The tables of what a scan saw beyond single kernels, from a scan to the page."""

import torch

from kernelsimp.analysis.scan import scan_bank
from kernelsimp.kernels.bank import KernelBank, LayerKernels
from kernelsimp.records.scan import Scan
from kernelsimp.report import scan_html
from kernelsimp.report.tables.beyond import beyond_table, coding_table
from kernelsimp.settings import ScanSettings


def scanned(**settings: object) -> Scan:
    kernels = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    kernels[1] = -2 * kernels[0].rot90(1, (1, 2))
    cube = torch.randn(4, 2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    bank = KernelBank((LayerKernels("flat", "dense", kernels), LayerKernels("cube", "dense", cube)))
    settings = {"tolerance": 0.01, **settings}
    return scan_bank(bank, ScanSettings(**settings), {"path": "x"}, strides={"flat": 2})  # type: ignore[arg-type]


def test_each_layer_has_one_row_and_dashes_where_it_has_no_such_thing() -> None:
    table = beyond_table(scanned())
    flat, cube = (dict(zip(table.heads, row, strict=True)) for row in table.rows)
    assert (flat["layer"], flat["stride"], flat["relatives"], flat["by chance"]) == ("flat", "2", "2", "0")
    assert flat["filters alike"] == "0 of 40"
    assert float(flat["D4, random"]) == 0.33
    assert (cube["stride"], cube["relatives"], cube["prototypes"]) == ("unknown", "–", "–")


def test_codings_stand_beside_their_yardsticks() -> None:
    table = coding_table(scanned())
    assert [row[0] for row in table.rows] == ["flat"]
    bits = dict(zip(table.heads, table.rows[0], strict=True))
    assert bits["fp32"] == "288"
    assert {"structure", "uniform", "dct"} < set(table.heads)
    assert coding_table(scanned(depth="shallow")).rows == ()


def test_the_page_shows_both() -> None:
    page = scan_html(scanned())
    assert "D4 of the mean" in page
    assert "Bits a kernel" in page
