"""Tensors too large for the memory: written to a safetensors file in pieces, and mapped.

The library's own `save_file` wants every tensor whole. The format is simple: the length of a
header (8 bytes), the header (JSON: type, shape, place of each tensor), the tensors end to end.
"""

from collections.abc import Iterable
from dataclasses import dataclass
import json
import math
from pathlib import Path
import struct

import numpy as np
import torch
from torch import Tensor

_NAMES = {torch.int64: 'I64', torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16',
          torch.float8_e5m2: 'F8_E5M2', torch.int8: 'I8', torch.uint8: 'U8', torch.bool: 'BOOL'}


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


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a file that `write_tensors` made; changes do not reach the file.

    They take memory only where they are looked at, and none that a busy system could not use.
    """
    with open(path, 'rb') as file:
        length = struct.unpack('<Q', file.read(8))[0]
        header = json.loads(file.read(length))
    kinds = {name: kind for kind, name in _NAMES.items()}
    tensors = {}
    for name, entry in header.items():
        start, end = entry['data_offsets']
        if start == end:
            tensors[name] = torch.empty(entry['shape'], dtype=kinds[entry['dtype']])
            continue
        # Bytes, because numpy does not know every type of torch.
        flat = np.memmap(path, np.uint8, 'c', 8 + length + start, (end - start,))
        tensors[name] = torch.from_numpy(flat).view(kinds[entry['dtype']]).view(entry['shape'])
    return tensors
