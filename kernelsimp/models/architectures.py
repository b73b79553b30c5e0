"""Build a network from a word on the command line, and put a checkpoint's weights into it.

A word is `zoo:NAME`, `torchvision:NAME`, `timm:NAME`, `hf-hub:OWNER/NAME`, `file.py:callable` or
`package.module:callable`; a callable takes no argument and returns the network. Whatever
foreign code raises becomes one line.
"""

import importlib
import inspect
import io
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kernelsimp.error_text import kind_and_words, short
from kernelsimp.errors import KernelsimpError, did_you_mean, how_to_install, nearest
from kernelsimp.files import importing_from, quiet, run_file, tensors_only
from kernelsimp.models.checkpoint import Checkpoint, tensors_sha256
from kernelsimp.models.hub import HUB, from_hub, weights_on_hub
from kernelsimp.models.layers import tied_names
from kernelsimp.models.reading import Raw
from kernelsimp.models.reparametrised import plain_module
from kernelsimp.models.zoo import ZOO
from kernelsimp.settings_file import REGISTRIES

FORMS = "zoo:NAME, torchvision:NAME, timm:NAME, hf-hub:NAME, file.py:callable or package.module:callable"

DOWNLOAD_TIMEOUT = 30.0
"""Seconds of silence after which a download of pretrained weights gives up."""


def build_model(spec: str) -> nn.Module:
    """Return the network that `spec` names, with fresh and plain weights, in evaluation mode, unwrapped.

    Raises `KernelsimpError` for an unknown word and for whatever the user's code raises.
    """
    return _in_full_precision(spec, plain_module(unwrap(_build(spec)).eval()))


def folded_in(spec: str) -> list[str]:
    """Name the weights that `build_model` makes plain: weight norm, spectral norm, pruning."""
    own = unwrap(_build(spec)).state_dict()
    return [name for name in build_model(spec).state_dict() if name not in own]


def _build(spec: str) -> nn.Module:
    """Return the network as its own code makes it."""
    source, _, name = spec.rpartition(":")
    if not source or not name:
        known = [f"zoo:{item}" for item in ZOO]
        near = did_you_mean(f"zoo:{spec.removeprefix('zoo:')}", known)
        hint = near if near.startswith("; did") else ""
        raise KernelsimpError(f"--arch '{spec}' is no architecture; expected {FORMS}{hint}")
    builders = (_from_zoo, _from_torchvision, _from_timm, _from_hub)
    from_registry = dict(zip(REGISTRIES, builders, strict=True))
    built = from_registry[source](name) if source in from_registry else _from_code(spec, source, name)
    if not isinstance(built, nn.Module):
        kind = type(built).__name__
        raise KernelsimpError(
            f"--arch {spec}: returned {kind}, expected a torch.nn.Module; return the network"
        )
    return built


def _in_full_precision(spec: str, model: nn.Module) -> nn.Module:
    """Return the network in float32 where it is narrower: images are, and a CPU computes in nothing less."""
    if any(is_lazy(weight) for weight in model.parameters()):
        advice = "run it once on an image before it is returned"
        raise KernelsimpError(f"--arch {spec}: has lazy layers whose shapes are not known yet; {advice}")
    narrow = any(weight.is_floating_point() and weight.element_size() < 4 for weight in model.parameters())
    return model.float() if narrow else model


def recipe_of(spec: str) -> str | None:
    """Return the packaged recipe (input size, mean, std) that fits an architecture, if one is known."""
    source, _, name = spec.partition(":")
    if source == "torchvision":
        return "imagenet"
    if source == "zoo" and name in ZOO:
        return "digits" if name.startswith("digits-") else "cifar10-resnet"
    return None


def is_pretrained_name(word: str) -> bool:
    """Say whether MODEL is the name of a published network, such as `torchvision:resnet18`, and no file."""
    return word.startswith(("torchvision:", "timm:", f"{HUB}:"))


def load_pretrained(spec: str) -> tuple[nn.Module, Checkpoint]:
    """Fetch a published network with its weights: `torchvision:NAME`, `timm:NAME` or `hf-hub:OWNER/NAME`.

    The checkpoint is what `torch.save(model.state_dict())` would give. Raises `KernelsimpError` with the way
    round it where the weights cannot be fetched.
    """
    source, _, name = spec.partition(":")
    try:
        if source == "torchvision":
            library = _torchvision_with(name)
            with _fetching():
                model = library.models.get_model(name, weights="DEFAULT", progress=False)
        else:
            library = _timm() if source == HUB else _timm_with(name)
            place = name if source == HUB else weights_on_hub(library, name)
            with from_hub(spec, place), _fetching():
                model = library.create_model(spec if source == HUB else name, pretrained=True)
    except KernelsimpError:
        raise
    except Exception as error:
        advice = f"download the checkpoint yourself and pass its file with --arch {spec}"
        what = f"{spec}: cannot fetch pretrained weights ({short(error)})"
        raise KernelsimpError(f"{what}; {advice}") from error
    state = model.state_dict()
    raw = Raw("zip", state)
    return model.eval(), Checkpoint(Path(spec), "zip", state, raw=raw, digest=tensors_sha256(state))


def fit(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Return the part of a checkpoint that is this network, knowing which of its tensors are tied.

    A training framework may keep the network as an attribute beside losses and teachers; where all its names
    stand under one prefix (`model.`), that part is taken and the rest is copied unread when saving. Where the
    names do not fit, the checkpoint comes back as it is and `load_weights` says what is wrong.
    """
    wanted = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    fitting = _narrowed(wanted, checkpoint)
    if any(name not in fitting.tensors for name in wanted):
        other = checkpoint.without_parallel()
        other = _narrowed(wanted, other) if other else fitting
        fitting = other if all(name in other.tensors for name in wanted) else fitting
    return replace(fitting, ties=tied_names(model))


def _narrowed(wanted: list[str], checkpoint: Checkpoint) -> Checkpoint:
    """Return the part of a checkpoint under the only prefix where all wanted names stand; else all of it."""
    prefix = "" if any(name in checkpoint.tensors for name in wanted) else _prefix_of(wanted, checkpoint)
    if not prefix:
        return checkpoint
    rest = sum(not name.startswith(prefix) for name in checkpoint.tensors)
    told = f"{checkpoint.path}: took the network under '{prefix}'; {rest} other tensors stay as they are"
    return replace(checkpoint.under(prefix), warnings=(*checkpoint.warnings, told))


def _prefix_of(wanted: list[str], checkpoint: Checkpoint) -> str:
    """Return the only prefix under which all wanted names stand, or nothing."""
    if not wanted:
        return ""
    ends = f".{wanted[0]}"
    prefixes = [name.removesuffix(wanted[0]) for name in checkpoint.tensors if name.endswith(ends)]
    fitting = [prefix for prefix in prefixes if all(prefix + name in checkpoint.tensors for name in wanted)]
    return fitting[0] if len(fitting) == 1 else ""


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into a network, strictly.

    Only batch norm's `num_batches_tracked` may be absent, as PyTorch itself allows for old files. Raises
    `KernelsimpError` naming the missing, unexpected and misshapen keys.
    """
    fresh = model.state_dict()
    wanted = {name: value for name, value in fresh.items() if isinstance(value, Tensor)}
    have = checkpoint.tensors
    missing = [name for name in wanted if name not in have and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in have if name not in wanted]
    misshapen = [
        f"{name} {tuple(have[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in have and have[name].shape != wanted[name].shape
    ]
    listed = ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
    faults = [_count(names, what) for names, what in listed if names]
    if faults:
        advice = "pass the architecture this checkpoint was trained with"
        raise KernelsimpError(f"{checkpoint.path} does not fit --arch: {', '.join(faults)}; {advice}")
    for name, value in have.items():
        fresh[name] = value
    try:
        # the fresh network's own state dict, because some modules refuse one that tells no versions
        model.load_state_dict(fresh, strict=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise KernelsimpError(f"{checkpoint.path} does not fit --arch: {short(error)}") from error


def _count(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})"


def _from_zoo(name: str) -> nn.Module:
    if name not in ZOO:
        raise KernelsimpError(f"zoo:{name}: no such network{_near_in_zoo(name)}")
    return ZOO[name]()


def _near_in_zoo(name: str) -> str:
    """Return a did-you-mean with all names: one that a slip of a key gives, else the nearest depth."""
    near, listed = nearest(name, ZOO), f"known: {', '.join(sorted(ZOO))}"
    depth = re.fullmatch(r"resnet(\d{1,9})", name)
    if depth and not (near and name.startswith(near)):
        depths = [item for item in ZOO if item.startswith("resnet")]
        near = min(depths, key=lambda item: abs(int(item.removeprefix("resnet")) - int(depth[1])))
    return f"; did you mean '{near}'? {listed}" if near else f"; {listed}"


def _from_torchvision(name: str) -> object:
    models = _torchvision_with(name).models
    # detection and segmentation networks would otherwise fetch a pretrained backbone
    takes = inspect.signature(models.get_model_builder(name)).parameters
    options = {"weights_backbone": None} if "weights_backbone" in takes else {}
    return _call(f"torchvision:{name}", lambda: models.get_model(name, weights=None, **options))


def _from_timm(name: str) -> object:
    timm = _timm_with(name)
    return _call(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))


def _from_hub(name: str) -> object:
    timm, spec = _timm(), f"{HUB}:{name}"
    try:
        with from_hub(spec, name), _fetching():
            return timm.create_model(spec, pretrained=False)
    except KernelsimpError:
        raise
    except Exception as error:
        advice = "expected a network that timm can build"
        raise KernelsimpError(f"--arch {spec}: raised {kind_and_words(error)}; {advice}") from error


def _near(name: str, known: Iterable[str]) -> str:
    """Return a did-you-mean, or nothing: hundreds of names would not fit one line."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("; did") else "; check the spelling"


def _torchvision_with(name: str) -> Any:
    """Import torchvision, which must know `name`; a pair with torch that does not match becomes advice."""
    try:
        with quiet():
            library = importlib.import_module("torchvision")
    except ImportError as error:
        what = f"torchvision cannot be imported ({short(error)})"
        raise KernelsimpError(f"{what}; pip install torchvision") from error
    except Exception as error:
        advice = "they do not match: pip install --upgrade --force-reinstall torch torchvision"
        what = f"torchvision fails with torch {torch.__version__} ({short(error)})"
        raise KernelsimpError(f"{what}; {advice}") from error
    known = library.models.list_models()
    if name not in known:
        raise KernelsimpError(f"torchvision:{name}: no such network{_near(name, known)}")
    return library


def _timm_with(name: str) -> Any:
    """Import timm, which must know `name`, with or without the tag of its weights (`NAME.TAG`)."""
    library = _timm()
    if not library.is_model(name):
        raise KernelsimpError(f"timm:{name}: no such network{_near(name, library.list_models())}")
    return library


def _timm() -> Any:
    try:
        with quiet():
            return importlib.import_module("timm")
    except ImportError as error:
        raise KernelsimpError(f"timm is not installed; {how_to_install('timm')}") from error


def _from_code(spec: str, source: str, name: str) -> object:
    """Import a file or module of the user's and call what it names; an instance of a network will do."""
    path = Path(source)
    with importing_from(path.resolve().parent if source.endswith(".py") else Path.cwd()):
        module = _import_file(spec, path) if source.endswith(".py") else _import_module(spec, source)
        if not hasattr(module, name):
            known = [
                item for item in vars(module) if callable(getattr(module, item)) and not item.startswith("_")
            ]
            raise KernelsimpError(f"--arch {spec}: {source} has no '{name}'{did_you_mean(name, known)}")
        build = getattr(module, name)
        if isinstance(build, nn.Module):
            return build
        if not callable(build):
            raise KernelsimpError(f"--arch {spec}: '{name}' is {type(build).__name__}, expected a callable")
        return _call(spec, build)


def _callables(module: ModuleType) -> list[str]:
    """Name what a user may have meant: public callables that the module itself defines."""
    members = {name: item for name, item in vars(module).items() if callable(item) and name[0] != "_"}
    return [name for name, item in members.items() if getattr(item, "__module__", "") == module.__name__]


def _import_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise KernelsimpError(f"--arch {spec}: no file {path}; check the path")
    try:
        return run_file(path)
    except (Exception, SystemExit) as error:
        raise KernelsimpError(
            f"--arch {spec}: importing {path} raised {kind_and_words(error)}; mend that file"
        ) from error


def _import_module(spec: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        advice = f"expected {FORMS}" if isinstance(error, ModuleNotFoundError) else "mend that module"
        raise KernelsimpError(
            f"--arch {spec}: importing {source} raised {kind_and_words(error)}; {advice}"
        ) from error


def _call(spec: str, build: Callable[[], object]) -> object:
    try:
        with quiet():
            return build()
    except (Exception, SystemExit) as error:
        advice = "expected a callable without arguments that returns the network"
        raise KernelsimpError(f"--arch {spec}: raised {kind_and_words(error)}; {advice}") from error


def unwrap(model: nn.Module) -> nn.Module:
    """Take off DataParallel and its like and torch.compile; checkpoints lose their prefixes too."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def _fetching() -> Iterator[None]:
    """Fetch tensors alone, with patience, and without what the fetchers write to either stream."""
    said = io.StringIO()
    with _patient(), tensors_only(), quiet(), redirect_stderr(said), redirect_stdout(said):
        yield


@contextmanager
def _patient() -> Iterator[None]:
    """Give up on a silent server instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
