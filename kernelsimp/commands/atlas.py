"""The atlas: one page over all networks of a data set."""

from pathlib import Path

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import write_text
from kernelsimp.report.atlas_html import atlas_html
from kernelsimp.report.dataset import COLUMNS, Dataset


def write_atlas(folder: Path, to: Path) -> int:
    """Write the page of a data set's networks; return how many there are.

    Raises `KernelsimpError` where there is no data set, or none of its sources could be had.
    """
    dataset = Dataset(folder)
    networks = dataset.networks
    count = sum(row["error"] is None for row in networks)
    if not count:
        raise KernelsimpError(
            f"{folder}: no data set with a network in it; 'scan SOURCE... --dataset {folder}' makes one"
        )
    write_text(to, atlas_html(networks, dataset.read("families", list(COLUMNS["families"]))))
    return count
