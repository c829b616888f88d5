"""The localizer node with a localizer that reads the answer off the picture, for tests.

The first pixel decides: (255, ., .) cannot be localized, (254, ., .) raises, (253, ., .) takes
ten seconds; else the camera stands at (red, green, blue) / 100 metres, turned by 0.1 rad about z.
"""

from dataclasses import dataclass
import sys
import time
from types import SimpleNamespace

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros.localizer_node import LocalizerNode, main
import numpy as np


@dataclass(frozen=True)
class FakeEstimate:
    map_from_camera: np.ndarray | None
    reason: str = ''
    covariance: np.ndarray | None = None


__all__ = ['LocalizerNode', 'load']


class FakeLocalizer:
    scene_map = SimpleNamespace(
        cameras=[Camera('PINHOLE', 32, 24, 30, 30, 15.5, 11.5)], reference_poses=[np.eye(4)])

    def localize(self, image, prior=None):
        red, green, blue = image.rgb()[0, 0].tolist()
        assert image.rgb().shape == (image.camera.height, image.camera.width, 3)
        if image.name == 'warm-up':
            return FakeEstimate(None, 'noise')
        if red == 255:
            return FakeEstimate(None, 'only 3 matches')
        if red == 254:
            raise RuntimeError('a bug in the localizer')
        if red == 253:
            time.sleep(10)
        pose = np.eye(4)
        c, s = np.cos(0.1), np.sin(0.1)
        pose[:2, :2] = (c, -s), (s, c)
        pose[:3, 3] = np.array((red, green, blue)) / 100
        if prior is not None:
            pose[2, 3] = 100 + prior[0, 3]
        covariance = None if red == 1 else np.diag((1, 2, 3, 4, 5, 6)) * 1e-4
        return FakeEstimate(pose, '', covariance)


def load(folder, *, device, threads):
    print('loading', flush=True)
    if folder.name == 'slow':
        time.sleep(60)
    if folder.name != 'room':
        raise MapError(f'there is no map at {folder}; make one with `nerfmatch build`')
    return FakeLocalizer()


if __name__ == '__main__':
    sys.exit(main(load=load))
