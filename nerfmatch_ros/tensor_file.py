"""Writing tensors to a safetensors file piece by piece, those too large for the memory as well.

The library's own `save_file` wants every tensor whole. The format is simple: the length of a
header (8 bytes), the header (JSON: type, shape, place of each tensor), the tensors end to end.
"""

from collections.abc import Iterable
from dataclasses import dataclass
import json
import math
from pathlib import Path
import struct

import torch
from torch import Tensor

_NAMES = {torch.int64: 'I64', torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16',
          torch.float8_e5m2: 'F8_E5M2', torch.uint8: 'U8', torch.bool: 'BOOL'}


@dataclass(frozen=True)
class Pieces:
    """A tensor given in pieces along its first axis."""

    kind: torch.dtype
    shape: tuple[int, ...]  # of the whole
    pieces: Iterable[Tensor]

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * self.kind.itemsize


def write_tensors(path: Path, tensors: dict[str, Tensor | Pieces]) -> None:
    """Write a safetensors file; raises ValueError for pieces that do not make up their whole."""
    given = {name: value if isinstance(value, Pieces) else Pieces(
        value.dtype, tuple(value.shape), [value]) for name, value in tensors.items()}
    # The largest numbers come first, so that each lies at a multiple of its size.
    ordered = sorted(given.items(), key=lambda item: -item[1].kind.itemsize)
    header, end = {}, 0
    for name, value in ordered:
        start, end = end, end + value.size
        header[name] = {'dtype': _NAMES[value.kind], 'shape': list(value.shape),
                        'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name, value in ordered:
            start = file.tell()
            for piece in value.pieces:
                if piece.dtype != value.kind or piece.shape[1:] != value.shape[1:]:
                    raise ValueError(f'a piece of {name} is {piece.dtype} {tuple(piece.shape)}, '
                                     f'the whole {value.kind} {value.shape}')
                # Numpy does not know every type of torch, but their bytes.
                file.write(piece.detach().cpu().contiguous().flatten().view(
                    torch.uint8).numpy().data)
            if file.tell() - start != value.size:
                raise ValueError(f'the pieces of {name} are {file.tell() - start} bytes, '
                                 f'the whole is {value.size}')
