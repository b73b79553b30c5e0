"""The scripts that have no suffix, as modules of one another."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any


def script(name: str) -> Any:
    """Return the script of that name as a module; `bench_simplify` knows the networks and their images."""
    loader = SourceFileLoader(name, str(Path(__file__).with_name(name)))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    loader.exec_module(module)
    return module
