"""Bags as robots record them: a camera that drives along, in any storage and with any fault."""

import cv2
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros.bag import TYPES
from nerfmatch_ros.ros.bag_drive import BASE_FROM_CAMERA
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

CAMERA = Camera('PINHOLE', 64, 48, 50.0, 50.0, 31.5, 23.5)
START = 1_700_000_000 * 10**9
PERIOD = 100_000_000  # ns between two images
IMAGE, INFO = '/camera/image_raw', '/camera/camera_info'
OPTICAL, BASE, ODOM = 'camera_optical_frame', 'base_link', 'odom'


def base_pose(seconds, speed=0.5):
    """Give odom_from_base (4, 4) of a robot that drives along x and turns a little."""
    turn = 0.2 * seconds
    pose = np.eye(4)
    pose[:2, :2] = (np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))
    pose[0, 3] = speed * seconds
    return pose


def camera_pose(seconds, speed=0.5):
    """Give odom_from_camera (4, 4)."""
    return base_pose(seconds, speed) @ BASE_FROM_CAMERA


def texture(index):
    """Give a picture (H, W, 3) full of detail, another one for each index."""
    generator = np.random.default_rng(index)
    return generator.integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)


def compressed(rgb, stamp, frame_id=OPTICAL, suffix='.jpg', form='rgb8; jpeg compressed bgr8'):
    """Make a CompressedImage of a picture (H, W, 3), RGB, or of a mosaic (H, W)."""
    picture = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(suffix, picture)[1].ravel()
    return TYPES.types[messages.COMPRESSED_IMAGE](
        header=messages.make_header(stamp, frame_id), format=form, data=data)


def raw(samples, encoding, stamp, frame_id=OPTICAL, size=None, padding=0):
    """Make an Image of samples whose rows lie in memory as they are."""
    rows = np.ascontiguousarray(samples).view(np.uint8).reshape(len(samples), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    height, width = size or samples.shape[:2]
    return TYPES.types[messages.IMAGE](
        header=messages.make_header(stamp, frame_id), height=height, width=width,
        encoding=encoding, is_bigendian=0, step=rows.shape[1], data=rows.reshape(-1))


def odometry(pose, stamp, frame_id=ODOM, child=BASE, variances=(0,) * 6):
    """Make a nav_msgs/Odometry."""
    make = TYPES.types
    zero = make['geometry_msgs/msg/Vector3'](x=0.0, y=0.0, z=0.0)
    return make[messages.ODOMETRY](
        header=messages.make_header(stamp, frame_id), child_frame_id=child,
        pose=with_covariance(pose, variances),
        twist=make['geometry_msgs/msg/TwistWithCovariance'](
            twist=make['geometry_msgs/msg/Twist'](linear=zero, angular=zero),
            covariance=np.zeros(36)))


def pose_with_covariance(pose, stamp, frame_id='map', variances=(0,) * 6):
    """Make a PoseWithCovarianceStamped."""
    return TYPES.types[messages.POSE_WITH_COVARIANCE](
        header=messages.make_header(stamp, frame_id),
        pose=with_covariance(pose, variances))


def with_covariance(pose, variances=(0,) * 6):
    """Make a PoseWithCovariance; variances: x y z, about x y z."""
    return TYPES.types['geometry_msgs/msg/PoseWithCovariance'](
        pose=messages.make_pose(pose, 0, '').pose,
        covariance=np.diag(np.array(variances, np.float64)).ravel())


def transform_stamped(pose, stamp, frame_id, child):
    """Make a TransformStamped."""
    return messages.make_transforms(pose, stamp, frame_id, child).transforms[0]


def drive(count=10, *, topic=IMAGE, info=True, transforms=True, extrinsic=True, image=None,
          speed=0.5):
    """
    Give the events [topic, time in ns, message] of a drive, to be changed by who likes.

    image: makes the message of (index, stamp); transforms at 50 Hz from before the first image to
    after the last, at other times than the images.
    """
    events = []
    if extrinsic:
        events.append(['/tf_static', START - 10**9, messages.make_transforms(
            BASE_FROM_CAMERA, START - 10**9, BASE, OPTICAL)])
    for index in range(count):
        stamp = START + index * PERIOD
        if info:
            events.append([INFO, stamp + 4, messages.make_camera_info(CAMERA, stamp, OPTICAL)])
        message = image(index, stamp) if image else messages.make_image(
            texture(index), stamp, OPTICAL)
        events.append([topic, stamp + 5, message])
    if transforms:
        for stamp in range(START - 207_000_000, START + count * PERIOD, 20_000_000):
            events.append(['/tf', stamp, messages.make_transforms(
                base_pose((stamp - START) / 1e9, speed), stamp, ODOM, BASE)])
    return events


def write(path, events, *, storage='mcap', compression='none'):
    """Write events in the order of their times; a message may be given as bytes with its type."""
    writer = Writer(path, version=8, storage_plugin=getattr(StoragePlugin, storage.upper()))
    writer.set_compression(getattr(CompressionMode, compression.upper()), CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, time_ns, message in sorted(events, key=lambda event: event[1]):
            kind, data = message if isinstance(message, tuple) else (
                message.__msgtype__, TYPES.serialize_cdr(message, message.__msgtype__))
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(connections[topic], time_ns, data)
    return path
