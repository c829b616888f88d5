"""Weights of networks in safetensors files: large ones in half precision, all of them finite."""

from pathlib import Path

from safetensors import safe_open
import torch
from torch import nn, Tensor

_LARGE = 4096  # tensors of more elements are stored in half precision


def halved(module: nn.Module) -> dict[str, Tensor]:
    """Give the state of a module with its large tensors in half precision.

    The density grid only says where to sample: a byte a cell, good to an eighth, is enough for it.
    """
    state = dict(module.state_dict())
    for name, value in state.items():
        if value.is_floating_point() and value.numel() > _LARGE:
            kind = torch.float8_e5m2 if name == 'guide' else torch.float16
            largest = torch.finfo(kind).max  # densities of an opaque surface may exceed it
            state[name] = value.clamp(-largest, largest).to(kind)
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; raises ValueError for NaN or infinity."""
    with safe_open(path, 'pt') as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise ValueError(f'{path.name}: {key} holds NaN or infinity')
    return tensors


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a module's whole state, in single precision, and set it up for inference.

    Raises ValueError or RuntimeError for a state that is not that of the module.
    """
    stored, own = read_tensors(path), module.state_dict()
    for key, value in stored.items():
        if key in own and value.is_floating_point() != own[key].is_floating_point():
            raise ValueError(f'{path.name}: {key} is of type {value.dtype}')
    module.load_state_dict({key: value.float() if value.is_floating_point() else value
                            for key, value in stored.items()})
    module.eval().requires_grad_(False)
