"""Reference views of a map: what each one shows, mapped from a file and read where it is used.

A view's points and features are rows of two long tensors in one safetensors file. Opening the file
reads its header; a view is checked the first time that it is asked for. Letters: K views, N points
of one view, T of all views, F features of a point, C channels of a matcher's tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
import hashlib
from pathlib import Path
from typing import Any

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.tensor_file import head_sha256, map_tensors, Pieces
import numpy as np
import torch
from torch import Tensor

# What is stored of a point beside its coordinate. 'features': of the field, for a matcher to
# encode. 'tokens': the matcher's own, where encoding is dear because points of a view attend to
# one another; they belong to the matcher of the map and need no encoding.
HOLDS = ('features', 'tokens')
_ROWS = ('points', *HOLDS)  # tensors with a row a point: by far the largest part of the file


@dataclass(frozen=True)
class References:
    """K reference views; points and features may be mapped, and are then read when used."""

    names: list[str]
    cameras: list[Camera]  # of the photographs, one per view
    map_from_camera: np.ndarray  # (K, 4, 4) float64
    descriptors: Tensor  # (K, V)
    starts: Tensor  # (K + 1,) rows of each view in points and features
    points: Tensor | None = None  # (T, 3) float32, map frame, metres
    features: Tensor | None = None  # (T, F) float16; (T, C) of tokens; or None
    file: Path | None = None  # that points and features are mapped from
    stored: Sequence[Any] | None = None  # instead: K views with points and features of their own
    holds: str = 'features'  # or 'tokens': what `features` are
    digests: Tensor | None = None  # (K, 32) uint8, SHA-256 of each view, to check when it is read
    _checked: set[int] = field(default_factory=set, init=False, repr=False, compare=False)

    def view(self, k: int) -> tuple[Tensor, Tensor | None]:
        """Give points (N, 3), metres, and features (N, F), or tokens (N, C), of view k.

        They are not copied: those of a file stay there until they are looked at. Raises MapError
        for what is damaged or holds NaN.
        """
        points, features = self.points_of(k), self.features_of(k)
        if self.file is not None and k not in self._checked:
            self._check(k, points, features)
            self._checked.add(k)
        return points, features

    def points_of(self, k: int) -> Tensor:
        """Give the points (N, 3) of view k, unchecked."""
        return self.stored[k].points if self.stored is not None else self._rows(self.points, k)

    def features_of(self, k: int) -> Tensor | None:
        """Give the features (N, F), or tokens (N, C), of view k, unchecked."""
        if self.stored is not None:
            return self.stored[k].features
        return None if self.features is None else self._rows(self.features, k)

    def _rows(self, tensor: Tensor, k: int) -> Tensor:
        return tensor[int(self.starts[k]):int(self.starts[k + 1])]

    def _check(self, k: int, points: Tensor, features: Tensor | None) -> None:
        if self.digests is not None:
            found = _digest(points, features).digest()
            if found != self.digests[k].numpy().tobytes():
                raise MapError(f'{self.file}: reference view {self.names[k]} is damaged; copy the '
                               'map again from its source')
        if not points.isfinite().all() or (
                features is not None and not features.isfinite().all()):
            raise MapError(f'{self.file}: reference view {self.names[k]} holds NaN or infinity')


def read_references(
    path: Path, names: list[str], cameras: list[Camera], *, holds: str = 'features',
    check_views: bool = False,
) -> References:
    """Map the reference views of a file; what is read at once is not yet checked.

    check_views: compare each view with its digest the first time it is used, for a file whose
    `references_head_sha256` alone was checked. Raises LookupError for a file that lacks a tensor
    and ValueError for one that is none.
    """
    tensors = map_tensors(path)
    return References(
        names, cameras, tensors['map_from_camera'].double().numpy(),
        tensors['descriptors'].float(), tensors['starts'].clone(), tensors['points'],
        tensors.get(holds), path, holds=holds,
        digests=tensors['digests'].clone() if check_views else None)


def references_head_sha256(path: Path) -> str:
    """Give the SHA-256 of all but points and features, whose own digests it vouches for."""
    return head_sha256(path, without=_ROWS)


def references_to_store(references: References) -> dict[str, Tensor | Pieces]:
    """Give the tensors of a file of reference views, the large ones view by view.

    Digests of the views are taken while these pass, so they come last.
    """
    rows, views = int(references.starts[-1]), range(len(references.names))
    digests = [hashlib.sha256() for _ in views]

    def passed(read) -> Iterator[Tensor]:
        for k in views:
            piece = read(k)
            digests[k].update(_bytes(piece))
            yield piece

    tensors = {
        'map_from_camera': torch.from_numpy(references.map_from_camera),
        'descriptors': references.descriptors.half(), 'starts': references.starts,
        'points': Pieces(torch.float32, (rows, 3), passed(references.points_of))}
    first = references.features_of(0)
    if first is not None:
        tensors[references.holds] = Pieces(first.dtype, (rows, first.shape[1]),
                                           passed(references.features_of))
    tensors['digests'] = Pieces(torch.uint8, (len(views), 32), (
        torch.tensor(list(digest.digest()), dtype=torch.uint8)[None] for digest in digests))
    return tensors


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _digest(points: Tensor, features: Tensor | None) -> 'hashlib._Hash':
    digest = hashlib.sha256(_bytes(points))
    if features is not None:
        digest.update(_bytes(features))
    return digest
