"""A factorised network as a state dict and a Python file that builds it, without kernelsimp.

The file holds the text of `models.thin`, a call of the network's own code, and which layers to replace.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from kernelsimp.errors import KernelsimpError
from kernelsimp.files import run_file, write_bytes, write_text
from kernelsimp.models import thin, zoo
from kernelsimp.models.thin import Thin

TEMPLATE = '''"""The network {arch} with layers that run as two thinner ones; made by kernelsimp.

`build()` returns it with the weights of {weights} beside this file, in evaluation mode.
It needs torch, safetensors and {needs}.
"""

from pathlib import Path

from safetensors.torch import load_file

{thin}

# ---------------------------------------------------------------- the network before


{original}

# ---------------------------------------------------------------- the network now

PLAN = {{
{plan}
}}


def build(weights: Path = Path(__file__).with_name({weights!r})) -> nn.Module:
    """Return the network with its weights, in evaluation mode."""
    network = replace_layers(original(), PLAN)
    network.load_state_dict(load_file(weights), strict=True)
    return network.eval(){layout}
'''

FROM_TORCHVISION = '''def original() -> nn.Module:
    """Return the network as it was, with fresh weights."""
    import inspect

    from torchvision import models

    takes = inspect.signature(models.get_model_builder({name!r})).parameters
    options = {{"weights_backbone": None}} if "weights_backbone" in takes else {{}}
    return models.get_model({name!r}, weights=None, **options)
'''

FROM_TIMM = '''def original() -> nn.Module:
    """Return the network as it was, with fresh weights."""
    import timm

    return timm.create_model({name!r}, pretrained=False)
'''

FROM_MODULE = '''def original() -> nn.Module:
    """Return the network as it was, with fresh weights."""
    import importlib

    made = importlib.import_module({module!r}).{name}
    return made if isinstance(made, nn.Module) else made()
'''

FROM_FILE = '''def original() -> nn.Module:
    """Return the network as it was, with fresh weights: the code is that of {file}."""
    import importlib.util
    import sys

    file = Path({file!r})
    sys.path.insert(0, str(file.resolve().parent))
    recipe = importlib.util.spec_from_file_location("original_network", file)
    module = importlib.util.module_from_spec(recipe)
    sys.modules["original_network"] = module
    recipe.loader.exec_module(module)
    made = module.{name}
    return made if isinstance(made, nn.Module) else made()
'''

FROM_ZOO = '''{source}

def original() -> nn.Module:
    """Return the network as it was, with fresh weights."""
    return ZOO[{name!r}]()
'''


def standalone_text(arch: str, plan: Mapping[str, Thin], weights: str, *, channels_last: bool) -> str:
    """Return the Python file that builds the network of `arch` with the layers of `plan` replaced.

    `plan` is by module name; `weights` is the name of the file with the weights beside it.
    """
    original, needs = _original(arch)
    return TEMPLATE.format(
        arch=arch.replace("\\", "/"),
        weights=weights,
        needs=needs,
        thin=_code_of(thin),
        original=original.rstrip(),
        plan="\n".join(f"    {name!r}: {item!r}," for name, item in plan.items()),
        layout=".to(memory_format=torch.channels_last)" if channels_last else "",
    )


def _original(arch: str) -> tuple[str, str]:
    """Return the code that builds the original network, and what it needs."""
    source, _, name = arch.rpartition(":")
    if source == "zoo":
        return FROM_ZOO.format(source=_code_of(zoo), name=name), "nothing else"
    if source == "torchvision":
        return FROM_TORCHVISION.format(name=name), "torchvision"
    if source in ("timm", "hf-hub"):
        return FROM_TIMM.format(name=name if source == "timm" else arch), "timm"
    if source.endswith(".py"):
        return FROM_FILE.format(file=source, name=name), f"the file {source}"
    return FROM_MODULE.format(module=source, name=name), f"the module {source}"


def _code_of(module: object) -> str:
    """Return the text of a module of ours that imports nothing of ours, without its docstring."""
    text = inspect.getsource(module)  # type: ignore[arg-type]
    return text.partition('"""\n\n')[2].strip() + "\n"


def write_standalone(places: tuple[Path, Path], text: str, state: Mapping[str, Tensor]) -> None:
    """Write the Python file and the state dict at their `places`."""
    from safetensors.torch import save

    place, weights = places
    # clones: the format refuses tensors that share memory
    write_bytes(
        weights, save({name: item.detach().cpu().contiguous().clone() for name, item in state.items()})
    )
    write_text(place, text)


def build_standalone(place: Path) -> nn.Module:
    """Run a Python file that this command has written and return its network.

    Raises `KernelsimpError` with its own words where it does not build.
    """
    try:
        built: nn.Module = run_file(place).build()
    except Exception as error:
        raise KernelsimpError(
            f"{place}: does not build the network ({type(error).__name__}: {error})"
        ) from error
    return built
