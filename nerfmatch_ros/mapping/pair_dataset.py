"""Training pairs of the published matcher: a map image with all points of a reference view.

Which images see a view is taken from the map's own geometry, where the published training reads
it from a structure-from-motion model; and a true pair is one that the image truly sees, which
that training does not test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.mapping.augmentation import AugmentationConfig, change_light, turn_and_zoom
from nerfmatch_ros.mapping.match_dataset import LEAST_OVERLAP, overlap_of
from nerfmatch_ros.mapping.picture_cache import PictureCache
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.supervision import visible_points
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """An image and the points of a reference view."""

    image: Tensor  # (3, H, W) in [0, 1]
    points: Tensor  # (m, 3) map frame, metres
    features: Tensor  # (m, F)
    pixels: Tensor  # (m, 2) where the points project in the image
    visible: Tensor  # (m,) bool


@dataclass(frozen=True)
class PairGroup:
    """Pairs whose loss is one mean."""

    pairs: list[Pair]
    seed: int  # of the matches that the fine stage learns from

    @property
    def size(self) -> int:
        """Pairs that count."""
        return len(self.pairs)


def covisible_pairs(overlap: Tensor, *, least: float, partners: int, self_pairs: int,
                    ) -> np.ndarray:
    """List pairs (P, 2) of image and reference view.

    overlap: (K, K), share of view j's points that image i sees; partners: best views of an image,
    0: all that overlap by `least`; self_pairs: times each image is listed with its own view.
    """
    found = []
    for image, row in enumerate(overlap.clone()):
        own = row[image].item()
        row[image] = -1
        order = torch.argsort(row, descending=True, stable=True)
        order = order[row[order] > least]
        found += [(image, view) for view in order[:partners or None].tolist()]
        if own > 0:
            found += [(image, image)] * self_pairs
    return np.array(found, np.int64).reshape(-1, 2)


class PairDataset:
    """Pairs of one map, drawn in groups."""

    def __init__(
        self, images: Sequence[PosedImage], references: Sequence[ReferenceView], *,
        partners: int = 0, self_pairs: int = 10, augmentation: AugmentationConfig | None = None,
    ):
        self.references, self.augmentation = references, augmentation
        self.pictures = PictureCache(images, references)
        self.pairs = covisible_pairs(overlap_of(references), least=LEAST_OVERLAP,
                                     partners=partners, self_pairs=self_pairs)
        if not len(self.pairs):
            raise DataError(
                'the field shows no surface that any map image sees, so there is nothing to '
                'match: check the poses and axes of the data set and the held-out PSNR')

    def draw(
        self, batch: int, at_once: int, seed: Sequence[int], *, rank: int = 0, processes: int = 1,
    ) -> list[PairGroup]:
        """Draw `batch` pairs in groups of `at_once`, and give this process's share of the groups.

        seed: of the choice, which is the same whatever the number of processes.
        """
        groups = -(-batch // at_once)
        random = np.random.default_rng(seed)
        chosen = self.pairs[random.integers(len(self.pairs), size=batch)]
        seeds = random.integers(2 ** 62, size=(2, batch)).tolist()
        return [PairGroup([self._pair(*chosen[n].tolist(), seeds[0][n]) for n in range(
            group * at_once, min((group + 1) * at_once, batch))], seeds[1][group])
                for group in range(rank, groups, processes)]

    def _pair(self, image: int, view: int, seed: int) -> Pair:
        seeing, seen = self.references[image], self.references[view]
        picture, camera = self.pictures[image], seeing.view.camera
        pose = seeing.map_from_camera
        points = seen.points.clone()
        visible = visible_points(points, camera, pose.float(), seeing.depth)
        if self.augmentation is None:
            shown = picture.astype(np.float32) / 255
        else:
            random = np.random.default_rng(seed)
            turned, camera, turned_pose = turn_and_zoom(
                picture, camera, pose.numpy(), self.augmentation, random)
            shown, pose = change_light(turned, self.augmentation, random), torch.from_numpy(
                turned_pose)
        in_camera = transform_points(inverse(pose.float()), points)
        return Pair(torch.from_numpy(shown).permute(2, 0, 1), points, seen.features.clone(),
                    camera.project(in_camera), visible & camera.sees(in_camera))
