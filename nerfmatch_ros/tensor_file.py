"""Tensors too large for the memory: written to a safetensors file in pieces, and mapped.

The library's own `save_file` wants every tensor whole. The format is simple: the length of a
header (8 bytes), the header (JSON: type, shape, place of each tensor), the tensors end to end.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
import hashlib
import json
import math
from pathlib import Path
import struct

import numpy as np
import torch
from torch import Tensor

_NAMES = {torch.int64: 'I64', torch.float64: 'F64', torch.float32: 'F32', torch.float16: 'F16',
          torch.bfloat16: 'BF16', torch.float8_e5m2: 'F8_E5M2', torch.int8: 'I8',
          torch.uint8: 'U8', torch.bool: 'BOOL', torch.int32: 'I32'}
_KINDS = {name: kind for kind, name in _NAMES.items()}


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


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    kind: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    end: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read which tensors a safetensors file holds; raises ValueError for what is none."""
    size = path.stat().st_size
    with open(path, 'rb') as file:
        first = file.read(8)
        length = struct.unpack('<Q', first)[0] if len(first) == 8 else size
        if length > size - 8:
            raise ValueError(f'{path.name} is no safetensors file, or was cut short')
        try:
            header = json.loads(file.read(length))
            stored = {name: _stored(entry, 8 + length) for name, entry in header.items()
                      if name != '__metadata__'}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'the header of {path.name} cannot be read: {error!r}') from error
    for name, tensor in stored.items():
        needed = math.prod(tensor.shape) * tensor.kind.itemsize
        if tensor.end - tensor.start != needed or tensor.end > size:
            raise ValueError(f'{path.name}: {name} of shape {tensor.shape} needs {needed} bytes; '
                             f'the header gives bytes {tensor.start} to {tensor.end} of {size}')
    return stored


def _stored(entry: dict, origin: int) -> StoredTensor:
    (start, end), shape = entry['data_offsets'], entry['shape']
    if any(type(number) is not int or number < 0 for number in (start, end, *shape)):
        raise ValueError(f'{entry} states sizes that are none')
    return StoredTensor(_KINDS[entry['dtype']], tuple(shape), origin + start, origin + end)


def map_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Map the tensors of a file, or those named; changes do not reach the file.

    They take memory only where they are looked at, and none that a busy system could not use. The
    file must stay as it is while they are in use; it may be replaced by another of its name.
    Raises ValueError for a file whose header does not describe it.
    """
    tensors = {}
    for name, stored in read_header(path).items():
        if names is not None and name not in names:
            continue
        if stored.start == stored.end:
            tensors[name] = torch.empty(stored.shape, dtype=stored.kind)
            continue
        # Bytes, because numpy does not know every type of torch.
        flat = torch.from_numpy(
            np.memmap(path, np.uint8, 'c', stored.start, (stored.end - stored.start,)))
        if stored.start % stored.kind.itemsize:  # of a writer that does not order by size
            flat = flat.clone()
        tensors[name] = flat.view(stored.kind).view(stored.shape)
    return tensors


def head_sha256(path: Path, without: Collection[str]) -> str:
    """Give the SHA-256 of a safetensors file but for some tensors, in hexadecimal digits."""
    stored = sorted(read_header(path).items(), key=lambda item: item[1].start)
    digest, origin = hashlib.sha256(), min((tensor.start for _, tensor in stored), default=0)
    with open(path, 'rb') as file:
        digest.update(file.read(origin))
        for name, tensor in stored:
            if name not in without:
                file.seek(tensor.start)
                digest.update(file.read(tensor.end - tensor.start))
    return digest.hexdigest()
