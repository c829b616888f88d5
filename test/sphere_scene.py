"""Pictures and reference views of the sphere in closed form, for tests of matching on it."""

from analytic_field import SphereField
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.mapping.reference_views import render_references
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
from scipy.spatial.transform import Rotation
import torch

SCALE = 0.5
FRAME = SceneFrame(Similarity(SCALE, np.eye(3), np.zeros(3)), 0.01, 2.2)
CAMERA = Camera('PINHOLE', 80, 64, 64.0, 64.0, 39.5, 31.5)


def pose_at(x, y, z, yaw=0.0, pitch=0.0):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler('yx', [yaw, pitch]).as_matrix()
    pose[:3, 3] = x, y, z
    return pose


POSES = [pose_at(0.1 * k - 0.3, 0.05 * k, 0.04 * k, 0.25 * k - 0.5, 0.05 * k) for k in range(5)]


def sphere_images(field=None, poses=POSES, camera=CAMERA):
    """Take pictures of the sphere, coloured by position."""
    images = []
    for k, pose in enumerate(poses):
        view = render_view(field or SphereField(), FRAME, camera, torch.from_numpy(pose),
                           stride=1, colour=True)
        pixels = (view.colour * 255).round().byte().numpy().reshape(camera.height, -1, 3)
        images.append(PosedImage(f'{k}', camera, pose, pixels=pixels))
    return images


def sphere_references(images, field=None, feature_layer=2):
    return render_references(field or SphereField(), FRAME, images, feature_layer=feature_layer,
                             longest_side=80)
