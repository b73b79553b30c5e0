"""Each command's story on one screen: load, scan, plan, apply, hold, fine-tune, evaluate, report.

Nothing here computes; it says in which order the rooms below do their work. One file a story.
"""

from kernelsimp.pipeline.choosing import plan_only
from kernelsimp.pipeline.demonstration import demo
from kernelsimp.pipeline.gating import Gate, check, update_baseline
from kernelsimp.pipeline.opening import settle_for_check, settle_for_model
from kernelsimp.pipeline.rendering import render_again, render_pair
from kernelsimp.pipeline.scanning import scan, scan_explained, scan_folder
from kernelsimp.pipeline.simplifying import simplify

__all__ = [
    "Gate",
    "check",
    "demo",
    "plan_only",
    "render_again",
    "render_pair",
    "scan",
    "scan_explained",
    "scan_folder",
    "settle_for_check",
    "settle_for_model",
    "simplify",
    "update_baseline",
]
