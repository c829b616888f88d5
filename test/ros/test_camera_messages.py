"""CameraInfo messages to cameras, and back; rows 1 to 4 of the table of faults."""

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
from nerfmatch_ros.ros.camera_messages import CameraCache, MOST_FRAMES, MOST_REPORTS  # noqa: E402
from nerfmatch_ros.ros.image_messages import FrameRejected  # noqa: E402
from sensor_msgs.msg import CameraInfo  # noqa: E402

STAMP = Time(sec=1_403_715_273, nanosec=262_142_976)


def info(frame='camera', **changes):
    values = {
        'width': 640, 'height': 480, 'distortion_model': 'plumb_bob', 'd': [0.0] * 5,
        'k': [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0], **changes}
    message = CameraInfo(**{name: list(map(float, value)) if name in 'dkp' else value
                            for name, value in values.items()})
    message.header.frame_id = frame
    return message


def projection(fx=400.0, fy=410.0, cx=318.0, cy=241.0, **changes):
    """Give the twelve numbers of P, those at _INDEX changed."""
    values = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    for index, value in changes.items():
        values[int(index[1:])] = value
    return values


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
def test_row_3_each_distortion_model_has_its_camera_model(model, d, expected):
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
    ({'d': [0.0] * 15, 'distortion_model': 'rational_polynomial'}, '15 coefficients'),
    ({'d': [], 'distortion_model': 'plumb_bob'}, 'with 0'),
    ({'k': [500.0, 0, 320, 0, 500, 240, 0, 0, 2.0]}, '0 0 1'),
    ({'d': [0.1] * 5, 'distortion_model': ''}, 'supported are'),
    ({'d': [0.1] * 5, 'distortion_model': 'fov'}, "'fov'.*supported are"),
])
def test_row_2_and_3_an_unusable_camera_info_raises_with_the_cause(changes, cause):
    with pytest.raises(DataError, match=cause):
        camera_messages.camera_from_info(info(**changes))


numbers = st.integers(0, 2**32 - 1)
floats = st.floats(width=64)


@settings(deadline=None, max_examples=200)
@given(numbers, numbers, st.lists(floats, min_size=9, max_size=9), st.lists(floats, max_size=15),
       st.sampled_from(['plumb_bob', 'rational_polynomial', 'equidistant', '', 'fov']),
       st.lists(numbers, min_size=6, max_size=6), st.booleans())
def test_row_2_to_4_any_camera_info_gives_a_camera_or_a_data_error(
        width, height, k, d, model, crop, rectified):
    message = info(width=width, height=height, k=k, d=d, distortion_model=model)
    message.binning_x, message.binning_y = crop[:2]
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = crop[2:]
    message.p = [*k, 0.0, 1.0, 0.0]
    try:
        camera = camera_messages.camera_from_info(message, rectified=rectified)
    except DataError as error:
        assert len(str(error)) > 20
        return
    assert camera.fx > 0 and math.isfinite(camera.cx)


rectifications = st.lists(st.floats(1, 2000), min_size=2, max_size=2)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 4000), st.integers(1, 3000), rectifications, st.sampled_from(
    [('', 0), ('plumb_bob', 4), ('plumb_bob', 5), ('rational_polynomial', 8),
     ('rational_polynomial', 14), ('equidistant', 4)]), st.data())
def test_row_4_a_sensible_camera_info_with_any_region_that_fits_is_read(
        width, height, focal, model, data):
    d = data.draw(st.lists(st.floats(-1, 1), min_size=min(model[1], 8), max_size=min(model[1], 8)))
    message = info(width=width, height=height, distortion_model=model[0],
                   d=d + [0.0] * (model[1] - len(d)),
                   k=[focal[0], 0.0, width / 2, 0.0, focal[1], height / 2, 0.0, 0.0, 1.0])
    roi = message.roi
    roi.x_offset = data.draw(st.integers(0, width - 1))
    roi.y_offset = data.draw(st.integers(0, height - 1))
    roi.width = data.draw(st.integers(1, width - roi.x_offset))
    roi.height = data.draw(st.integers(1, height - roi.y_offset))
    message.binning_x = data.draw(st.integers(0, roi.width))
    message.binning_y = data.draw(st.integers(0, roi.height))
    camera = camera_messages.camera_from_info(message)
    assert camera.width == roi.width // max(1, message.binning_x)
    assert camera.height == roi.height // max(1, message.binning_y)


def test_rectified_pictures_are_described_by_the_projection_alone():
    message = info(p=projection(), d=[0.1] * 5, k=[0.0] * 9)
    message.roi.x_offset, message.roi.width, message.roi.height = 20, 600, 480
    camera = camera_messages.camera_from_info(message, rectified=True)
    assert camera == Camera('PINHOLE', 600, 480, 400, 410, 298, 241)


@pytest.mark.parametrize('p, cause', [
    ([0.0] * 12, 'P of zeros'), (projection(fx=-1.0), 'positive fx'),
    (projection(fy=0.0), 'positive fx'), (projection(_3=-40.0), 'second camera of a stereo pair'),
    (projection(_5=math.nan), 'not finite'), (projection(_1=2.0), 'skew of 2 pixels in P'),
    (projection(_4=1.0), '0 fy cy'), (projection(_10=0.0), '0 0 1'),
    (projection(cx=9000.0), 'far outside'),
])
def test_row_2_a_projection_that_is_none_raises_with_the_cause(p, cause):
    with pytest.raises(DataError, match=cause):
        camera_messages.camera_from_info(info(p=p), rectified=True)


def test_row_4_binning_and_region_keep_the_rays():
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


def test_row_4_a_size_that_differs_by_a_whole_factor_is_scaled_and_others_are_refused():
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
    for changes in ({'d': [0.0] * 6}, {'p': projection()}, {'width': 641}, {'binning_x': 2},
                    {'distortion_model': 'equidistant'}):
        assert camera_messages.info_key(info()) != camera_messages.info_key(info(**changes))
    nan = {'k': [math.nan] * 9}
    assert camera_messages.info_key(info(**nan)) == camera_messages.info_key(info(**nan))


def rejection(cache, *picture):
    """Give kind and text of the FrameRejected that the cache answers with."""
    with pytest.raises(FrameRejected) as caught:
        cache.get(*picture)
    return caught.value.kind, str(caught.value)


UNCALIBRATED = {'k': [0.0] * 9}


def test_row_1_without_a_camera_info_the_frame_is_named_and_it_recovers():
    cache = CameraCache()
    kind, text = rejection(cache, 'front', 640, 480)
    assert kind == 'no_camera_info' and "'front'" in text and 'none' in text
    assert cache.put(info(frame='rear')) is None
    kind, text = rejection(cache, 'front', 640, 480)
    assert kind == 'no_camera_info' and "'rear'" in text
    assert cache.put(info(frame='front')) is None
    assert cache.get('front', 640, 480).fx == 500


def test_frames_are_the_same_with_and_without_the_slash_of_ros_1():
    cache = CameraCache()
    cache.put(info(frame='/front'))
    assert cache.get('front', 640, 480) is cache.get('/front', 640, 480)
    assert list(cache.frames) == ['front']


def test_row_2_an_uncalibrated_camera_is_complained_about_once_and_its_frames_are_refused():
    cache = CameraCache()
    text = cache.put(info(**UNCALIBRATED))
    assert 'not calibrated' in text and "'camera'" in text and 'wait for a good one' in text
    assert [cache.put(info(**UNCALIBRATED)) for _ in range(100)] == [None] * 100
    kind, text = rejection(cache, 'camera', 640, 480)
    assert kind == 'bad_K' and 'not calibrated' in text
    assert cache.frames == {'camera': None} and cache.changes == 0
    assert cache.put(info()) is None
    assert cache.get('camera', 640, 480).fx == 500 and cache.changes == 1


def test_row_2_a_bad_camera_info_of_the_same_size_leaves_the_last_good_camera():
    cache = CameraCache()
    cache.put(info())
    good = cache.get('camera', 640, 480)
    assert 'the last good one is kept' in cache.put(info(**UNCALIBRATED))
    assert cache.get('camera', 640, 480) == good
    # A second bad one is measured against the good one, not against the first bad one.
    assert 'kept' in cache.put(info(d=[math.nan] * 5))
    assert cache.get('camera', 640, 480) == good
    assert 'wait for a good one' in cache.put(info(width=320, height=240, **UNCALIBRATED))
    assert rejection(cache, 'camera', 320, 240)[0] == 'bad_K'
    assert rejection(cache, 'camera', 640, 480)[0] == 'bad_K'


def test_row_2_a_driver_that_alternates_is_complained_about_once():
    cache = CameraCache()
    texts = [cache.put(message) for _ in range(50) for message in (info(), info(**UNCALIBRATED))]
    assert sum(text is not None for text in texts) == 1
    assert cache.get('camera', 640, 480).fx == 500


def test_row_3_an_unknown_distortion_is_complained_about_with_those_that_are_supported():
    text = CameraCache().put(info(distortion_model='equidistant', d=[0.1] * 5))
    for name in ("'equidistant' with 5", 'plumb_bob', 'rational_polynomial', "''"):
        assert name in text


def test_row_4_pictures_of_another_size_get_a_scaled_camera_or_are_refused():
    cache = CameraCache()
    cache.put(info())
    half = cache.get('camera', 320, 240)
    assert (half.width, half.fx) == (320, 250)
    assert cache.get('camera', 320, 240) is half  # with what it has computed so far
    kind, text = rejection(cache, 'camera', 640, 360)
    assert kind == 'bad_size' and '640 x 480' in text and '640 x 360' in text
    assert cache.get('camera', 640, 480).fx == 500


def test_row_4_the_resolution_may_change_in_the_middle_of_the_stream():
    cache = CameraCache()
    cache.put(info())
    assert cache.get('camera', 640, 480).fx == 500
    # The first pictures of the new size come before their camera_info, or after.
    assert rejection(cache, 'camera', 800, 800)[0] == 'bad_size'
    cache.put(info(width=800, height=800, k=[700.0, 0, 400, 0, 700.0, 400, 0, 0, 1]))
    assert cache.get('camera', 800, 800).fx == 700
    assert rejection(cache, 'camera', 640, 480)[0] == 'bad_size'
    assert cache.changes == 2


def test_row_4_a_region_and_binning_belong_to_the_camera_that_is_kept():
    cache = CameraCache()
    message = info(binning_x=2, binning_y=2)
    cache.put(message)
    assert cache.get('camera', 320, 240).fx == 250
    assert 'kept' in cache.put(info(binning_x=2, binning_y=2, **UNCALIBRATED))
    assert cache.get('camera', 320, 240).fx == 250


def test_a_cache_of_rectified_cameras_takes_their_projection():
    cache = CameraCache(rectified=True)
    assert 'P of zeros' in cache.put(info())
    assert cache.put(info(p=projection())) is None
    assert cache.get('camera', 640, 480) == Camera('PINHOLE', 640, 480, 400, 410, 318, 241)


def test_many_frames_and_many_faults_do_not_fill_the_memory_or_the_log():
    cache = CameraCache()
    texts = []
    for i in range(3 * MOST_REPORTS):
        texts.append(cache.put(info(frame=f'camera{i % (2 * MOST_FRAMES)}', k=[float(i)] * 9)))
    assert len(cache.frames) == MOST_FRAMES
    assert sum(text is not None for text in texts) == MOST_REPORTS
    cache.put(info(frame='good'))
    assert cache.get('good', 640, 480).fx == 500


messages = st.builds(
    info, frame=st.sampled_from(['a', '/a', 'b', '']), width=st.sampled_from([0, 320, 640]),
    k=st.sampled_from([[0.0] * 9, [500.0, 0, 160, 0, 500.0, 240, 0, 0, 1], [math.nan] * 9]),
    d=st.lists(st.sampled_from([0.0, 0.1, math.inf]), max_size=6),
    distortion_model=st.sampled_from(['', 'plumb_bob', 'equidistant', 'fov']))


@settings(deadline=None, max_examples=100)
@given(st.lists(messages, max_size=12), st.sampled_from(['a', 'b', '', 'c']),
       st.sampled_from([0, 160, 320, 640, 641]), st.sampled_from([0, 480]))
def test_row_1_to_4_after_any_camera_infos_there_is_a_camera_of_the_size_or_a_reason(
        infos, frame, width, height):
    cache = CameraCache()
    for message in infos:
        text = cache.put(message)
        assert text is None or 'cannot be used' in text
    try:
        camera = cache.get(frame, width, height)
    except FrameRejected as error:
        assert error.kind in {'no_camera_info', 'bad_K', 'bad_size'}
    else:
        assert (camera.width, camera.height) == (width, height)
        # It comes from a message of this frame.
        assert any(m.header.frame_id.lstrip('/') == frame and any(m.k) for m in infos)
