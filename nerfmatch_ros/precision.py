"""In which precision networks compute."""

from nerfmatch_ros.errors import ConfigError
import torch

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def check_precision(name: str) -> None:
    """Refuse the name of a precision that does not exist."""
    if name != 'auto' and name not in PRECISIONS:
        raise ConfigError(f"precision '{name}' is unknown; use auto, {', '.join(PRECISIONS)}")


def inference_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose the precision of the networks on a device.

    name: float32, bfloat16, float16 or auto: half precision where the device multiplies matrices
    faster in it. The squares of a ConvFormer's activations can exceed float16, so auto takes
    bfloat16.
    """
    check_precision(name)
    if name != 'auto':
        return PRECISIONS[name]
    if device.type == 'cuda':
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = _cpu_multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16; torch tells it privately."""
    return any(getattr(torch.cpu, name, bool)() for name in (
        '_is_avx512_bf16_supported', '_is_amx_tile_supported'))
