"""Training batches of our matcher: augmented map images, scene points, and which sees which."""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.mapping.augmentation import AugmentationConfig, change_light, turn_and_zoom
from nerfmatch_ros.mapping.picture_cache import PictureCache
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.supervision import overlap_matrix, visible_points
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor

FEWEST_SEEN = 8  # points, for an image to count
LEAST_OVERLAP = 0.25  # share of a view's points that an image must see to be its partner
OVERLAP_SAMPLES = 60  # points of a view, by which its overlap is measured


@dataclass(frozen=True)
class MatchBatch:
    """A process's share of B images and a pool of m points; per image what it sees and where."""

    images: Tensor  # (b, 3, H, W) in [0, 1] (noise may exceed it)
    points: Tensor  # (m, 3) scene frame; of all images, in all shares alike
    features: Tensor | None  # (m, F)
    seen: list[Tensor]  # per image (k,) indices into the pool
    pixels: list[Tensor]  # per image (k, 2) true positions
    seed: int  # of what is drawn for the points
    seeds: list[int]  # of what is drawn for each image

    @property
    def size(self) -> int:
        """Images that count."""
        return sum(len(seen) >= FEWEST_SEEN for seen in self.seen)


class MatchDataset:
    """Map images of one map with their reference views, drawn in batches of equal size."""

    def __init__(
        self, images: Sequence[PosedImage], references: Sequence[ReferenceView],
        frame: SceneFrame, augmentation: AugmentationConfig, *,
        least_overlap: float = LEAST_OVERLAP,
    ):
        self.references, self.frame, self.augmentation = references, frame, augmentation
        self.pictures = PictureCache(images, references)
        overlap = overlap_of(references)
        self.partners = [(row > least_overlap).nonzero()[:, 0].numpy() for row in overlap]
        usable = [k for k, partners in enumerate(self.partners) if len(partners)]
        if not usable:
            raise DataError(
                'the field shows no surface that any map image sees, so there is nothing to '
                'match: check the poses and axes of the data set and the held-out PSNR')
        shapes: dict[tuple, list[int]] = {}
        for k in usable:
            shapes.setdefault(self.pictures.size(k), []).append(k)
        self.groups = [np.array(group) for group in shapes.values()]

    def draw(
        self, batch: int, points: int, seed: Sequence[int], *, rank: int = 0, processes: int = 1,
    ) -> MatchBatch:
        """Draw `batch` images, with `points` points of a partner view each as the common pool.

        seed: of the choice, which is the same whatever the number of processes; rank: of the
        process whose share of the images is given.
        """
        random = np.random.default_rng(seed)
        share = np.array([len(group) for group in self.groups], float)
        group = self.groups[random.choice(len(self.groups), p=share / share.sum())]
        chosen = random.choice(group, batch, replace=len(group) < batch)
        pool, features = [], []
        for k in chosen:
            partner = self.references[random.choice(self.partners[k])]
            places = partner.points
            index = torch.from_numpy(random.integers(len(places), size=points))
            pool.append(places[index])
            inner = partner.features
            if inner is not None:
                features.append(inner[index])
        points_in_map = torch.cat(pool)
        seeds = random.integers(2 ** 62, size=batch + 1).tolist()
        pictures, seen, pixels, own = [], [], [], range(rank, batch, processes)
        for k, image_seed in ((chosen[n], seeds[n]) for n in own):
            reference, random = self.references[k], np.random.default_rng(image_seed)
            picture, camera, pose = turn_and_zoom(
                self.pictures[k], reference.view.camera, reference.map_from_camera.numpy(),
                self.augmentation, random)
            pictures.append(torch.from_numpy(change_light(picture, self.augmentation, random)))
            visible = visible_points(points_in_map, reference.view.camera,
                                     reference.map_from_camera.float(), reference.depth)
            turned = transform_points(inverse(torch.from_numpy(pose).float()), points_in_map)
            index = (visible & camera.sees(turned)).nonzero()[:, 0]
            seen.append(index)
            pixels.append(camera.project(turned[index]))
        return MatchBatch(
            torch.stack(pictures).permute(0, 3, 1, 2), self.frame.to_scene(points_in_map),
            torch.cat(features) if features else None, seen, pixels, seeds[-1],
            [seeds[n] for n in own])


def overlap_of(references: Sequence[ReferenceView]) -> Tensor:
    """Share of view j's points that view i sees: (K, K) indexed [i, j]."""
    return overlap_matrix(
        (reference.points for reference in references),
        [reference.view.camera for reference in references],
        torch.stack([reference.map_from_camera for reference in references]).float(),
        (reference.depth for reference in references), OVERLAP_SAMPLES,
        torch.Generator().manual_seed(0))
