"""Each command's story on one screen: load, scan, plan, apply, hold, fine-tune, evaluate, report.

Nothing here computes; it says in which order the rooms below do their work. One file a story.
"""

from kernelsimp.pipeline.auditing import audit
from kernelsimp.pipeline.choosing import plan_only
from kernelsimp.pipeline.comparing import compare
from kernelsimp.pipeline.demonstration import demo
from kernelsimp.pipeline.evaluating import evaluate
from kernelsimp.pipeline.from_scratch import train
from kernelsimp.pipeline.gating import Gate, check, update_baseline
from kernelsimp.pipeline.opening import settle_for_check, settle_for_model
from kernelsimp.pipeline.pruning import prune, settle_for_pruning
from kernelsimp.pipeline.rendering import render_again, render_pair
from kernelsimp.pipeline.scanning import scan, scan_explained, scan_folder
from kernelsimp.pipeline.simplifying import follow, simplify

__all__ = [
    "Gate",
    "audit",
    "check",
    "compare",
    "demo",
    "evaluate",
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
    "update_baseline",
]
