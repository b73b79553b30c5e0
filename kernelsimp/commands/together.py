"""Several processes that make one run: who they are, and that all go on with what the first one has."""

from dataclasses import replace

from kernelsimp.commands.task import Task
from kernelsimp.models.network import Network, device_of
from kernelsimp.settings import Settings
from kernelsimp.solver.chosen import Chosen
from kernelsimp.solver.process_group import ALONE, ProcessGroup
from kernelsimp.solver.tolerance import is_by_weight
from kernelsimp.training.ranks import processes


def works_together(settings: Settings) -> bool:
    """Say whether several processes were asked for, and there are images to look at or to train on."""
    local, nodes = processes(settings.finetune)
    seen = settings.data.data is not None and not is_by_weight(settings.plan)
    return local * nodes > 1 and (seen or settings.finetune.finetune)


def join_processes(settings: Settings) -> ProcessGroup:
    """Start or join the other processes of a run, each on its own device; return the group of them.

    Raises `KernelsimpError` for a device that is not there.
    """
    if not works_together(settings):
        return ALONE
    from kernelsimp.training.engine import Engine  # here, because importing Fabric takes seconds

    Engine(str(device_of(settings)), settings.finetune)
    return ProcessGroup.of_launched()


def with_first_weights(task: Task, network: Network) -> Network:
    """Return the network with the weights that it has in the first process."""
    group = task.group
    if group.size == 1:
        return network
    tensors = group.from_first(
        lambda: {name: value.clone() for name, value in network.checkpoint.tensors.items()}
    )
    return network if group.first else network.with_weights(tensors)


def settle_together(task: Task, chosen: Chosen) -> Chosen:
    """Return what the first process has chosen; what stands beside it, the first can go on with alone."""
    if task.group.size == 1:
        return chosen
    plan = task.group.from_first(lambda: chosen.plan)
    network = with_first_weights(task, chosen.network)
    case = chosen.case.alone() if chosen.case is not None and task.group.first else None
    return replace(chosen, plan=plan, network=network, case=case)
