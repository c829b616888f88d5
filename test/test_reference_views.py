"""Reference views of a field in closed form."""

from analytic_field import SphereField
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.mapping.reference_views import render_references
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import pytest
import torch

FRAME = SceneFrame(Similarity(0.5, np.eye(3), np.zeros(3)), 0.01, 2.2)
CAMERAS = [Camera('PINHOLE', 80, 60, 70.0, 70.0, 39.5, 29.5),
           Camera('OPENCV', 160, 120, 130.0, 130.0, 80.0, 60.0, (-0.2, 0.03, 0.0, 0.001))]


def some_images():
    images = []
    for k, camera in enumerate(CAMERAS):
        pose = np.eye(4)
        pose[:3, 3] = 0.2 * k, 0.1, -0.3
        images.append(PosedImage(f'{k}', camera, pose, pixels=np.zeros(
            (camera.height, camera.width, 3), np.uint8)))
    return images


@pytest.mark.parametrize('layer', [None, 2])
def test_views_hold_the_surface_in_their_cells(layer):
    done = []
    views = render_references(SphereField(), FRAME, some_images(), feature_layer=layer,
                              longest_side=160, report=done.append)
    assert [view.name for view in views] == ['0', '1'] and done == [0.5, 1.0]
    for view in views:
        camera = view.view.camera
        rows, columns = camera.height // 8, camera.width // 8
        assert camera.model == 'PINHOLE' and len(view.points) == rows * columns
        assert view.depth.shape == (2 * rows, 2 * columns)
        assert (view.points.norm(dim=-1) - 2).abs().max() < 0.02  # a sphere of radius 1 / 0.5
        in_camera = transform_points(inverse(view.map_from_camera), view.points.double())
        expected = camera.pixel_grid(8, dtype=torch.float64)
        assert (camera.project(in_camera) - expected).abs().max() < 0.01
        if layer is None:
            assert view.features is None
        else:
            assert view.features.dtype == torch.float16
            torch.testing.assert_close(view.features[:, :3].float(), FRAME.to_scene(view.points),
                                       atol=1e-3, rtol=0)
            assert (view.features[:, 3] == layer).all()


def test_all_views_have_one_working_focal_length():
    views = render_references(SphereField(), FRAME, some_images(), feature_layer=None,
                              longest_side=120)
    focal = [view.view.camera.fx for view in views]
    assert focal[0] == pytest.approx(focal[1], rel=0.03)


def test_rays_that_meet_nothing_give_no_points():
    views = render_references(SphereField(density=0.1), FRAME, some_images(), feature_layer=1,
                              longest_side=160)
    for view in views:
        assert len(view.points) == len(view.features) == 0
        assert view.depth.isfinite().all()
