"""Bags replayed: through the core frame by frame, and through the real nodes over DDS."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import query_trajectory
from nerfmatch_ros.data.tum import read_tum
from nerfmatch_ros.errors import ConfigError, DataError, NerfmatchError
import numpy as np
import pytest

REASON = 'needs rclpy (a sourced ROS 2, or the extra ros-wheels)'
pytest.importorskip('rclpy', reason=REASON)
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from fake_backend import Behaviour, CAMERA, FakeBackend, loader, picture  # noqa: E402
from nerfmatch_ros import cli  # noqa: E402
from nerfmatch_ros.ros import backend, bag_messages  # noqa: E402
from nerfmatch_ros.ros.bag import BagReader, BagTopic, BagWriter, decoded  # noqa: E402
from nerfmatch_ros.ros.bag_drive import DriveOptions, IMAGE_TOPIC, write_drive  # noqa: E402
from nerfmatch_ros.ros.bag_player import BagPlayer  # noqa: E402
from nerfmatch_ros.ros.replay import replay, ReplayOptions  # noqa: E402

NODES = {'localizer_module': 'replayed_localizer', 'refiner_module': 'replayed_refiner',
         'device': 'cpu'}
EVERY_FRAME = ReplayOptions(every_frame=True, device='cpu')


def drive_images(count=30, **behaviours):
    """Images along a way through the room at 1 m/s or less, at 10 Hz.

    behaviours: numbers of the images by the name of what the localizer does with them.
    """
    chosen = {index: Behaviour[name] for name, indices in behaviours.items() for index in indices}
    return [PosedImage(
        name=f'{i:03d}', camera=CAMERA, map_from_camera=pose,
        pixels=picture(pose, chosen.get(i, Behaviour.GOOD), i))
        for i, pose in enumerate(query_trajectory(250)[:count])]


def elsewhere(index):
    """An image of another place, whose pose is unknown."""
    pixels = np.random.default_rng(index).integers(50, 200, (48, 64, 3), dtype=np.uint8)
    return PosedImage(name=f'elsewhere-{index}', camera=CAMERA, pixels=pixels)


def every_frame(bag, output, options=EVERY_FRAME, fake=None):
    fake = fake or FakeBackend(noise=0.01, refined_noise=0.001)
    return replay(bag, output / 'map', output, options, load=loader(fake))


def without_latency(value):
    if isinstance(value, dict):
        return {key: without_latency(item) for key, item in value.items() if key != 'latency_s'}
    return value


def rows_of(output):
    with open(output / 'frames.csv', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp('drive') / 'bag'
    write_drive(drive_images(NO_POSE=(10, 11), WRONG=(20,)), path)
    return path


class Sent(list):
    """A node whose publishers keep what they send, in one list."""

    def create_publisher(self, _, topic, *__):
        return SimpleNamespace(publish=lambda message: self.append((topic, message)))


@pytest.mark.parametrize('rate', [1.0, 10.0, 1000.0])
def test_no_image_is_played_ahead_of_the_clock(tmp_path, rate):
    write_drive(drive_images(8), tmp_path / 'bag', DriveOptions(rate=10.0))
    sent, now = Sent(), 0
    with BagReader(tmp_path / 'bag') as bag:
        BagPlayer(sent, bag, [IMAGE_TOPIC, '/tf'], rate=rate).play()
    images = 0
    for topic, message in sent:
        if topic == '/clock':
            assert message.clock.sec * 10**9 + message.clock.nanosec > now
            now = message.clock.sec * 10**9 + message.clock.nanosec
        elif topic == IMAGE_TOPIC:
            images += 1
            assert bag_messages.read_serialized_stamp(message) - now <= 0.02e9
    assert images == 8


def test_every_frame_gives_the_same_twice(bag, tmp_path):
    reports = [every_frame(bag, tmp_path / name) for name in ('a', 'b')]
    same = [without_latency({**report, 'map': ''}) for report in reports]
    assert same[0] == same[1]
    for name in ('poses.tum', 'fast_poses.tum', 'refined_poses.tum', 'tf_errors.csv'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    assert json.loads((tmp_path / 'a' / 'report.json').read_text()) == reports[0]


def test_a_replay_uses_the_localizer_that_was_asked_for(bag, tmp_path):
    asked = []

    def load(folder, **options):
        asked.append(options['localizer'])
        return FakeBackend(noise=0.01)

    for name in ('map', 'scene_geometry'):
        report = replay(bag, tmp_path / 'map', tmp_path / name,
                        ReplayOptions(every_frame=True, localizer=name), load=load)
        assert report['localizer'] == name
    assert asked == ['map', 'scene_geometry']


def test_every_frame_is_localized_gated_and_scored_against_the_truth(bag, tmp_path):
    fake = FakeBackend(noise=0.01, refined_noise=0.001)
    report = every_frame(bag, tmp_path, fake=fake)
    assert report['outcomes'] == {
        'accepted': 26, 'gated': 1, 'pending': 1, 'too few matches': 2}
    fast, pose, refined = (report['streams'][name] for name in ('fast', 'pose', 'refined'))
    assert (fast['poses'], pose['poses'], refined['poses']) == (28, 26, 26)
    assert fast['queries'] == pose['queries'] == report['frames'] == 30
    # The fake answers with 1 cm of noise along each axis, the filter averages, refined has 1 mm.
    assert 0.005 < fast['median_translation_m'] < 0.03 and fast['confident_but_wrong'] == 1
    assert pose['median_translation_m'] < fast['median_translation_m']
    assert pose['confident_but_wrong'] == pose['jumps']['count'] == 0
    assert fast['jumps']['count'] == 2 and fast['jumps']['largest_m'] == pytest.approx(3, abs=0.2)
    assert pose['time_to_first_fix_s'] == pytest.approx(0.1)
    assert pose['longest_gap_frames'] == 2 and pose['longest_gap_s'] == pytest.approx(0.3)
    pairs = report['refined_vs_fast']
    assert pairs['pairs'] == 26 and pairs['refined_closer'] > 0.9
    assert pairs['refined_median_translation_m'] < 0.004 < pairs['unrefined_median_translation_m']
    assert report['tf']['samples'] >= 28 and report['tf']['translation_m']['median'] < 0.03
    assert sorted(fake.refined) == [i for i in range(1, 30) if i not in (10, 11, 20)]
    rows = rows_of(tmp_path)
    assert [row['outcome'] for row in rows[9:12]] == ['accepted'] + 2 * ['too few matches']
    assert rows[20]['outcome'] == 'gated' and rows[20]['pose_translation_error_m'] == ''
    assert float(rows[20]['fast_translation_error_m']) == pytest.approx(3, abs=0.2)
    assert (tmp_path / 'trajectory.png').stat().st_size > 1000


def test_refined_poses_improve_those_that_follow(bag, tmp_path):
    with_refiner = every_frame(bag, tmp_path / 'a')
    alone = every_frame(bag, tmp_path / 'b', ReplayOptions(
        every_frame=True, device='cpu', refiner=False))
    assert alone['streams']['refined']['poses'] == alone['refined_vs_fast']['pairs'] == 0
    assert (with_refiner['streams']['pose']['median_translation_m']
            < 0.8 * alone['streams']['pose']['median_translation_m'])
    assert with_refiner['counts']['refined_accepted'] >= 25


def test_a_bag_that_leaves_the_map_brings_no_pose_there_and_comes_back(tmp_path):
    images = drive_images(20)
    images[8:12] = [elsewhere(index) for index in range(4)]
    write_drive(images, tmp_path / 'bag')
    report = every_frame(tmp_path / 'bag', tmp_path / 'out')
    pose = report['streams']['pose']
    assert pose['poses_without_truth'] == report['streams']['fast']['poses_without_truth'] == 0
    assert (report['frames'], report['queries'], pose['queries']) == (20, 16, 16)
    # One frame to confirm the start, one to confirm the return.
    assert pose['localized'] == 14
    assert [row['truth'] for row in rows_of(tmp_path / 'out')] == 8 * ['1'] + 4 * ['0'] + 8 * ['1']


@pytest.mark.parametrize('tf_mode', ['map_to_base', 'map_to_camera', 'none'])
def test_every_mode_of_transforms_is_scored_in_its_own_frame(bag, tmp_path, tf_mode):
    report = every_frame(bag, tmp_path, ReplayOptions(
        every_frame=True, device='cpu', tf_mode=tf_mode))
    pose = report['streams']['pose']
    assert pose['localized'] >= 25 and pose['median_translation_m'] < 0.05
    if tf_mode == 'none':
        assert report['tf']['samples'] == 0
    else:
        assert report['tf']['samples'] == pose['poses']
        assert report['tf']['translation_m']['median'] < 0.05
    # 0.3 m lie between camera and base: the wrong body would be seen.
    truth = np.array([pose for _, pose in read_tum(tmp_path / 'true_poses.tum')])
    cameras = np.array([image.map_from_camera for image in drive_images()])
    apart = np.linalg.norm(truth[:, :3, 3] - cameras[:, :3, 3], axis=1)
    np.testing.assert_allclose(apart, 0 if tf_mode == 'map_to_camera' else np.hypot(0.1, 0.3),
                               atol=1e-6)


def rewritten(bag, path, change):
    """Write a bag anew; change: (topic, message) -> list of (topic, message)."""
    kinds = {'/camera/image_raw/compressed': bag_messages.COMPRESSED_IMAGE}
    with BagReader(bag) as old, BagWriter(path) as new:
        declared = set()
        for name, time_ns, data in old.serialized(old.topics):
            message = decoded(data, old.topics[name].type)
            for other, changed in change(name, message):
                if other not in declared:
                    kind = kinds.get(other) or old.topics[name].type
                    new.add_topic(BagTopic(other, kind))
                    declared.add(other)
                new.write(other, time_ns, changed)
    return path


def test_compressed_images_and_a_bag_without_truth_are_replayed(bag, tmp_path):
    def change(name, message):
        if name == '/ground_truth/pose':
            return []
        if name == IMAGE_TOPIC:
            bgr = message.data.reshape(message.height, message.width, 3)[..., ::-1]
            png = cv2.imencode('.png', bgr)[1].reshape(-1)
            compressed = bag_messages.TYPES.types[bag_messages.COMPRESSED_IMAGE](
                header=message.header, format='rgb8; png compressed bgr8', data=png)
            return [(f'{name}/compressed', compressed)]
        return [(name, message)]

    report = every_frame(rewritten(bag, tmp_path / 'bag', change), tmp_path / 'out')
    pose = report['streams']['pose']
    assert pose['poses'] == 26 and 'recall' not in pose and 'tf' not in report
    assert report['queries'] == 0 and report['refined_vs_fast'] is None
    # Odometry tells jumps where the truth does not.
    assert pose['jumps']['count'] == 0 and report['streams']['fast']['jumps']['count'] == 2
    assert not (tmp_path / 'out' / 'true_poses.tum').exists()


def test_without_odometry_the_frames_say_which_transform_is_missing(bag, tmp_path):
    path = rewritten(bag, tmp_path / 'bag',
                     lambda name, message: [] if name == '/tf' else [(name, message)])
    report = every_frame(path, tmp_path / 'out')
    assert report['streams']['pose']['poses'] == 0
    assert report['streams']['pose']['median_translation_m'] is None
    (outcome, count), = report['outcomes'].items()
    assert count == 30 and 'odom' in outcome
    report = every_frame(path, tmp_path / 'out', ReplayOptions(
        every_frame=True, device='cpu', tf_mode='map_to_base'))
    assert report['streams']['pose']['poses'] >= 25


def test_bags_that_cannot_be_replayed_say_why(bag, tmp_path):
    two = rewritten(bag, tmp_path / 'two', lambda name, message: [(name, message)] + (
        [('/other/image_raw', message)] if name == IMAGE_TOPIC else []))
    with pytest.raises(DataError, match='images on 2 topics .*name one with --image-topic'):
        every_frame(two, tmp_path / 'out')
    with pytest.raises(DataError, match='has no images on /nowhere; it has images on /camera'):
        every_frame(two, tmp_path / 'out', ReplayOptions(
            every_frame=True, device='cpu', image_topic='/nowhere'))
    with pytest.raises(DataError, match='no camera_info on /other/camera_info'):
        every_frame(two, tmp_path / 'out', ReplayOptions(
            every_frame=True, device='cpu', image_topic='/other/image_raw'))
    world = rewritten(bag, tmp_path / 'world', lambda name, message: [
        (name, bag_messages.make_pose(np.eye(4), bag_messages.read_stamp(message.header), 'world')
         if name == '/ground_truth/pose' else message)])
    with pytest.raises(DataError, match="ground truth is in frame 'world'"):
        every_frame(world, tmp_path / 'out')
    with pytest.raises(ConfigError, match='--rate 0'):
        ReplayOptions(rate=0.0)
    with pytest.raises(ConfigError, match='map_to_odom'):
        ReplayOptions(tf_mode='map_to_world')


def test_the_verb_prints_the_streams_side_by_side(bag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backend, 'load_localizer', loader())
    (tmp_path / 'map').mkdir()
    (tmp_path / 'map' / 'map.yaml').write_text('notes: {extent_m: 5.0}\n')
    assert cli.main(['replay', '--bag', str(bag), '--map', str(tmp_path / 'map'), '--output',
                     str(tmp_path / 'out'), '--every-frame', '--device', 'cpu']) == 0
    printed = capsys.readouterr().out
    assert 'fast' in printed and 'refined' in printed and 'refined is closer on' in printed
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['streams']['pose']['map_extent_m'] == 5.0
    assert report['streams']['pose']['recall']['1pct_extent_1deg'] > 0


@pytest.fixture
def nodes(monkeypatch):
    """Let processes find the nodes beside this file."""
    paths = [str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')


def test_the_nodes_follow_a_bag_while_the_refiner_is_killed_and_restarted(nodes, tmp_path):
    write_drive(drive_images(40), tmp_path / 'bag', DriveOptions(rate=10.0))
    done = []

    def disturb(seconds, processes):
        refiner = processes['nerfmatch_refiner']
        if seconds > 1.8 and not done:
            refiner.kill()
            done.append('killed')
        if seconds > 2.2 and len(done) == 1:
            refiner.start()
            done.append('restarted')

    environment = dict(os.environ)
    report = replay(tmp_path / 'bag', tmp_path / 'map', tmp_path / 'out', ReplayOptions(**NODES),
                    during=disturb)
    assert dict(os.environ) == environment
    assert done == ['killed', 'restarted']
    streams = report['streams']
    for name in ('fast', 'pose', 'refined'):
        assert streams[name]['unknown_stamps'] == streams[name]['out_of_order'] == 0
    # A busy machine may leave out frames, above all at the start; most are there.
    assert streams['pose']['poses'] > 10 and streams['refined']['poses'] >= 1
    assert streams['fast']['poses'] > streams['pose']['poses']
    assert streams['pose']['anees'] is not None and streams['pose']['latency_s']['p50'] < 60
    # 3 cm of noise along each axis, and 3 mm after refinement.
    assert report['refined_vs_fast']['refined_median_translation_m'] < 0.015
    fast = streams['fast']['median_translation_m']  # None: fewer than half of the frames are there
    assert fast is None or fast > 0.015
    assert report['tf']['samples'] > 20 and report['tf']['translation_m']['median'] < 0.05
    assert report['outcomes']['accepted'] > streams['pose']['poses'] / 2
    log = (tmp_path / 'out' / 'nerfmatch_localizer.log').read_text()
    assert 'Traceback' not in log and 'deprecated' not in log
    with BagReader(tmp_path / 'out' / 'result') as result:
        assert result.counts['/pose'] == streams['pose']['poses']
        assert result.counts['/ground_truth/pose'] == 40
        assert result.counts['/refined_pose'] == streams['refined']['poses']


def test_a_node_that_cannot_start_is_reported_with_its_last_lines(nodes, bag, tmp_path):
    with pytest.raises(NerfmatchError, match='(?s)nerfmatch_localizer ended.*sha256 differs'):
        replay(bag, tmp_path / 'broken', tmp_path / 'out', ReplayOptions(**NODES, refiner=False))
