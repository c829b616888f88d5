"""Reference views in a file that grows view by view, so that no set is too large for the memory.

A thousand views of 3600 points with 256 features are 2 GB. Here each view is written as soon as it
is rendered and its tensors are mapped from the file each time they are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
import json
import math
import os
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import WorkingView
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.reference_views import ReferenceView, render_reference, working_views
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes, of each tensor in the file


@dataclass(frozen=True)
class _Part:
    """A tensor within a file."""

    offset: int  # bytes
    kind: str  # of numpy
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.kind).itemsize

    def read(self, path: Path) -> Tensor:
        """Map the tensor; its memory is given back with it, and changes do not reach the file."""
        if not self.size:
            return torch.from_numpy(np.empty(self.shape, self.kind))
        return torch.from_numpy(np.memmap(path, self.kind, 'c', self.offset, self.shape))


@dataclass(frozen=True)
class StoredView:
    """A `ReferenceView` whose tensors stay in a file; keep none of them longer than needed."""

    name: str
    view: WorkingView
    map_from_camera: Tensor  # (4, 4) float64
    file: Path
    parts: dict[str, _Part]

    @property
    def points(self) -> Tensor:
        """Points (N, 3) of the opaque cells of the 1/8 grid, map frame, metres."""
        return self.parts['points'].read(self.file)

    @property
    def features(self) -> Tensor | None:
        """Features (N, F) float16."""
        part = self.parts.get('features')
        return None if part is None else part.read(self.file)

    @property
    def depth(self) -> Tensor:
        """Depth (rows, columns), metres, a grid twice as fine, for occlusion."""
        return self.parts['depth'].read(self.file)


class ReferenceStore:
    """The file at `path` with what is in it beside it, `<path>.index`, a line a view."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._index = self.path.with_name(self.path.name + '.index')
        self._entries: list[tuple[str, dict[str, _Part]]] = []
        if self._index.exists():
            # A line that a kill cut short has no end, and its view is rendered again.
            lines = self._index.read_bytes().split(b'\n')
            self._entries = [_entry(line) for line in lines[:-1]]
            os.truncate(self._index, sum(len(line) + 1 for line in lines[:-1]))

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, view: ReferenceView) -> None:
        """Write a view behind the others."""
        tensors = {'points': view.points.float(), 'depth': view.depth.float()}
        if view.features is not None:
            tensors['features'] = view.features.half()
        parts, end = {}, max((part.offset + part.size for _, parts in self._entries[-1:]
                              for part in parts.values()), default=0)
        self.path.touch()
        with open(self.path, 'r+b') as file:
            for name, tensor in tensors.items():
                values = tensor.contiguous().numpy()
                offset = -(-end // _ALIGNMENT) * _ALIGNMENT
                file.seek(offset)
                file.write(values.data)
                parts[name] = _Part(offset, values.dtype.str, values.shape)
                end = offset + values.nbytes
            os.fsync(file.fileno())
        with open(self._index, 'ab') as file:
            file.write(json.dumps([view.name, {name: [p.offset, p.kind, p.shape]
                                               for name, p in parts.items()}]).encode() + b'\n')
        self._entries.append((view.name, parts))

    def views(self, images: list[PosedImage], views: list[WorkingView]) -> list[StoredView]:
        """Give the stored views of these images; raises DataError if others are stored."""
        names = [name for name, _ in self._entries]
        if names != [image.name for image in images]:
            raise DataError(f'{self.path} holds reference views of other photographs; '
                            'delete it to render them again')
        return [StoredView(image.name, view, torch.from_numpy(
                    np.ascontiguousarray(image.map_from_camera)), self.path, parts)
                for image, view, (_, parts) in zip(images, views, self._entries)]


def _entry(line: bytes) -> tuple[str, dict[str, _Part]]:
    name, parts = json.loads(line)
    return name, {key: _Part(offset, kind, tuple(shape))
                  for key, (offset, kind, shape) in parts.items()}


def render_into_store(
    path: Path, field: RadianceField, frame: SceneFrame, images: list[PosedImage], *,
    feature_layer: int | None, longest_side: int, size: tuple[int, int] | None = None,
    focal: float | None = None, report: Callable[[float], None] = lambda progress: None,
) -> None:
    """Render the reference views of all map images into a file, those that it does not hold."""
    store = ReferenceStore(path)
    views = working_views(images, longest_side, size, focal)
    for k in range(len(store), len(images)):
        store.append(render_reference(field, frame, images[k], views[k],
                                      feature_layer=feature_layer))
        report((k + 1) / len(images))


def open_references(
    path: Path, images: list[PosedImage], *, longest_side: int,
    size: tuple[int, int] | None = None, focal: float | None = None,
) -> list[StoredView]:
    """Give what `render_into_store` wrote."""
    return ReferenceStore(path).views(images, working_views(images, longest_side, size, focal))
