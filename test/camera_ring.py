"""Features of a synthetic scene: random points seen by cameras on a way, without pictures."""

import math

from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.features import Features
import numpy as np
from scipy.spatial.transform import Rotation
import torch

CAMERA = Camera('PINHOLE', 640, 480, 500, 500, 319.5, 239.5)
FISHEYE = Camera('OPENCV_FISHEYE', 640, 480, 200, 200, 319.5, 239.5, (.02, -.01, .003, -.001))


def look(centre, forward):
    """Make map_from_camera at a place, looking along a direction, map z up."""
    z = np.asarray(forward, float) / np.linalg.norm(forward)
    x = np.cross(z, (0, 0, 1))
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3, :3] = np.stack((x, np.cross(z, x), z), axis=-1)
    pose[:3, 3] = centre
    return pose


def ring(count, radius=3.0, turns=1.0, outwards=True):
    """Give poses (K, 4, 4) on a circle with a little height, looking away from its middle."""
    poses = []
    for angle in np.linspace(0, 2 * math.pi * turns, count, endpoint=turns != 1.0):
        out = np.array((math.cos(angle), math.sin(angle), 0))
        poses.append(look(radius * out + (0, 0, 0.3 * math.sin(3 * angle)),
                          out if outwards else -out))
    return np.array(poses)


def wall_points(count, radius, rng):
    """Give points (N, 3) on a round wall, of uneven radius."""
    angle = rng.uniform(0, 2 * math.pi, count)
    radius = radius * rng.uniform(0.8, 1.2, count)
    return np.stack((radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-2, 2, count)),
                    axis=-1)


def looks(count, rng):
    """Give descriptors (N, 128) that are all different."""
    return np.abs(rng.normal(size=(count, 128)))


def see(poses, points, camera, rng, *, noise=0.5, wrong=0.05, most=400, descriptors=None):
    """Give the features of each view: points with their descriptors, some of them mixed up.

    noise: pixels; wrong: share of keypoints that lie anywhere; most: keypoints of a view;
    descriptors: (N, 128) of the points, else all different.
    """
    if descriptors is None:
        descriptors = looks(len(points), rng)
    views = []
    for pose in poses:
        inside = torch.from_numpy((points - pose[:3, 3]) @ pose[:3, :3])
        seen = np.flatnonzero(camera.sees(inside).numpy())
        seen = rng.permutation(seen)[:most]
        pixels = camera.project(inside[seen]).numpy() + noise * rng.normal(size=(len(seen), 2))
        astray = rng.random(len(seen)) < wrong
        pixels[astray] = rng.uniform((0, 0), (camera.width, camera.height), (astray.sum(), 2))
        rays = camera.rays(torch.from_numpy(pixels)).numpy()
        beside = camera.rays(torch.from_numpy(pixels + 0.5)).numpy()
        shown = descriptors[seen] + 0.1 * rng.normal(size=(len(seen), 128))
        shown = shown / np.linalg.norm(shown, axis=-1, keepdims=True)
        views.append(Features(
            pixels, rays, np.linalg.norm(rays - beside, axis=-1) * math.sqrt(2),
            torch.from_numpy(shown.astype(np.float32)), np.arange(len(seen))))
    return views


def turned(rng, radians, count):
    """Give rotations (K, 3, 3) by normal angles about each axis."""
    return Rotation.from_rotvec(radians * rng.normal(size=(count, 3))).as_matrix()


def roughened(poses, rng, metres, radians):
    """Give poses with normal errors of centre and rotation."""
    rough = poses.copy()
    rough[:, :3, 3] += metres * rng.normal(size=(len(poses), 3))
    rough[:, :3, :3] = turned(rng, radians, len(poses)) @ rough[:, :3, :3]
    return rough


def summed(poses, motion_error):
    """Give poses as dead reckoning has them: each motion wrong by the same motion (4, 4)."""
    motions = np.linalg.inv(poses[:-1]) @ poses[1:]
    way = [poses[0]]
    for motion in motions @ motion_error:
        way.append(way[-1] @ motion)
    return np.array(way)


def errors(poses, truth):
    """Give distances (K,), metres, and angles (K,), radians."""
    metres = np.linalg.norm(poses[:, :3, 3] - truth[:, :3, 3], axis=-1)
    turn = Rotation.from_matrix(truth[:, :3, :3].transpose(0, 2, 1) @ poses[:, :3, :3])
    return metres, turn.magnitude()
