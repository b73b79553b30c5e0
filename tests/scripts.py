"""The scripts of `scripts/` as modules."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType


def script(name: str) -> ModuleType:
    """Return a script of `scripts/`, which has no suffix, as a module."""
    loader = SourceFileLoader(name, str(Path(__file__).parents[1] / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look it up there
    loader.exec_module(module)
    return module
