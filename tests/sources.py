"""Images as `--data` names them."""

from kernelsimp.data.sources import Data, load_data
from kernelsimp.settings import DataSettings


def load(text: str, seed: int = 0, **settings: object) -> Data:
    return load_data(DataSettings(data=text, **settings), seed)  # type: ignore[arg-type]
