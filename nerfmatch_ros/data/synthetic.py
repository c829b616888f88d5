"""A synthetic room in closed form: boxes with textures, rays cast exactly; needs no download.

Map frame: metres, origin in the middle of the floor, x along the long walls, z up. The room is a
box seen from inside, each piece of furniture a box seen from outside, turned about z.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path

import cv2
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.room_texture import draw, TextureAtlas
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import torch

ROOM_SIZE = (6.0, 4.0, 2.5)  # metres
DEPTH_UNIT = 0.0002  # metres: 16 bits reach 13 m
JPEG_QUALITY = 95

_LAMPS = np.array(((-1.5, 0.0, 2.3), (1.5, 0.0, 2.3)))


@dataclass(frozen=True)
class Box:
    """A box whose sides carry textures."""

    centre: tuple[float, float, float]  # metres
    size: tuple[float, float, float]  # metres
    kinds: tuple[str, str, str, str, str, str]  # texture of the sides -x +x -y +y -z +z
    yaw: float = 0.0  # radians about z


def _box(x: float, y: float, bottom: float, size, kind: str, yaw: float = 0.0, **sides) -> Box:
    """Place a box by its bottom; sides: textures that differ, by side."""
    kinds = [kind] * 6
    for name, other in sides.items():
        kinds[('left', 'right', 'near', 'far', 'bottom', 'top').index(name)] = other
    return Box((x, y, bottom + size[2] / 2), size, tuple(kinds), yaw)


ROOM = Box((0.0, 0.0, ROOM_SIZE[2] / 2), ROOM_SIZE, ('wall',) * 4 + ('floor', 'ceiling'))
FURNITURE = (
    # table with legs and things on it
    _box(0.1, -0.05, 0.70, (1.3, 0.75, 0.05), 'wood', 0.15),
    *(_box(0.1 + x * math.cos(0.15) - y * math.sin(0.15),
           -0.05 + x * math.sin(0.15) + y * math.cos(0.15), 0.0, (0.06, 0.06, 0.70), 'wood', 0.15)
      for x in (-0.58, 0.58) for y in (-0.31, 0.31)),
    _box(0.35, 0.05, 0.75, (0.28, 0.20, 0.20), 'carton', 0.7),
    _box(-0.15, -0.15, 0.75, (0.22, 0.30, 0.10), 'carton', -0.3),
    _box(-0.15, -0.15, 0.85, (0.16, 0.20, 0.14), 'carton', 0.4),
    # shelf full of books at the wall x = -3
    _box(-2.82, -0.55, 0.0, (0.36, 1.5, 1.95), 'wood', right='shelf'),
    # cupboard with a picture screen at the wall x = 3
    _box(2.76, 0.45, 0.0, (0.48, 1.3, 0.85), 'wood'),
    _box(2.80, 0.45, 0.85, (0.10, 0.95, 0.55), 'carton', left='poster'),
    # sofa at the wall y = 2
    _box(-0.9, 1.62, 0.0, (1.9, 0.76, 0.40), 'fabric'),
    _box(-0.9, 1.90, 0.40, (1.9, 0.20, 0.42), 'fabric'),
    _box(-1.78, 1.62, 0.40, (0.16, 0.76, 0.20), 'fabric'),
    _box(-0.02, 1.62, 0.40, (0.16, 0.76, 0.20), 'fabric'),
    _box(-0.6, 1.70, 0.40, (0.40, 0.14, 0.38), 'fabric', 0.2),
    # cartons in the corners, a stool, a chest of drawers at the wall y = -2
    _box(2.45, -1.45, 0.0, (0.60, 0.60, 0.55), 'carton', 0.5),
    _box(2.42, -1.42, 0.55, (0.36, 0.32, 0.34), 'carton', 0.95),
    _box(2.50, 1.60, 0.0, (0.45, 0.45, 0.90), 'wood', 0.2),
    _box(-2.55, 1.55, 0.0, (0.42, 0.42, 0.50), 'carton', 0.8),
    _box(-1.0, -1.76, 0.0, (1.20, 0.44, 0.75), 'wood', far='carton'),
    _box(-1.2, -1.78, 0.75, (0.30, 0.22, 0.38), 'carton', 0.3),
    _box(0.9, -1.72, 0.0, (0.40, 0.40, 0.45), 'fabric', 0.35),
)


# What somebody put into the room later: another picture over the screen, a pile of cartons.
CHANGES = (
    _box(2.735, 0.45, 0.83, (0.03, 1.05, 0.60), 'poster'),
    _box(1.75, -1.45, 0.0, (0.55, 0.50, 0.60), 'carton', 0.2),
    _box(1.75, -1.45, 0.60, (0.40, 0.40, 0.45), 'carton', -0.4),
)


class SyntheticRoom:
    """The furnished room; the seed chooses its textures, the furniture is always the same."""

    def __init__(self, seed: int = 0, added: Sequence[Box] = ()):
        """Draw the textures; takes about a second. added: boxes that change nothing else."""
        rng = np.random.default_rng(seed)
        self.boxes = (ROOM, *FURNITURE, *added)
        textures = []
        for box in self.boxes:
            x, y, z = box.size
            for kind, extent in zip(box.kinds, ((y, z), (y, z), (x, z), (x, z), (x, y), (x, y))):
                textures.append(draw(kind, *extent, rng))
        self._atlas = TextureAtlas(textures)
        self._centres = np.array([box.centre for box in self.boxes])
        self._halves = np.array([box.size for box in self.boxes]) / 2
        self._turns = np.stack([_about_z(box.yaw) for box in self.boxes])  # map from box

    def render(
        self, camera: Camera, map_from_camera: np.ndarray, depth: bool = False, *,
        supersample: int = 1,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Take a picture (H, W, 3), uint8 RGB, and on demand its exact depth (H, W).

        depth: also give the distance along z at the pixel centres, float32 metres.
        supersample: rays along each side of a pixel; 2 smooths the edges of the furniture.
        """
        fine = camera.scaled_to(camera.width * supersample, camera.height * supersample)
        picture = self._shade(fine, map_from_camera)
        if supersample > 1:
            size = (camera.width, camera.height)
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
        if not depth:
            return picture
        in_camera, directions = _pixel_rays(camera, map_from_camera)
        distance, _ = self.cast(np.asarray(map_from_camera)[:3, 3], directions)
        z = (distance * in_camera[:, 2]).astype(np.float32)
        return picture, z.reshape(camera.height, camera.width)

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find where rays from a point inside the room first hit -> distances, faces, both (N,).

        origin: (3,) map; directions: (N, 3) map, unit; face: 6 * box + 2 * axis + (0 or 1).
        """
        origin = np.asarray(origin, np.float64)
        if (np.abs(origin - self._centres[0]) >= self._halves[0]).any():
            raise DataError(f'a camera at {origin.tolist()} is outside the room of {ROOM_SIZE} '
                            'metres; keep it inside')
        best, face = _leave_box(origin - self._centres[0], directions, self._halves[0])
        to_centres = self._centres - origin
        apart = np.linalg.norm(to_centres, axis=1)
        radii = np.linalg.norm(self._halves, axis=1)
        along = directions @ to_centres.T
        for index in range(1, len(self.boxes)):
            # Only rays that cross the sphere around the box can meet the box.
            if apart[index] > radii[index]:
                nearest = math.sqrt(apart[index] ** 2 - radii[index] ** 2)
                rays = np.flatnonzero(along[:, index] > nearest)
            else:
                rays = np.arange(len(directions))
            turn = self._turns[index]
            distance, side = _enter_box(
                -to_centres[index] @ turn, directions[rays] @ turn, self._halves[index])
            closer = distance < best[rays]
            best[rays[closer]] = distance[closer]
            face[rays[closer]] = 6 * index + side[closer]
        return best, face

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Give how far points (N, 3) are from the nearest wall or furniture, metres; (N,)."""
        walls = (self._halves[0] - np.abs(points - self._centres[0])).min(axis=1)
        local = np.einsum('bij,nbi->nbj', self._turns, points[:, None] - self._centres)[:, 1:]
        outside = np.maximum(np.abs(local) - self._halves[1:], 0)
        return np.minimum(walls, np.linalg.norm(outside, axis=2).min(axis=1))

    def _shade(self, camera: Camera, map_from_camera: np.ndarray) -> np.ndarray:
        """Give the light (H, W, 3), float32 0..255, along the ray of each pixel centre."""
        origin = np.asarray(map_from_camera, np.float64)[:3, 3]
        _, directions = _pixel_rays(camera, map_from_camera)
        distance, face = self.cast(origin, directions)
        points = origin + distance[:, None] * directions
        box, side = face // 6, face % 6
        axis, sign = side // 2, 2.0 * (side % 2) - 1
        offset = points - self._centres[box]
        turns = self._turns[box]
        local = np.matmul(offset[:, None], turns)[:, 0]
        halves = self._halves[box]
        # Across and down on the face: x or y, and -z; on horizontal faces x and -y.
        across, down = np.where(axis == 0, 1, 0), np.where(axis == 2, 1, 2)
        rows = np.arange(len(axis))
        u = 0.5 + local[rows, across] / (2 * halves[rows, across])
        v = 0.5 - local[rows, down] / (2 * halves[rows, down])
        outward = np.where(box == 0, -sign, sign)
        normal = turns[rows, :, axis] * outward[:, None]
        facing = np.clip(-(normal * directions).sum(1), 0.05, 1)
        footprint = distance / math.sqrt(camera.fx * camera.fy) / np.sqrt(facing)
        colour = self._atlas.look_up(face, np.stack((u, v), axis=1), footprint)
        light = np.full(len(rows), 0.42)
        for lamp in _LAMPS:
            way = lamp - points
            squared = (way * way).sum(1)
            cosine = (way * normal).sum(1) / np.sqrt(squared)
            light += 0.42 * (0.5 + 0.5 * cosine) / (0.6 + 0.12 * squared)
        # Corners of the room are darker: less of the room shines into them.
        corner = np.minimum(halves[rows, across] - np.abs(local[rows, across]),
                            halves[rows, down] - np.abs(local[rows, down]))
        light *= np.where(box == 0, 1 - 0.3 * np.exp(-corner / 0.2), 1)
        shaded = colour * np.minimum(light, 1.15).astype(np.float32)[:, None]
        return np.clip(shaded, 0, 255).reshape(camera.height, camera.width, 3)


def default_camera(width: int = 320, height: int = 240) -> Camera:
    """Give a pinhole camera with 63 degrees across."""
    focal = 0.8125 * width
    return Camera('PINHOLE', width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def map_trajectory(count: int) -> list[np.ndarray]:
    """Give `count` poses (4, 4), map from camera, of a drive that sees the whole room."""
    return [_drive(s) for s in _steps(count)]


def query_trajectory(count: int) -> list[np.ndarray]:
    """Give `count` poses (4, 4), map from camera, of another drive through the same room."""
    return [_drive(s, other=True) for s in _steps(count)]


def visit_trajectory(count: int) -> list[np.ndarray]:
    """Give `count` poses (4, 4), map from camera, of somebody who looks at `CHANGES` only."""
    poses = []
    for s in _steps(count):
        turn = 2 * math.pi * s
        position = np.array((0.75 + 0.4 * math.cos(2 * turn), -0.3 + 0.75 * math.sin(turn),
                             1.2 + 0.25 * math.sin(3 * turn)))
        share = 0.5 + 0.6 * math.sin(1.5 * turn)
        aim = share * np.array((2.7, 0.45, 1.1)) + (1 - share) * np.array((1.75, -1.45, 0.6))
        x, y, z = aim - position
        pose = np.eye(4)
        pose[:3, :3] = _looking(math.atan2(y, x), math.atan2(z, math.hypot(x, y)),
                                0.05 * math.sin(5 * turn))
        pose[:3, 3] = position
        poses.append(pose)
    return poses


def pictures_of(
    poses: Sequence[np.ndarray], camera: Camera, room: SyntheticRoom, name: str, *,
    supersample: int = 1,
) -> list[PosedImage]:
    """Take pictures of a room from poses (4, 4), map from camera; named `name`_0000.jpg and on."""
    return [PosedImage(f'{name}_{k:04d}.jpg', camera, pose,
                       pixels=room.render(camera, pose, supersample=supersample))
            for k, pose in enumerate(poses)]


def synthetic_images(
    split: str, count: int, camera: Camera, *, room: SyntheticRoom | None = None,
    depth: bool = False, supersample: int = 2,
) -> list[PosedImage]:
    """Take the pictures of a drive: of the map for 'train', of the queries for 'test'."""
    if split not in ('train', 'test'):
        raise DataError(f"split '{split}' is unknown; use 'train' or 'test'")
    room = room or SyntheticRoom()
    poses = map_trajectory(count) if split == 'train' else query_trajectory(count)
    images = []
    for index, pose in enumerate(poses):
        taken = room.render(camera, pose, depth, supersample=supersample)
        pixels, z = taken if depth else (taken, None)
        images.append(PosedImage(
            name=f'images/{split}_{index:04d}.jpg', camera=camera, map_from_camera=pose,
            pixels=pixels, depth=z, split=split))
    return images


def write_dataset(
    folder: Path, map_images: int, query_images: int, camera: Camera, *, depth: bool = False,
    room: SyntheticRoom | None = None, supersample: int = 2,
) -> Path:
    """Write both drives as JPEG pictures and `transforms.json`; gives the path of the latter."""
    folder = Path(folder)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    if depth:
        (folder / 'depth').mkdir(exist_ok=True)
    room = room or SyntheticRoom()
    frames = []
    for split, count in (('train', map_images), ('test', query_images)):
        for image in synthetic_images(
                split, count, camera, room=room, depth=depth, supersample=supersample):
            file = folder / image.name
            _write_picture(file, image.pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
            if depth:
                file = folder / 'depth' / f'{file.stem}.png'
                _write_picture(file, np.rint(image.depth / DEPTH_UNIT).astype(np.uint16))
                image = replace(image, depth_path=file, depth_scale=DEPTH_UNIT)
            frames.append(transforms_json.frame_entry(image, folder))
    transforms_json.write(folder / 'transforms.json', frames)
    return folder / 'transforms.json'


def _write_picture(path: Path, picture: np.ndarray, options: tuple[int, ...] = ()):
    if not cv2.imwrite(str(path), picture, options):
        raise DataError(f'{path} cannot be written; check the folder and the free space')


def _steps(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / max(count, 1)


def _drive(s: float, other: bool = False) -> np.ndarray:
    """Give the pose at the part s of a drive: three loops around the table, turning about.

    other: on a neighbouring line, with other height, heading, pitch and a little roll.
    """
    turn = 2 * math.pi * s
    angle = 3 * turn + (0.15 if other else 0.0)
    wide = 1 + 0.10 * math.sin(5 * turn + 0.4) - (0.05 if other else 0.0)
    position = (0.1 + 1.75 * wide * math.cos(angle), -0.15 + 0.95 * wide * math.sin(angle),
                1.2 + 0.34 * math.sin(2.3 * turn - 0.5) + (
                    0.06 * math.sin(7 * turn) if other else 0.0))
    heading = angle + 2 * turn + 0.3 * math.sin(4 * turn)
    pitch = -0.10 + 0.20 * math.sin(7.3 * turn)
    roll = 0.0
    if other:
        heading += 0.12 * math.sin(9 * turn + 1)
        pitch += 0.06 * math.cos(5 * turn)
        roll = 0.05 * math.sin(6 * turn + 2)
    pose = np.eye(4)
    pose[:3, :3] = _looking(heading, pitch, roll)
    pose[:3, 3] = position
    return pose


def _looking(heading: float, pitch: float, roll: float) -> np.ndarray:
    """Give map_from_camera's rotation (3, 3): heading about z from x, pitch up, roll clockwise."""
    forward = np.array((math.cos(heading) * math.cos(pitch), math.sin(heading) * math.cos(pitch),
                        math.sin(pitch)))
    right = np.array((math.sin(heading), -math.cos(heading), 0.0))
    down = np.cross(forward, right)
    across = math.cos(roll) * right + math.sin(roll) * down
    return np.stack((across, np.cross(forward, across), forward), axis=1)


def _about_z(yaw: float) -> np.ndarray:
    return np.array(((math.cos(yaw), -math.sin(yaw), 0), (math.sin(yaw), math.cos(yaw), 0),
                     (0, 0, 1.0)))


def _pixel_rays(camera: Camera, map_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the unit directions (H * W, 3) of all pixel centres, in the camera and in the map."""
    in_camera = camera.rays(camera.pixel_grid(dtype=torch.float64)).numpy()
    return in_camera, in_camera @ np.asarray(map_from_camera, np.float64)[:3, :3].T


def _planes(origin: np.ndarray, directions: np.ndarray, half: np.ndarray):
    """Give the distances (N, 3) at which rays pass the near and far planes of a box at 0."""
    with np.errstate(divide='ignore'):
        inverse = 1 / directions
    middle, reach = -origin * inverse, half * np.abs(inverse)
    return middle - reach, middle + reach


def _leave_box(origin: np.ndarray, directions: np.ndarray, half: np.ndarray):
    """Give the distance (N,) and side (N,) at which rays from inside leave a box."""
    _, far = _planes(origin, directions, half)
    axis = np.nanargmin(far, axis=1)
    rows = np.arange(len(directions))
    return far[rows, axis], 2 * axis + (directions[rows, axis] > 0)


def _enter_box(origin: np.ndarray, directions: np.ndarray, half: np.ndarray):
    """Give the distance (N,), infinite where missed, and side (N,) at which rays enter a box."""
    near, far = _planes(origin, directions, half)
    axis = near.argmax(axis=1)
    rows = np.arange(len(directions))
    distance = near[rows, axis]
    hit = (distance < far.min(axis=1)) & (distance > 0)
    return np.where(hit, distance, np.inf), 2 * axis + (directions[rows, axis] < 0)
