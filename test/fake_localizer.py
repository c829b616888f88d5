"""A localizer that answers from a table, for tests of what is around the real one."""

from types import SimpleNamespace

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
import numpy as np
import torch

CAMERA = Camera('PINHOLE', 32, 24, 30.0, 30.0, 15.5, 11.5)


def estimate(pose, std=0.01, reason=''):
    """Make an estimate with an isotropic covariance, or one that failed when the pose is None."""
    found = pose is not None
    return PoseEstimate(
        map_from_camera=pose, reason=reason, covariance=np.eye(6) * std ** 2 if found else None,
        inliers=50 if found else 3, matches=80, reprojection_error=0.7 if found else float('nan'))


def moved(pose, *delta):
    """Move a pose by x, y, z (metres) and rx, ry, rz (radians) along the map's axes."""
    padded = torch.zeros(6, dtype=torch.float64)
    padded[:len(delta)] = torch.tensor(delta, dtype=torch.float64)
    return perturb(torch.from_numpy(pose), padded).numpy()


def circle(count):
    """Give poses on a circle of 1 m radius, looking along z."""
    poses = []
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        pose = np.eye(4)
        pose[:3, 3] = np.cos(angle), np.sin(angle), 0.1 * np.sin(2 * angle)
        poses.append(pose)
    return poses


def queries(count, stamped=False):
    """Make images whose first pixel names them."""
    images = []
    for index, pose in enumerate(circle(count)):
        pixels = np.full((24, 32, 3), 128, np.uint8)
        pixels[0, 0] = index
        images.append(PosedImage(
            name=f'query-{index:03d}', camera=CAMERA, map_from_camera=pose, pixels=pixels,
            depth=np.ones((24, 32), np.float32), stamp=100.5 + index if stamped else None))
    return images


class FakeLocalizer:
    """Answers the image whose first pixel is i with answers[i]."""

    def __init__(self, answers):
        """Keep the answers; calls are recorded in `asked`."""
        self.answers = answers
        self.asked = []
        self.scene_map = SimpleNamespace(
            extent=3.0, reference_poses=np.array(circle(12)), cameras=[CAMERA])

    def localize(self, image, prior=None):
        """Look the answer up."""
        self.asked.append(image)
        return self.answers[int(image.rgb()[0, 0, 0])]

    localize_and_refine = localize

    def render(self, camera, map_from_camera):
        """Give a grey picture."""
        return np.full((camera.height, camera.width, 3), 90, np.uint8)
