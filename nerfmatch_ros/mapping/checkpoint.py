"""Interim states of a training, so that a killed build goes on where it stopped."""

import os
from pathlib import Path

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.training_clock import TrainingClock
import torch
from torch import nn


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, clock: TrainingClock,
) -> None:
    """Write the state of a training; the old file stays until the new one is whole."""
    temporary = path.with_suffix('.tmp')
    torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
                'clock': clock.state()}, temporary)
    os.replace(temporary, path)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, clock: TrainingClock,
) -> None:
    """Restore what `save_checkpoint` wrote; raises DataError for a file of another training."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        clock.restore(state['clock'])
    except Exception as error:
        # Torch's own words are long and advise to switch its protection off.
        raise DataError(
            f'cannot go on from the checkpoint {path} ({type(error).__name__}): it belongs to '
            'another configuration or is damaged; delete it to start this stage again') from error
