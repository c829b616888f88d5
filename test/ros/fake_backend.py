"""A localizer that reads the truth, and what it shall do with it, from the pixels of the image.

A picture made by `picture` carries map_from_camera as numbers, a serial number and a `Behaviour`;
so tests over real topics decide frame by frame what the localizer gives, and when.
"""

from contextlib import nullcontext
from enum import IntEnum
import threading
import time
from types import SimpleNamespace

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
import numpy as np
import torch

WIDTH, HEIGHT = 64, 48
CAMERA = Camera('PINHOLE', WIDTH, HEIGHT, 60.0, 60.0, 31.5, 23.5)
SHA256 = 'fa' * 32
_MAGIC = 4711.0


class Behaviour(IntEnum):
    GOOD = 0
    NO_POSE = 1
    RAISE = 2
    OUT_OF_MEMORY = 3
    SLOW = 4  # GOOD, but only after `delay` seconds
    WRONG = 5  # a pose 3 m away, with a confident covariance
    NAN = 6
    DEGENERATE = 7  # a covariance that is not positive definite
    GPU_LOST = 8


def picture(map_from_camera, behaviour=Behaviour.GOOD, serial=0):
    """Make the picture (48, 64, 3) of a camera at a pose."""
    numbers = np.concatenate([
        [_MAGIC, float(behaviour), float(serial)], np.asarray(map_from_camera).ravel()])
    pixels = np.random.default_rng(serial).integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    code = numbers.astype(np.float64).tobytes()
    pixels.reshape(-1)[:len(code)] = np.frombuffer(code, np.uint8)
    return pixels


def read_picture(pixels):
    """Give pose, behaviour and serial number; None for a picture that `picture` did not make."""
    numbers = np.frombuffer(pixels.reshape(-1)[:19 * 8].tobytes(), np.float64)
    if numbers[0] != _MAGIC:
        return None
    return numbers[3:].reshape(4, 4), Behaviour(int(numbers[1])), int(numbers[2])


class FakeBackend:
    """
    Truth plus noise.

    noise: metres (and radians) of standard deviation of `localize`; refined_noise: of `refine`.
    """

    def __init__(self, noise=0.02, refined_noise=0.002, delay=0.0, sha256=SHA256):
        self.noise, self.refined_noise, self.delay = noise, refined_noise, delay
        self.refine_delay = 0.0
        self.map_sha256 = sha256
        self.asked = []  # (serial, prior) of localize
        self.refined = []  # serial of refine
        self.hold = threading.Event()  # cleared: localize waits for it
        self.hold.set()
        self.refine_hold = threading.Event()  # the same for refine
        self.refine_hold.set()
        self.saved_memory = 0
        self.source = ''  # what estimates say that they were matched with
        self.clock = None
        poses = np.stack([np.eye(4)] * 3)
        poses[:, 0, 3] = (0.0, 2.0, 4.0)
        self.scene_map = SimpleNamespace(extent=10.0, reference_poses=poses, cameras=[CAMERA])

    def localize(self, image, prior=None):
        read = read_picture(image.rgb())
        if read is None:
            return failed('not a picture of this map')
        truth, behaviour, serial = read
        self.asked.append((serial, prior))
        self.hold.wait(30.0)
        if self.delay or behaviour == Behaviour.SLOW:
            with nullcontext() if self.clock is None else self.clock.stage('match'):
                time.sleep(self.delay or 0.3)
        if behaviour == Behaviour.NO_POSE:
            return failed('too few matches')
        if behaviour == Behaviour.RAISE:
            raise RuntimeError('injected failure')
        if behaviour == Behaviour.OUT_OF_MEMORY:
            raise torch.OutOfMemoryError('injected: CUDA out of memory')
        if behaviour == Behaviour.GPU_LOST:
            raise RuntimeError('CUDA error: unspecified launch failure')
        pose = noisy(truth, self.noise, serial)
        covariance = np.diag(np.full(6, max(self.noise, 1e-4) ** 2))
        if behaviour == Behaviour.WRONG:
            pose[:3, 3] += (3.0, 0.0, 0.0)
        if behaviour == Behaviour.NAN:
            pose[0, 3] = np.nan
        if behaviour == Behaviour.DEGENERATE:
            covariance[0, 0] = 0.0
        return PoseEstimate(pose, '', covariance, 100, 150, 0.8, source=self.source)

    def refine(self, image, map_from_camera, rounds=1):
        truth, _, serial = read_picture(image.rgb())
        self.refined.append(serial)
        self.refine_hold.wait(30.0)
        if self.refine_delay:
            time.sleep(self.refine_delay)
        covariance = np.diag(np.full(6, max(self.refined_noise, 1e-4) ** 2))
        return PoseEstimate(
            noisy(truth, self.refined_noise, serial + 100_000), '', covariance, 300, 400, 0.6)

    def save_memory(self):
        self.saved_memory += 1

    def similar_views(self, image, count):
        return self.scene_map.reference_poses[:count]

    def render(self, camera, map_from_camera):
        return np.full((camera.height, camera.width, 3), 90, np.uint8)


def noisy(pose, sigma, seed):
    delta = np.random.default_rng(seed).normal(0.0, sigma, 6)
    return perturb(torch.from_numpy(np.array(pose)), torch.from_numpy(delta)).numpy()


def failed(reason):
    return PoseEstimate(None, reason, None, 3, 80, float('nan'))


def loader(backend=None, log=None):
    """Give a `load` function for the nodes; a map folder named 'broken' cannot be loaded."""
    def load(map_folder, *, device, threads, sha256='', warm=True, memory_fraction=1.0,
             precision='map', localizer='map'):
        if log is not None:
            log.append(map_folder)
        if map_folder.name == 'broken':
            raise MapError(f'{map_folder} is damaged: sha256 differs')
        if map_folder.name == 'missing':
            raise MapError(f'there is no map folder {map_folder}; make one with `nerfmatch build`',
                           'folder')
        if map_folder.name == 'bug':
            raise RuntimeError('injected failure of loading')
        return backend if backend is not None else FakeBackend()
    return load
