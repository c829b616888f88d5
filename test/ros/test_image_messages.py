"""Image messages to pictures, and back; rows 5, 6, 7, 23 and 27 of the table of faults."""

import array
import struct
import sys
import tracemalloc
from types import SimpleNamespace
import zlib

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('sensor_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from nerfmatch_ros.ros.image_messages import (  # noqa: E402
    compressed_to_rgb,
    ENCODINGS,
    FrameRejected,
    image_message,
    image_to_rgb,
)
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

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
    rgb = image_to_rgb(image(pixels, encoding, padding))
    assert rgb.dtype == np.uint8 and rgb.flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(rgb, pixels[..., order])


def test_unpadded_rgb8_is_not_copied():
    message = image(np.zeros((4, 5, 3), np.uint8), 'rgb8')
    message.data[7] = 9
    rgb = image_to_rgb(message)
    message.data[8] = 11
    assert rgb[0, 2, 1] == 9 and rgb[0, 2, 2] == 11


def test_read_only_data_is_read():
    for encoding, channels in (('rgb8', 3), ('bgr8', 3), ('mono8', 1)):
        message = SimpleNamespace(width=2, height=2, step=2 * channels, encoding=encoding,
                                  data=bytes(range(4 * channels)))
        assert image_to_rgb(message).shape == (2, 2, 3)


def smooth_picture(height=24, width=32):
    """Make a colourful picture that has no edges, which sharing of colours would blur."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack((60 + 4 * columns, 200 - 3 * rows, 30 + 2 * rows + 3 * columns),
                    axis=-1).astype(np.uint8)


def mosaic_of(rgb, pattern):
    """Sample a picture as a sensor with the colours `pattern` on its first 2 x 2 pixels does."""
    mosaic = np.zeros(rgb.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        part = np.s_[i // 2::2, i % 2::2]
        mosaic[part] = rgb[(*part, 'rgb'.index(colour))]
    return mosaic


def wide(samples, big):
    """Make 16-bit samples, bytes on the last axis, of 8-bit ones; the lower byte is noise."""
    noise = np.random.default_rng(0).integers(0, 256, samples.shape, np.uint8)
    pair = (samples, noise) if big else (noise, samples)
    return np.stack(pair, axis=-1).reshape(*samples.shape[:-1], -1)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_row_5_a_mosaic_comes_back_as_the_picture_it_was_made_of(pattern):
    rgb = smooth_picture()
    mosaic = mosaic_of(rgb, pattern)
    back = image_to_rgb(image(mosaic[..., None], f'bayer_{pattern}8', padding=3))
    # The border is extrapolated; inside, means of neighbours give a linear picture back.
    np.testing.assert_allclose(back[1:-1, 1:-1].astype(int), rgb[1:-1, 1:-1], atol=1)
    for big in (False, True):
        message = image(wide(mosaic[..., None], big), f'bayer_{pattern}16')
        message.width, message.is_bigendian = mosaic.shape[1], big
        np.testing.assert_array_equal(image_to_rgb(message), back)


@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
@pytest.mark.parametrize('big', [False, True])
def test_row_5_and_6_of_16_bits_the_upper_8_are_kept_in_either_order_of_bytes(encoding, big):
    gray = np.random.default_rng(1).integers(0, 256, (6, 7, 1), np.uint8)
    message = image(wide(gray, big), encoding, padding=5)
    message.width, message.is_bigendian = 7, big
    np.testing.assert_array_equal(image_to_rgb(message), gray.repeat(3, axis=2))


def test_row_5_encodings_without_names_of_channels_are_as_opencv_means_them():
    pixels = np.random.default_rng(2).integers(0, 256, (4, 5, 4), np.uint8)
    np.testing.assert_array_equal(
        image_to_rgb(image(pixels[..., :3], '8UC3')), pixels[..., 2::-1])
    np.testing.assert_array_equal(image_to_rgb(image(pixels, '8UC4')), pixels[..., 2::-1])
    np.testing.assert_array_equal(
        image_to_rgb(image(pixels[..., :1], '8UC1')), pixels[..., :1].repeat(3, axis=2))


def luma_and_chroma(rgb):
    """Give Y, U, V of BT.601 with its reduced range, as cameras send them."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    return (16 + 0.257 * r + 0.504 * g + 0.098 * b, 128 - 0.148 * r - 0.291 * g + 0.439 * b,
            128 + 0.439 * r - 0.368 * g - 0.071 * b)


@pytest.mark.parametrize('encoding, order', [
    ('uyvy', 'uyvy'), ('yuv422', 'uyvy'), ('yuyv', 'yuyv'), ('yuv422_yuy2', 'yuyv')])
def test_row_5_yuv_with_colours_shared_by_two_pixels_comes_back(encoding, order):
    rgb = smooth_picture().repeat(2, axis=1)
    y, u, v = luma_and_chroma(rgb)
    packed = np.zeros((*y.shape, 2))
    packed[..., order.index('y')] = y
    packed[:, 0::2, 1 - order.index('y')] = u[:, ::2]
    packed[:, 1::2, 1 - order.index('y')] = v[:, ::2]
    back = image_to_rgb(image(np.rint(packed).astype(np.uint8), encoding, padding=4))
    np.testing.assert_allclose(back.astype(int), rgb, atol=3)


@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
def test_row_5_yuv_with_a_plane_of_colours_comes_back(encoding):
    rgb = smooth_picture().repeat(2, axis=0).repeat(2, axis=1)
    y, u, v = luma_and_chroma(rgb)
    colours = (u, v) if encoding == 'nv12' else (v, u)
    plane = np.stack([c[::2, ::2] for c in colours], axis=-1).reshape(-1, y.shape[1])
    message = image(np.rint(np.vstack((y, plane))).astype(np.uint8)[..., None], encoding, 2)
    message.height = rgb.shape[0]
    np.testing.assert_allclose(image_to_rgb(message).astype(int), rgb, atol=3)


def rejection(convert, message, **options):
    """Give kind and text of the FrameRejected that the message causes."""
    with pytest.raises(FrameRejected) as caught:
        convert(message, **options)
    return caught.value.kind, str(caught.value)


def small(**changes):
    """Make an rgb8 image of 5 x 4 pixels with some fields changed."""
    message = image(np.zeros((4, 5, 3), np.uint8), 'rgb8')
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize('changes, kind, cause', [
    ({'encoding': 'fancy'}, 'bad_encoding', "'fancy' is not supported; accepted are rgb8, bgr8"),
    ({'encoding': ''}, 'bad_encoding', 'accepted are'),
    ({'encoding': '32FC1'}, 'bad_encoding', 'accepted are'),
    ({'encoding': 'uyvy'}, 'bad_size', "5 x 4 pixels cannot be 'uyvy'"),
])
def test_row_5_an_encoding_that_cannot_be_read_is_refused_with_those_that_can(
        changes, kind, cause, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    got, text = rejection(image_to_rgb, small(**changes))
    assert got == kind and cause in text


@pytest.mark.parametrize('changes, kind, cause', [
    ({'height': 5}, 'truncated', '60 bytes, but its header states 5 rows of 15'),
    ({'step': 16}, 'truncated', 'truncated or its step'),
    ({'data': array.array('B', bytes(59))}, 'truncated', '59 bytes'),
    ({'data': array.array('B', bytes(61))}, 'bad_step', 'more than the 4 rows'),
    ({'height': 3}, 'bad_step', 'more than the 3 rows'),
    ({'step': 14, 'data': array.array('B', bytes(56))}, 'bad_step', 'needs 15'),
    ({'step': 0}, 'bad_step', 'more than the 4 rows of 0'),
    ({'step': 0, 'data': array.array('B')}, 'empty', 'no data'),
    ({'width': 6}, 'bad_step', 'needs 18'),
    ({'width': 0}, 'empty', '0 x 4'), ({'height': 0}, 'empty', '5 x 0'),
    ({'data': array.array('B')}, 'empty', 'no data'),
    ({'width': 2**31, 'height': 2**31, 'step': 2**31}, 'bad_size', 'larger'),
    ({'width': 2**32 - 1, 'height': 1, 'step': 2**32 - 1}, 'bad_size', 'larger'),
    ({'height': 2**24, 'step': 2**32 - 1}, 'bad_size', 'larger'),
    ({'step': 2**32 - 1}, 'truncated', '4294967295'),
    # In 32 bits these products are the 60 bytes that are there.
    ({'height': 4, 'step': 2**30 + 15}, 'truncated', 'truncated'),
])
def test_row_6_sizes_that_contradict_one_another_are_refused(changes, kind, cause):
    got, text = rejection(image_to_rgb, small(**changes))
    assert got == kind and cause in text


numbers = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=400)
@given(numbers | st.integers(0, 8), numbers | st.integers(0, 8), numbers | st.integers(0, 32),
       st.sampled_from([*ENCODINGS, '', 'RGB8', '32FC1', 'nv24']) | st.text(max_size=12),
       st.integers(0, 255), st.binary(max_size=256))
def test_row_6_whatever_an_image_states_it_is_refused_or_whole(
        width, height, step, encoding, big, data):
    message = Image(width=width, height=height, step=step, encoding=encoding.replace('\0', ''),
                    is_bigendian=big, data=array.array('B', data))
    try:
        rgb = image_to_rgb(message)
    except FrameRejected as error:
        assert len(str(error)) > 20
        assert error.kind in {'empty', 'truncated', 'bad_step', 'bad_encoding', 'bad_size'}
    else:
        assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8
        rows = height * 3 // 2 if encoding in ('nv12', 'nv21') else height
        assert step * rows == len(data)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(ENCODINGS)), st.integers(1, 5), st.integers(1, 5), st.integers(0, 7),
       st.integers(-1, 1), st.booleans())
def test_row_6_images_of_any_small_size_are_whole_and_one_byte_off_is_refused(
        encoding, across, down, padding, wrong, big):
    layout = ENCODINGS[encoding]
    width, height = across * layout.block[0], down * layout.block[1]
    step = width * layout.channels * layout.sample_bytes + padding
    rows = height * layout.planes[0] // layout.planes[1]
    message = Image(width=width, height=height, step=step, encoding=encoding, is_bigendian=big,
                    data=array.array('B', bytes(step * rows + wrong)))
    if wrong:
        kind, _ = rejection(image_to_rgb, message)
        # The one byte of the smallest image, taken away, leaves none.
        assert kind == ('bad_step' if wrong > 0 else 'truncated' if message.data else 'empty')
    else:
        assert image_to_rgb(message).shape == (height, width, 3)


@pytest.mark.parametrize('width, height, kind', [
    # Nothing but the data tells a whole image from one that only claims to be, so that the ones
    # that would be accepted are truncated here.
    (7680, 4320, 'truncated'), (8192, 8192, 'truncated'), (8192, 8193, 'bad_size'),
    (2**32 - 1, 2**32 - 1, 'bad_size')])
def test_row_27_pictures_of_8k_are_accepted_and_larger_ones_cost_no_memory(width, height, kind):
    message = small(width=width, height=height, step=min(3 * width, 2**32 - 1))
    tracemalloc.start()
    got, _ = rejection(image_to_rgb, message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == kind and peak < 1_000_000


def test_row_27_the_bound_can_be_lowered():
    assert image_to_rgb(small(), max_pixels=20).shape == (4, 5, 3)
    assert rejection(image_to_rgb, small(), max_pixels=19)[0] == 'bad_size'
    message = compressed(small_png(), 'png')
    assert compressed_to_rgb(message, max_pixels=24 * 32).shape == (24, 32, 3)
    assert rejection(compressed_to_rgb, message, max_pixels=24 * 32 - 1)[0] == 'bad_size'


class FakeBridge:
    shape = (4, 5, 3)

    def imgmsg_to_cv2(self, message, encoding):
        assert encoding == 'rgb8'
        if message.encoding != 'special':
            raise cv2.error('unrecognised')
        return np.full(self.shape, 5, np.uint8)


def test_row_5_other_encodings_go_through_cv_bridge_where_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', SimpleNamespace(CvBridge=FakeBridge))
    assert (image_to_rgb(small(encoding='special')) == 5).all()
    kind, text = rejection(image_to_rgb, small(encoding='nonsense'))
    assert kind == 'bad_encoding' and 'unrecognised' in text
    # cv_bridge multiplies in 32 bits, so it is given only what holds together.
    assert rejection(image_to_rgb, small(encoding='special', step=2**30 + 15))[0] == 'truncated'
    monkeypatch.setattr(FakeBridge, 'shape', (4, 5))
    kind, text = rejection(image_to_rgb, small(encoding='special'))
    assert kind == 'bad_encoding' and 'cv_bridge gave' in text


def compressed(content, form):
    return CompressedImage(format=form, data=array.array('B', bytes(content)))


def small_jpeg():
    options = [cv2.IMWRITE_JPEG_QUALITY, 100]
    return cv2.imencode('.jpg', smooth_picture()[..., ::-1], options)[1].tobytes()


def small_png(pixels=None):
    return cv2.imencode('.png', smooth_picture()[..., ::-1] if pixels is None else pixels)[1]


@pytest.mark.parametrize('form', ['png', 'rgb8; png compressed bgr8', '', 'jpeg'])
def test_a_png_comes_back_exactly_whatever_its_message_calls_it(form):
    rgb = smooth_picture()
    np.testing.assert_array_equal(compressed_to_rgb(compressed(small_png(), form)), rgb)
    sixteen = rgb[..., ::-1].astype(np.uint16) << 8 | 77
    np.testing.assert_array_equal(compressed_to_rgb(compressed(small_png(sixteen), form)), rgb)
    with_alpha = np.dstack((rgb[..., ::-1], rgb[..., 0]))
    np.testing.assert_array_equal(compressed_to_rgb(compressed(small_png(with_alpha), form)), rgb)
    gray = compressed_to_rgb(compressed(small_png(rgb[..., 0]), 'mono8; png compressed '))
    np.testing.assert_array_equal(gray, rgb[..., :1].repeat(3, axis=2))


def test_a_jpeg_comes_back_nearly_also_with_bytes_behind_its_end():
    for content in (small_jpeg(), small_jpeg() + bytes(500)):
        back = compressed_to_rgb(compressed(content, 'rgb8; jpeg compressed bgr8'))
        np.testing.assert_allclose(back.astype(int), smooth_picture(), atol=6)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_a_compressed_mosaic_comes_back_as_the_picture_it_was_made_of(pattern):
    rgb = smooth_picture()
    content = small_png(mosaic_of(rgb, pattern))
    back = compressed_to_rgb(compressed(content, f'bayer_{pattern}8; png compressed '))
    np.testing.assert_allclose(back[1:-1, 1:-1].astype(int), rgb[1:-1, 1:-1], atol=1)
    # One that was turned into colours before it was compressed is none any more.
    made = compressed(small_png(), f'bayer_{pattern}8; png compressed bgr8')
    np.testing.assert_array_equal(compressed_to_rgb(made), rgb)


def test_the_orientation_that_a_camera_notes_in_a_jpeg_does_not_turn_the_picture():
    # An EXIF segment that says: rotate by 90 degrees.
    note = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    segment = b'\xff\xe1' + struct.pack('>H', len(note) + 2) + note
    content = small_jpeg()
    content = content[:2] + segment + content[2:]
    assert cv2.imdecode(np.frombuffer(content, np.uint8), 1).shape[:2] == (32, 24)
    assert compressed_to_rgb(compressed(content, 'jpeg')).shape == (24, 32, 3)


def huge_png(width, height):
    """Make a small file whose header, with a right check sum, states a huge picture."""
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack(
            '>I', zlib.crc32(name + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(
        b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(
        b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


def huge_jpeg(width, height):
    """Make a small file whose header states a huge picture."""
    content = small_jpeg()
    at = content.index(b'\xff\xc0') + 5
    return content[:at] + struct.pack('>HH', height, width) + content[at + 4:]


@pytest.mark.parametrize('content', [
    huge_png(60_000, 60_000), huge_png(2**31 - 1, 2**31 - 1), huge_png(2**31 - 1, 1),
    huge_png(8193, 8192), huge_jpeg(65_500, 65_500), huge_jpeg(65_535, 1025),
    b'\xff\xd8\xff\xff\xff' + huge_jpeg(65_500, 65_500)[3:],
], ids=range(7))
def test_row_7_and_23_a_huge_picture_in_a_small_file_never_reaches_the_decoder(
        content, monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('the decoder was called'))
    kind, text = rejection(compressed_to_rgb, compressed(content, 'jpeg'))
    assert kind == 'bad_size' and 'larger than' in text


def test_row_23_a_second_size_that_only_the_decoder_would_find_does_not_help(monkeypatch):
    # A decoder skips the bare marker D0 and reads the huge frame behind it; who takes the two
    # bytes after it for a length finds the small frame.
    frame = small_jpeg()[2:]
    hidden = b'\xff\xd0' + struct.pack('>H', len(huge_jpeg(65_500, 65_500)))
    content = b'\xff\xd8' + hidden + huge_jpeg(65_500, 65_500)[2:] + frame
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: pytest.fail('the decoder was called'))
    assert rejection(compressed_to_rgb, compressed(content, 'jpeg'))[0] == 'undecodable'


@pytest.mark.parametrize('content, form, kind', [
    (b'', 'jpeg', 'empty'), (b'\0' * 5000, 'jpeg', 'undecodable'), (b'GIF89a', '', 'undecodable'),
    (b'\xff\xd8', 'jpeg', 'undecodable'), (b'\xff\xd8\xff\xd9', 'jpeg', 'undecodable'),
    (small_jpeg()[:-2], 'jpeg', 'truncated'), (small_jpeg()[:400], 'jpeg', 'undecodable'),
    (small_jpeg()[:20], 'jpeg', 'undecodable'), (huge_jpeg(0, 0), 'jpeg', 'empty'),
    (huge_png(0, 5), 'png', 'empty'), (huge_png(50, 5000), 'png', 'undecodable'),
    (bytes(small_png())[:-30], 'png', 'undecodable'),
    (bytes(small_png())[:20], 'png', 'undecodable'),
    (bytes(12) + bytes(small_png()), '16UC1; compressedDepth png', 'bad_encoding'),
    (b'II*\0' + bytes(100), 'tiff', 'undecodable'),
])
def test_row_7_a_compressed_image_that_is_none_is_refused(content, form, kind):
    got, text = rejection(compressed_to_rgb, compressed(content, form))
    assert got in ({kind, 'truncated'} if kind == 'undecodable' else {kind})
    assert len(text) > 20


@settings(deadline=None, max_examples=150)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
       st.integers(0, 3000), st.text(max_size=10).map(lambda text: text.replace('\0', '')))
def test_row_7_a_damaged_file_gives_a_picture_or_is_refused(png, damages, length, form):
    content = bytearray(small_png().tobytes() if png else small_jpeg())
    for at, value in damages:
        content[at % len(content)] = value
    try:
        rgb = compressed_to_rgb(compressed(content[:length], form), max_pixels=100_000)
    except FrameRejected as error:
        assert len(str(error)) > 20
        assert error.kind in {'empty', 'truncated', 'undecodable', 'bad_size'}
    else:
        assert rgb.dtype == np.uint8 and rgb.shape[0] * rgb.shape[1] <= 100_000


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([b'', b'\xff\xd8', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n']),
       st.binary(max_size=64))
def test_row_7_no_bytes_raise_anything_but_a_refusal(start, rest):
    kind, _ = rejection(compressed_to_rgb, compressed(start + rest, 'jpeg'), max_pixels=100_000)
    assert kind in {'empty', 'undecodable', 'bad_size', 'truncated'}


def test_an_image_message_round_trip_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    message = image_message(pixels[:, ::-1], STAMP, 'camera')
    np.testing.assert_array_equal(image_to_rgb(message), pixels[:, ::-1])
    assert message.header.stamp == STAMP
