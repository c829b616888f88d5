"""The map that ships with the package: small, whole, and as accurate as the README says."""

from dataclasses import replace

from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.data.tum import read_tum
from nerfmatch_ros.demo import DEMO_MAP
from nerfmatch_ros.evaluation.metrics import pose_errors
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.radiance_field.splatting import splat
from nerfmatch_ros.scene_map import SceneMap, SURFACE_CACHE
import numpy as np
import pytest


@pytest.fixture(scope='module')
def drive():
    images = synthetic_images('test', 40, default_camera())[::6]
    return [(replace(image, map_from_camera=None), image.map_from_camera) for image in images]


@pytest.fixture(scope='module')
def answers(drive):
    localizer = Localizer.load(DEMO_MAP)
    return [localizer.localize(query) for query, _ in drive]


def test_the_shipped_map_is_small():
    assert sum(path.stat().st_size for path in DEMO_MAP.iterdir()) < 11.5e6
    assert (DEMO_MAP / SURFACE_CACHE).stat().st_size < 1.5e6


def test_the_shipped_map_localizes_a_drive_it_never_saw(drive, answers):
    errors = pose_errors([answer.map_from_camera for answer in answers],
                         [truth for _, truth in drive])
    assert np.median(errors.translation) <= 0.05 and np.median(errors.rotation) <= 1.0
    assert np.mean((errors.translation <= 0.1) & (errors.rotation <= 5.0)) >= 0.8


def test_the_shipped_surface_cache_shows_most_of_what_the_drive_sees(drive):
    scene_map = SceneMap.load(DEMO_MAP)
    views = [splat(scene_map.surface_cache, scene_map.working_view(query.camera).camera, truth)
             for query, truth in drive]
    assert np.median([view.coverage for view in views]) > 0.8


def test_the_same_image_gives_the_same_pose(drive, answers):
    again = Localizer.load(DEMO_MAP).localize(drive[1][0])
    np.testing.assert_array_equal(again.map_from_camera, answers[1].map_from_camera)


def test_the_node_answers_as_the_localizer_does(drive, tmp_path):
    pytest.importorskip('rclpy')
    pytest.importorskip('tf2_msgs.msg')
    from nerfmatch_ros.ros.bag_drive import DriveOptions, START_NS, write_drive
    from nerfmatch_ros.ros.replay import replay, ReplayOptions
    posed = [replace(query, map_from_camera=truth) for query, truth in drive[:3]]
    write_drive(posed, tmp_path / 'bag', DriveOptions(rate=0.5))
    # Every image for itself, without the stream that is made of them.
    options = ReplayOptions(tf_mode='map_to_camera', refiner=False, parameters={
        'mode': 'global', 'gate_chi2': 0.0, 'init_consistent_fixes': 1, 'threads': 1})
    replay(tmp_path / 'bag', DEMO_MAP, tmp_path / 'out', options)
    found = dict(read_tum(tmp_path / 'out' / 'fast_poses.tum'))
    localizer = Localizer.load(DEMO_MAP, threads=1)
    localizer.config = replace(localizer.config, rounds=0)
    assert found
    for stamp, pose in found.items():
        expected = localizer.localize(drive[round((stamp - START_NS / 1e9) / 2)][0])
        np.testing.assert_allclose(pose, expected.map_from_camera, atol=1e-5)
