"""Training batches of the matcher: augmented map images, scene points, and which sees which."""

from dataclasses import dataclass

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.mapping.augmentation import AugmentationConfig, change_light, turn_and_zoom
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.supervision import overlap_matrix, visible_points
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MatchBatch:
    """B images and a pool of m points; per image the points it truly sees and where."""

    images: Tensor  # (B, 3, H, W) in [0, 1] (noise may exceed it)
    points: Tensor  # (m, 3) scene frame
    features: Tensor | None  # (m, F)
    seen: list[Tensor]  # per image (k,) indices into the pool
    pixels: list[Tensor]  # per image (k, 2) true positions


class MatchDataset:
    """Map images of one map with their reference views, drawn in batches of equal size."""

    def __init__(
        self, images: list[PosedImage], references: list[ReferenceView], frame: SceneFrame,
        augmentation: AugmentationConfig, *, least_overlap: float = 0.25,
    ):
        self.references, self.frame, self.augmentation = references, frame, augmentation
        self.pictures = [reference.view.picture(image.rgb())
                         for image, reference in zip(images, references)]
        poses = torch.stack([reference.map_from_camera for reference in references]).float()
        overlap = overlap_matrix(
            [reference.points for reference in references],
            [reference.view.camera for reference in references], poses,
            [reference.depth for reference in references], 60,
            torch.Generator().manual_seed(0))
        self.partners = [(row > least_overlap).nonzero()[:, 0].numpy() for row in overlap]
        usable = [k for k, partners in enumerate(self.partners) if len(partners)]
        if not usable:
            raise DataError(
                'the field shows no surface that any map image sees, so there is nothing to '
                'match: check the poses and axes of the data set and the held-out PSNR')
        shapes: dict[tuple, list[int]] = {}
        for k in usable:
            shapes.setdefault(self.pictures[k].shape, []).append(k)
        self.groups = [np.array(group) for group in shapes.values()]

    def draw(self, batch: int, points: int, random: np.random.Generator) -> MatchBatch:
        """Draw `batch` images, with `points` points of a partner view each as the common pool."""
        share = np.array([len(group) for group in self.groups], float)
        group = self.groups[random.choice(len(self.groups), p=share / share.sum())]
        chosen = random.choice(group, batch, replace=len(group) < batch)
        pool, features = [], []
        for k in chosen:
            partner = self.references[random.choice(self.partners[k])]
            index = torch.from_numpy(random.integers(len(partner.points), size=points))
            pool.append(partner.points[index])
            if partner.features is not None:
                features.append(partner.features[index])
        points_in_map = torch.cat(pool)
        pictures, seen, pixels = [], [], []
        for k in chosen:
            reference = self.references[k]
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
            torch.cat(features) if features else None, seen, pixels)
