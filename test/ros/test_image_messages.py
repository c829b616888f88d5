"""Image messages to pictures, and back."""

import array
import sys
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from nerfmatch_ros.ros import image_messages  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

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


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(CHANNELS)), st.integers(1, 40), st.integers(1, 30),
       st.integers(0, 9), st.integers(0, 99))
def test_every_encoding_and_padding_gives_the_same_colours(encoding, width, height, padding, seed):
    order = CHANNELS[encoding]
    channels = {'mono8': 1}.get(encoding, len(encoding) - 1)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    rgb = image_messages.image_to_rgb(image(pixels, encoding, padding))
    assert rgb.dtype == np.uint8 and rgb.flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(rgb, pixels[..., order])


def test_unpadded_rgb8_is_not_copied():
    message = image(np.zeros((4, 5, 3), np.uint8), 'rgb8')
    message.data[7] = 9
    rgb = image_messages.image_to_rgb(message)
    message.data[8] = 11
    assert rgb[0, 2, 1] == 9 and rgb[0, 2, 2] == 11


def test_read_only_data_is_read():
    for encoding, channels in (('rgb8', 3), ('bgr8', 3), ('mono8', 1)):
        message = SimpleNamespace(width=2, height=2, step=2 * channels, encoding=encoding,
                                  data=bytes(range(4 * channels)))
        assert image_messages.image_to_rgb(message).shape == (2, 2, 3)


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
        rgb = image_messages.image_to_rgb(message)
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
        image_messages.image_to_rgb(message)


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
    assert (image_messages.image_to_rgb(message) == 5).all()
    message.encoding = 'nonsense'
    with pytest.raises(DataError, match='unrecognised'):
        image_messages.image_to_rgb(message)
    message.encoding = 'bayer_rggb8'
    monkeypatch.setattr(FakeBridge, 'shape', (4, 5))
    with pytest.raises(DataError, match='cv_bridge gave'):
        image_messages.image_to_rgb(message)


def test_an_image_message_round_trip_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    message = image_messages.image_message(pixels[:, ::-1], STAMP, 'camera')
    np.testing.assert_array_equal(image_messages.image_to_rgb(message), pixels[:, ::-1])
    assert message.header.stamp == STAMP
