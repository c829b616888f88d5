"""Interim states of a training, so that a killed build goes on where it stopped."""

from pathlib import Path
from typing import TYPE_CHECKING

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import written_atomically
from nerfmatch_ros.mapping.engine import from_first, once
from nerfmatch_ros.mapping.training_clock import TrainingClock
from safetensors.torch import save_file
import torch
from torch import nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, clock: TrainingClock, *,
    engine: 'Fabric | None' = None,
) -> None:
    """Write the state of a training; the old file stays until the new one is whole.

    All processes of the engine call this, the first one writes; without an engine this process is
    alone. model: not wrapped by the engine.
    """
    def write() -> None:
        with written_atomically(path) as temporary:
            torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
                        'clock': clock.state()}, temporary)

    once(engine, write)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, clock: TrainingClock, *,
    engine: 'Fabric | None' = None,
) -> bool:
    """Restore what `save_checkpoint` wrote and say whether there was anything.

    Raises DataError for a file of another training. All processes of the engine call this.
    """
    if not from_first(engine, path.exists()):
        return False
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        clock.restore(state['clock'])
    except FileNotFoundError as error:
        raise DataError(f'{path} is there for the first process and not for this one; put the '
                        'output where all machines see it') from error
    except Exception as error:
        # Torch's own words are long and advise to switch its protection off.
        raise DataError(
            f'cannot go on from the checkpoint {path} ({type(error).__name__}): it belongs to '
            'another configuration or is damaged; delete it to start this stage again') from error
    return True


def save_weights(module: nn.Module, path: Path, *used: str) -> None:
    """Write weights, and delete the files beside them that were used in the training."""
    with written_atomically(path) as temporary:
        save_file({key: value.contiguous().cpu() for key, value in module.state_dict().items()},
                  temporary)
    for name in used:
        path.with_name(name).unlink(missing_ok=True)
