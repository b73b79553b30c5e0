"""Each command's story on one screen: load, scan, plan, apply, hold, fine-tune, evaluate, report.

Nothing here computes; it says in which order the rooms below do their work. One file a story, and a story
is imported when it is asked for: a scan does not wait for what training needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelsimp.pipeline.auditing import audit
    from kernelsimp.pipeline.choosing import plan_only
    from kernelsimp.pipeline.comparing import compare
    from kernelsimp.pipeline.demonstration import demo
    from kernelsimp.pipeline.evaluating import evaluate
    from kernelsimp.pipeline.exporting import export
    from kernelsimp.pipeline.from_scratch import train, train_along
    from kernelsimp.pipeline.gating import Gate, check, update_baseline
    from kernelsimp.pipeline.opening import settle_for_check, settle_for_model
    from kernelsimp.pipeline.outputs import check_outputs, check_run
    from kernelsimp.pipeline.pruning import prune, settle_for_pruning
    from kernelsimp.pipeline.rendering import render_again, render_pair
    from kernelsimp.pipeline.scanning import scan, scan_explained, scan_folder
    from kernelsimp.pipeline.simplifying import follow, simplify

__all__ = [
    "Gate",
    "audit",
    "check",
    "check_outputs",
    "check_run",
    "compare",
    "demo",
    "evaluate",
    "export",
    "follow",
    "plan_only",
    "prune",
    "render_again",
    "render_pair",
    "scan",
    "scan_explained",
    "scan_folder",
    "settle_for_check",
    "settle_for_model",
    "settle_for_pruning",
    "simplify",
    "train",
    "train_along",
    "update_baseline",
]

_STORIES = {
    "auditing": ("audit",),
    "choosing": ("plan_only",),
    "comparing": ("compare",),
    "demonstration": ("demo",),
    "evaluating": ("evaluate",),
    "exporting": ("export",),
    "from_scratch": ("train", "train_along"),
    "gating": ("Gate", "check", "update_baseline"),
    "opening": ("settle_for_check", "settle_for_model"),
    "outputs": ("check_outputs", "check_run"),
    "pruning": ("prune", "settle_for_pruning"),
    "rendering": ("render_again", "render_pair"),
    "scanning": ("scan", "scan_explained", "scan_folder"),
    "simplifying": ("follow", "simplify"),
}
"""What each file tells; the same as the imports above, which only a type checker reads."""


def __getattr__(name: str) -> Any:
    for story, told in _STORIES.items():
        if name in told:
            return getattr(import_module(f"kernelsimp.pipeline.{story}"), name)
    raise AttributeError(f"module 'kernelsimp.pipeline' has no attribute '{name}'")
