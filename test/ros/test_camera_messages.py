"""CameraInfo messages to cameras, and back."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import pytest
import torch

pytest.importorskip('sensor_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from nerfmatch_ros.ros import camera_messages  # noqa: E402
from sensor_msgs.msg import CameraInfo  # noqa: E402

STAMP = Time(sec=1_403_715_273, nanosec=262_142_976)


def info(**changes):
    values = {
        'width': 640, 'height': 480, 'distortion_model': 'plumb_bob', 'd': [0.0] * 5,
        'k': [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0], **changes}
    return CameraInfo(**values)


CAMERAS = [
    Camera('PINHOLE', 640, 480, 500, 510, 320.5, 239),
    Camera('OPENCV', 640, 480, 500, 510, 320.5, 239, (0.1, -0.2, 0.001, 0.002)),
    Camera('OPENCV_FISHEYE', 640, 480, 300, 310, 320.5, 239, (0.01, -0.02, 0.001, 0.002)),
    Camera('RATIONAL', 640, 480, 500, 510, 320.5, 239,
           (0.1, -0.2, 0.001, 0.002, 0.03, 0.01, 0.02, 0.003)),
]


@pytest.mark.parametrize('camera', CAMERAS, ids=lambda camera: camera.model)
def test_a_camera_survives_the_way_through_a_message(camera):
    message = camera_messages.info_message(camera, STAMP, 'camera')
    assert message.header.stamp == STAMP and message.header.frame_id == 'camera'
    back = camera_messages.camera_from_info(message)
    points = torch.tensor([[0.3, -0.2, 1.0], [0.0, 0.0, 2.0], [-0.4, 0.3, 1.5]],
                          dtype=torch.float64)
    torch.testing.assert_close(back.project(points), camera.project(points), rtol=0, atol=1e-12)
    assert (back.width, back.height) == (camera.width, camera.height)


@pytest.mark.parametrize('model, d, expected', [
    ('', [], ('PINHOLE', ())), ('', [0.0] * 5, ('PINHOLE', ())),
    ('plumb_bob', [0.0] * 5, ('OPENCV', (0,) * 4)),
    ('plumb_bob', [0.1, 0.2, 0.3, 0.4], ('OPENCV', (0.1, 0.2, 0.3, 0.4))),
    ('plumb_bob', [0.1, 0.2, 0.3, 0.4, 0.5], ('RATIONAL', (0.1, 0.2, 0.3, 0.4, 0.5, 0, 0, 0))),
    ('rational_polynomial', [*map(float, range(8)), *[0.0] * 6],
     ('RATIONAL', (0, 1, 2, 3, 4, 5, 6, 7))),
    ('equidistant', [0.1, 0.2, 0.3, 0.4], ('OPENCV_FISHEYE', (0.1, 0.2, 0.3, 0.4))),
])
def test_each_distortion_model_has_its_camera_model(model, d, expected):
    camera = camera_messages.camera_from_info(info(distortion_model=model, d=d))
    assert (camera.model, camera.distortion) == expected


@pytest.mark.parametrize('changes, cause', [
    ({'k': [0.0] * 9}, 'not calibrated'),
    ({'k': [math.nan, *[1.0] * 8]}, 'not finite'),
    ({'k': [-500.0, 0, 320, 0, 500, 240, 0, 0, 1.0]}, 'positive fx'),
    ({'k': [500.0, 0, 320, 0, 0, 240, 0, 0, 1.0]}, 'positive fx'),
    ({'k': [500.0, 3, 320, 0, 500, 240, 0, 0, 1.0]}, 'skew of 3'),
    ({'k': [500.0, 0, 5000, 0, 500, 240, 0, 0, 1.0]}, 'far outside'),
    ({'width': 0}, '0 x 480'),
    ({'d': [0.1] * 3}, '3 coefficients'), ({'d': [math.inf] * 5}, 'not finite'),
    ({'d': [0.1] * 5, 'distortion_model': 'equidistant'}, "'equidistant' with 5"),
    ({'d': [0.1] * 9, 'distortion_model': 'rational_polynomial'}, 'with 9'),
    ({'d': [0.1] * 5, 'distortion_model': ''}, 'supported are'),
    ({'d': [0.1] * 5, 'distortion_model': 'fov'}, "'fov'.*supported are"),
])
def test_an_unusable_camera_info_raises_with_the_cause(changes, cause):
    if 'k' in changes:
        changes = {'k': [float(value) for value in changes['k']]}
    with pytest.raises(DataError, match=cause):
        camera_messages.camera_from_info(info(**changes))


numbers = st.integers(0, 2**32 - 1)
floats = st.floats(width=64)


@settings(deadline=None, max_examples=200)
@given(numbers, numbers, st.lists(floats, min_size=9, max_size=9), st.lists(floats, max_size=15),
       st.sampled_from(['plumb_bob', 'rational_polynomial', 'equidistant', '', 'fov']),
       st.lists(numbers, min_size=6, max_size=6))
def test_any_camera_info_gives_a_camera_or_a_data_error(width, height, k, d, model, crop):
    message = info(width=width, height=height, k=k, d=d, distortion_model=model)
    message.binning_x, message.binning_y = crop[:2]
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = crop[2:]
    try:
        camera = camera_messages.camera_from_info(message)
    except DataError:
        return
    assert camera.fx > 0 and math.isfinite(camera.cx)


def test_binning_and_region_keep_the_rays():
    full = camera_messages.camera_from_info(info())
    message = info(binning_x=2, binning_y=2)
    message.roi.x_offset, message.roi.y_offset = 100, 60
    message.roi.width, message.roi.height = 401, 300
    part = camera_messages.camera_from_info(message)
    assert (part.width, part.height) == (200, 150)
    # Pixel (0, 0) after binning covers pixels 100, 101 x 60, 61 of the sensor.
    torch.testing.assert_close(
        part.rays(torch.tensor([[0.0, 0.0], [199.0, 149.0]], dtype=torch.float64)),
        full.rays(torch.tensor([[100.5, 60.5], [498.5, 358.5]], dtype=torch.float64)))


def test_a_size_that_differs_by_a_whole_factor_is_scaled_and_others_are_refused():
    camera = camera_messages.camera_from_info(info())
    assert camera_messages.fit_to_image(camera, 640, 480) is camera
    for width, height in ((320, 240), (1280, 960)):
        fitted = camera_messages.fit_to_image(camera, width, height)
        assert (fitted.width, fitted.height) == (width, height)
        assert fitted.fx == camera.fx * width / 640
        assert fitted.cx == pytest.approx(320.5 * width / 640 - 0.5)
    for width, height in ((640, 360), (480, 640), (960, 720), (320, 480)):
        with pytest.raises(DataError, match='640 x 480'):
            camera_messages.fit_to_image(camera, width, height)


def test_camera_infos_are_compared_by_content():
    same, other = info(), info(d=[0.0, 0.0, 0.0, 0.0, 0.1])
    same.header.stamp = STAMP
    assert camera_messages.info_key(info()) == camera_messages.info_key(same)
    assert camera_messages.info_key(info()) != camera_messages.info_key(other)
    nan = {'k': [math.nan] * 9}
    assert camera_messages.info_key(info(**nan)) == camera_messages.info_key(info(**nan))
