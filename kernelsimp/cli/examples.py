"""Three lines a command to copy: what most people want of it first."""

EXAMPLES: dict[str, tuple[str, str, str]] = {
    "demo": (
        "kernelsimp demo",
        "kernelsimp demo --out story",
        "kernelsimp demo --quiet",
    ),
    "scan": (
        "kernelsimp scan model.pt",
        "kernelsimp scan torchvision:resnet18 --html scan.html",
        "kernelsimp scan model.pt --explain 'conv1[3,0]'",
    ),
    "atlas": (
        "kernelsimp atlas zoo",
        "kernelsimp atlas zoo --out atlas.html",
        "kernelsimp atlas zoo --quiet",
    ),
    "simplify": (
        "kernelsimp simplify model.pt --tolerance 0.1 --dry-run",
        "kernelsimp simplify model.pt --arch zoo:resnet20 --data npz:cifar10.npz --max-drop 0.5 --out run",
        "kernelsimp simplify model.pt --arch zoo:resnet20 --data npz:cifar10.npz --dof 0.3 "
        "--freeze --finetune --out run",
    ),
    "train": (
        "kernelsimp train --arch zoo:digits-cnn --data digits --out trained",
        "kernelsimp train --arch A --data D --constrain 'stem*=full-square' --out trained",
        "kernelsimp train --arch A --data D --penalty rate:1 --out trained",
    ),
    "prune": (
        "kernelsimp prune model.pt --arch A --data D --dof 0.5 --out pruned",
        "kernelsimp prune model.pt --arch A --data D --amount 0.2 --iterations 5 --out pruned",
        "kernelsimp prune model.pt --arch A --data D --granularity kernels --out pruned",
    ),
    "check": (
        "kernelsimp check new.pt --baseline run/report.json",
        "kernelsimp check new.pt --baseline run/report.json --data D --max-drop 0.5",
        "kernelsimp check model.pt --baseline baseline.json --update-baseline",
    ),
    "evaluate": (
        "kernelsimp evaluate model.pt --arch zoo:resnet20 --data npz:cifar10.npz",
        "kernelsimp evaluate run --data npz:cifar10.npz --robustness",
        "kernelsimp evaluate model.pt --arch A --data D --json accuracy.json",
    ),
    "compare": (
        "kernelsimp compare model.pt run/model.pt --arch A --data D",
        "kernelsimp compare a.pt b.pt --arch A --arch-b B --data D --matrix",
        "kernelsimp compare run-1 run-2 --data D --html compare.html",
    ),
    "audit": (
        "kernelsimp audit model.pt --arch zoo:resnet20",
        "kernelsimp audit model.pt --arch A --json audit.json",
        "kernelsimp audit model.pt --arch A --groups 8 --bottleneck 2",
    ),
    "report": (
        "kernelsimp report run",
        "kernelsimp report run-1 run-2 --out both",
        "kernelsimp report run-1 run-2 run-3 --out all",
    ),
    "export": (
        "kernelsimp export run",
        "kernelsimp export model.pt --to factorised --arch A --data D --max-drop 0.5",
        "kernelsimp export model.kspack --to torch --out model.pt",
    ),
    "families": (
        "kernelsimp families",
        "kernelsimp families --size 5",
        "kernelsimp families --size 1x3",
    ),
    "doctor": (
        "kernelsimp doctor",
        "kernelsimp doctor | grep MISSING",
        "kernelsimp doctor > doctor.txt",
    ),
    "help": (
        "kernelsimp help simplify",
        "kernelsimp help McNemar",
        "kernelsimp help found",
    ),
}
