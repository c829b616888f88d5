"""All training pixels of a set of posed photographs, drawn at random as rays with targets."""

from dataclasses import dataclass

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.depth_map import DepthMap, DepthTable
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RayBatch:
    """Rays with what a photograph, and where known a depth, says about them."""

    rays: Rays
    colour: Tensor  # (R, 3) in [0, 1]
    distance: Tensor  # (R,) scene units along the ray; 0 where unknown
    tolerance: Tensor  # (R,) scene units


def working_camera(camera: Camera, longest_side: int) -> Camera:
    """Scale a camera down so that its longer side has at most `longest_side` pixels."""
    scale = min(1.0, longest_side / max(camera.width, camera.height))
    return camera.scaled_to(round(camera.width * scale), round(camera.height * scale))


def working_rgb(image: PosedImage, camera: Camera) -> np.ndarray:
    """Read the pixels (H, W, 3) uint8 of an image at the size of its working camera."""
    rgb = image.rgb()
    if rgb.shape[:2] == (camera.height, camera.width):
        return rgb
    return cv2.resize(rgb, (camera.width, camera.height), interpolation=cv2.INTER_AREA)


class RayDataset:
    """Pixels, poses and depths of K images as flat tensors; images may differ in size.

    depths: maps of these images, which count where an image has no depth of its own;
    depth_tolerance: of such a depth, as a share of it
    """

    def __init__(
        self, images: list[PosedImage], frame: SceneFrame, sparse: SparsePoints, *,
        longest_side: int, depths: list[DepthMap | None] | None = None,
        depth_tolerance: float = 0.01, device: str = 'cpu',
    ):
        self.frame, self.device = frame, device
        scale = frame.scene_from_map.scale
        cameras = [working_camera(image.camera, longest_side) for image in images]
        distinct = list(dict.fromkeys(cameras))
        tables = [camera.rays(camera.pixel_grid()).float() for camera in distinct]
        starts = np.cumsum([0] + [len(table) for table in tables])
        colours, measured, usable = [], [], []
        for image, camera in zip(images, cameras):
            colours.append(torch.from_numpy(working_rgb(image, camera).reshape(-1, 3)))
            size = (camera.width, camera.height)
            depth = image.depth_map()
            measured.append(None if depth is None else torch.from_numpy(
                cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)).flatten())
            mask = image.valid_mask()
            usable.append(None if mask is None else torch.from_numpy(cv2.resize(
                mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)).flatten() > 0)
        self.directions = torch.cat(tables).to(device)
        self.colours = torch.cat(colours).to(device)
        counts = torch.tensor([len(c) for c in colours])
        self.image_starts = (torch.cumsum(counts, 0) - counts).to(device)
        self.table_starts = torch.tensor(
            [starts[distinct.index(camera)] for camera in cameras], device=device)
        self.depths = None
        if any(depth is not None for depth in measured):
            self.depths = torch.cat([
                torch.zeros(len(c)) if d is None else d * scale
                for c, d in zip(colours, measured)]).to(device)
        # The maps stay as small as they are and are looked up for the rays that are drawn.
        self.depth_table, self.depth_tolerance = None, depth_tolerance
        if depths is not None and any(depth is not None for depth in depths):
            self.depth_table = DepthTable(depths, device)
        self.usable = None
        if any(mask is not None for mask in usable):
            self.usable = torch.cat([
                torch.ones(len(c), dtype=torch.bool) if m is None else m
                for c, m in zip(colours, usable)]).nonzero()[:, 0].to(device)
        self.poses = torch.from_numpy(
            np.stack([image.map_from_camera for image in images])).float().to(device)
        self.pixel_angle = float(np.mean([1 / camera.fx for camera in cameras]))
        self._add_sparse(images, cameras, sparse, scale)

    def _add_sparse(self, images, cameras, sparse: SparsePoints, scale: float) -> None:
        """Keep each observation of a sparse point as a pixel with a known distance."""
        flat, distance, tolerance = [], [], []
        offsets = self.image_starts.cpu().numpy()
        for k, (image, camera) in enumerate(zip(images, cameras)):
            chosen = sparse.image_index == k
            ratio = np.array([camera.width / image.camera.width,
                              camera.height / image.camera.height])
            pixel = np.floor((sparse.pixel[chosen] + 0.5) * ratio).astype(np.int64)
            pixel = np.clip(pixel, 0, [camera.width - 1, camera.height - 1])
            points = sparse.points[sparse.point_index[chosen]]
            away = np.linalg.norm(points - image.map_from_camera[:3, 3], axis=1)
            flat.append(offsets[k] + pixel[:, 1] * camera.width + pixel[:, 0])
            distance.append(away * scale)
            # A pixel's error across the triangulation angle, as an error along the ray.
            angle = sparse.angle[sparse.point_index[chosen]]
            tolerance.append(
                away * scale * (0.005 + 1 / camera.fx / np.maximum(np.sin(angle), 0.02)))
        to = {'dtype': torch.float32, 'device': self.device}
        self.sparse_pixel = torch.as_tensor(np.concatenate(flat), device=self.device)
        self.sparse_distance = torch.as_tensor(np.concatenate(distance), **to)
        self.sparse_tolerance = torch.as_tensor(np.concatenate(tolerance), **to)

    def draw(self, count: int, sparse_count: int, generator: torch.Generator) -> RayBatch:
        """Draw `count` pixels and up to `sparse_count` pixels of known depth, at random."""
        def choose(n: int, size: int) -> Tensor:
            return torch.randint(n, (size,), generator=generator, device=self.device)

        if self.usable is None:
            pixel = choose(len(self.colours), count)
        else:
            pixel = self.usable[choose(len(self.usable), count)]
        known = len(self.sparse_pixel)
        picked = choose(known, sparse_count if known else 0) if known else pixel[:0]
        pixel = torch.cat([pixel, self.sparse_pixel[picked] if known else picked])
        image = torch.searchsorted(self.image_starts, pixel, right=True) - 1
        directions = self.directions[
            self.table_starts[image] + pixel - self.image_starts[image]]
        distance = torch.zeros(len(pixel), device=self.device)
        tolerance = torch.ones(len(pixel), device=self.device)
        if self.depths is not None:
            distance = self.depths[pixel] / directions[:, 2]
            tolerance = 0.01 * distance + 1e-3
        if self.depth_table is not None:
            looked_up = self.depth_table.distances(image, directions)
            looked_up = looked_up * self.frame.scene_from_map.scale
            free = distance == 0
            distance = torch.where(free, looked_up, distance)
            tolerance = torch.where(free, self.depth_tolerance * looked_up + 1e-3, tolerance)
        if known:
            distance[count:] = self.sparse_distance[picked]
            tolerance[count:] = self.sparse_tolerance[picked]
        rays = self.frame.rays(self.poses[image], directions, self.pixel_angle, image)
        return RayBatch(rays, self.colours[pixel].float() / 255, distance, tolerance)
