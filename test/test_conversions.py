"""Messages to pictures and cameras, and poses to messages."""

import array
import math
import sys
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
import torch

pytest.importorskip('sensor_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')
pytest.importorskip('geometry_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from nerfmatch_ros.ros import conversions  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402

STAMP = Time(sec=1_403_715_273, nanosec=262_142_976)
CHANNELS = {'rgb8': (0, 1, 2), 'bgr8': (2, 1, 0), 'rgba8': (0, 1, 2), 'bgra8': (2, 1, 0),
            'mono8': (0, 0, 0)}


def image(pixels, encoding, padding=0):
    """Make a message of pixels (H, W, channels) whose rows end with `padding` bytes."""
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + padding), 77, np.uint8)
    rows[:, :width * channels] = pixels.reshape(height, -1)
    return Image(height=height, width=width, encoding=encoding, step=rows.shape[1],
                 data=array.array('B', rows.tobytes()))


def info(**changes):
    values = {
        'width': 640, 'height': 480, 'distortion_model': 'plumb_bob', 'd': [0.0] * 5,
        'k': [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0], **changes}
    return CameraInfo(**values)


def random_pose(rng):
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    pose[:3, 0] *= np.linalg.det(pose[:3, :3])
    pose[:3, 3] = rng.standard_normal(3) * 10
    return pose


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(CHANNELS)), st.integers(1, 40), st.integers(1, 30),
       st.integers(0, 9), st.integers(0, 99))
def test_every_encoding_and_padding_gives_the_same_colours(encoding, width, height, padding, seed):
    order = CHANNELS[encoding]
    channels = {'mono8': 1}.get(encoding, len(encoding) - 1)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    rgb = conversions.image_to_rgb(image(pixels, encoding, padding))
    assert rgb.dtype == np.uint8 and rgb.flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(rgb, pixels[..., order])


def test_unpadded_rgb8_is_not_copied():
    message = image(np.zeros((4, 5, 3), np.uint8), 'rgb8')
    message.data[7] = 9
    rgb = conversions.image_to_rgb(message)
    message.data[8] = 11
    assert rgb[0, 2, 1] == 9 and rgb[0, 2, 2] == 11


def test_read_only_data_is_read():
    for encoding, channels in (('rgb8', 3), ('bgr8', 3), ('mono8', 1)):
        message = SimpleNamespace(width=2, height=2, step=2 * channels, encoding=encoding,
                                  data=bytes(range(4 * channels)))
        assert conversions.image_to_rgb(message).shape == (2, 2, 3)


numbers = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=300)
@given(numbers | st.integers(0, 8), numbers | st.integers(0, 8), numbers | st.integers(0, 32),
       st.sampled_from([*CHANNELS, '', 'RGB8', 'mono16', '32FC1', 'bayer_rggb8', '8UC3']),
       st.integers(0, 1), st.binary(max_size=256))
def test_a_malformed_image_raises_a_data_error_or_is_whole(
        width, height, step, encoding, big, data):
    message = Image(width=width, height=height, step=step, encoding=encoding, is_bigendian=big,
                    data=array.array('B', data))
    try:
        rgb = conversions.image_to_rgb(message)
    except DataError as error:
        assert len(str(error)) > 20
    else:
        assert rgb.shape == (height, width, 3)
        assert step * height == len(data)


@pytest.mark.parametrize('changes, cause', [
    ({'step': 14}, 'step'), ({'width': 6}, 'needs 18'), ({'height': 5}, 'truncated'),
    ({'height': 3}, 'step is wrong'), ({'width': 0}, 'empty'), ({'height': 0}, 'empty'),
    ({'width': 2**31, 'height': 2**31, 'step': 2**31}, 'truncated'),
    ({'encoding': 'mono16'}, "'mono16' is not supported; accepted are rgb8, bgr8"),
    ({'encoding': ''}, 'accepted are'),
])
def test_the_error_names_the_cause(changes, cause, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    message = image(np.zeros((4, 5, 3), np.uint8), 'rgb8')
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(DataError, match=cause):
        conversions.image_to_rgb(message)


class FakeBridge:
    shape = (4, 5, 3)

    def imgmsg_to_cv2(self, message, encoding):
        assert encoding == 'rgb8'
        if message.encoding != 'bayer_rggb8':
            raise RuntimeError('unrecognised')
        return np.full(self.shape, 5, np.uint8)


def test_other_encodings_go_through_cv_bridge_where_it_is(monkeypatch):
    bridge = SimpleNamespace(CvBridge=FakeBridge, CvBridgeError=TypeError)
    monkeypatch.setitem(sys.modules, 'cv_bridge', bridge)
    message = image(np.zeros((4, 5, 1), np.uint8), 'bayer_rggb8')
    assert (conversions.image_to_rgb(message) == 5).all()
    message.encoding = 'nonsense'
    with pytest.raises(DataError, match='unrecognised'):
        conversions.image_to_rgb(message)
    message.encoding = 'bayer_rggb8'
    monkeypatch.setattr(FakeBridge, 'shape', (4, 5))
    with pytest.raises(DataError, match='cv_bridge gave'):
        conversions.image_to_rgb(message)


CAMERAS = [
    Camera('PINHOLE', 640, 480, 500, 510, 320.5, 239),
    Camera('OPENCV', 640, 480, 500, 510, 320.5, 239, (0.1, -0.2, 0.001, 0.002)),
    Camera('OPENCV_FISHEYE', 640, 480, 300, 310, 320.5, 239, (0.01, -0.02, 0.001, 0.002)),
    Camera('RATIONAL', 640, 480, 500, 510, 320.5, 239,
           (0.1, -0.2, 0.001, 0.002, 0.03, 0.01, 0.02, 0.003)),
]


@pytest.mark.parametrize('camera', CAMERAS, ids=lambda camera: camera.model)
def test_a_camera_survives_the_way_through_a_message(camera):
    message = conversions.info_message(camera, STAMP, 'camera')
    assert message.header.stamp == STAMP and message.header.frame_id == 'camera'
    back = conversions.camera_from_info(message)
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
    camera = conversions.camera_from_info(info(distortion_model=model, d=d))
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
        conversions.camera_from_info(info(**changes))


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
        camera = conversions.camera_from_info(message)
    except DataError:
        return
    assert camera.fx > 0 and math.isfinite(camera.cx)


def test_binning_and_region_keep_the_rays():
    full = conversions.camera_from_info(info())
    message = info(binning_x=2, binning_y=2)
    message.roi.x_offset, message.roi.y_offset = 100, 60
    message.roi.width, message.roi.height = 401, 300
    part = conversions.camera_from_info(message)
    assert (part.width, part.height) == (200, 150)
    # Pixel (0, 0) after binning covers pixels 100, 101 x 60, 61 of the sensor.
    torch.testing.assert_close(
        part.rays(torch.tensor([[0.0, 0.0], [199.0, 149.0]], dtype=torch.float64)),
        full.rays(torch.tensor([[100.5, 60.5], [498.5, 358.5]], dtype=torch.float64)))


def test_a_size_that_differs_by_a_whole_factor_is_scaled_and_others_are_refused():
    camera = conversions.camera_from_info(info())
    assert conversions.fit_to_image(camera, 640, 480) is camera
    for width, height in ((320, 240), (1280, 960)):
        fitted = conversions.fit_to_image(camera, width, height)
        assert (fitted.width, fitted.height) == (width, height)
        assert fitted.fx == camera.fx * width / 640
        assert fitted.cx == pytest.approx(320.5 * width / 640 - 0.5)
    for width, height in ((640, 360), (480, 640), (960, 720), (320, 480)):
        with pytest.raises(DataError, match='640 x 480'):
            conversions.fit_to_image(camera, width, height)


def test_camera_infos_are_compared_by_content():
    same, other = info(), info(d=[0.0, 0.0, 0.0, 0.0, 0.1])
    same.header.stamp = STAMP
    assert conversions.info_key(info()) == conversions.info_key(same)
    assert conversions.info_key(info()) != conversions.info_key(other)
    nan = {'k': [math.nan] * 9}
    assert conversions.info_key(info(**nan)) == conversions.info_key(info(**nan))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_a_pose_survives_the_way_through_a_message(seed):
    pose = random_pose(np.random.default_rng(seed))
    message = conversions.pose_stamped(pose, STAMP, 'map')
    assert message.header.stamp == STAMP and message.header.frame_id == 'map'
    q = message.pose.orientation
    assert math.hypot(q.x, q.y, q.z, q.w) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(conversions.matrix_from_pose(message.pose), pose, atol=1e-12)
    transform = conversions.transform_stamped(pose, STAMP, 'map', 'camera')
    assert (transform.header, transform.child_frame_id) == (message.header, 'camera')
    assert transform.transform.rotation == message.pose.orientation
    assert transform.transform.translation.y == message.pose.position.y


def test_a_pose_that_is_none_raises():
    for broken in (np.full((4, 4), np.nan), np.eye(3), 2 * np.eye(4), np.diag((1, 1, -1, 1.0))):
        with pytest.raises(DataError, match='pose'):
            conversions.pose_stamped(broken, STAMP, 'map')


def test_covariance_is_row_major_and_symmetric():
    covariance = np.arange(36.0).reshape(6, 6)
    message = conversions.pose_with_covariance(np.eye(4), covariance, STAMP, 'map')
    sent = np.array(message.pose.covariance).reshape(6, 6)
    np.testing.assert_array_equal(sent, (covariance + covariance.T) / 2)
    with pytest.raises(DataError, match='6 x 6'):
        conversions.pose_with_covariance(np.eye(4), np.full((6, 6), np.nan), STAMP, 'map')


def test_an_image_message_round_trip_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    message = conversions.image_message(pixels[:, ::-1], STAMP, 'camera')
    np.testing.assert_array_equal(conversions.image_to_rgb(message), pixels[:, ::-1])
    assert conversions.stamp_ns(message.header) == 1_403_715_273_262_142_976
