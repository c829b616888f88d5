"""Bags whose poses are none or not needed: `frames` and `build --bag` with --poses none."""

from dataclasses import replace
import json
from types import SimpleNamespace

from nerfmatch_ros import build_verbs, cli
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.mapping import build_map as build_module
from nerfmatch_ros.mapping import structure_from_motion as motion_module
from nerfmatch_ros.mapping.structure_from_motion import PosesFromMotion
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.extracted_pictures import extracted_pictures
import numpy as np
import pytest
from robot_bags import camera_pose, drive, PERIOD, START, write

EVERY = BagFrameOptions(keyframe_metres=0)


@pytest.fixture
def builds(monkeypatch):
    """Give what structure from motion was asked, and the configurations of builds."""
    seen = SimpleNamespace(asked=[], configs=[])

    def poses_from_motion(images, work, *, rough, distance, **_):
        seen.asked.append((images, rough, distance))
        return PosesFromMotion([replace(image, map_from_camera=np.eye(4)) for image in images],
                               (), {'up_from': '', 'scale_from': ''})

    def build_map(images, output, config, **_):
        output.mkdir(exist_ok=True)
        seen.configs.append(config)

    monkeypatch.setattr(motion_module, 'poses_from_motion', poses_from_motion)
    monkeypatch.setattr(build_module, 'build_map', build_map)
    return seen


def half_known():
    """Give the events of a drive of 10 images; transforms begin after the fourth."""
    return [event for event in drive(10)
            if event[0] != '/tf' or event[1] > START + 3.5 * PERIOD]


def test_a_bag_without_poses_is_built_with_a_known_distance(tmp_path, builds):
    bag = write(tmp_path / 'bag', drive(8, transforms=False, extrinsic=False))
    names = [f'images/{(START + k * PERIOD) // 10**9:010d}.{(START + k * PERIOD) % 10**9:09d}.png'
             for k in (0, 7)]
    build_verbs.build(bag=bag, output=tmp_path / 'map', poses='none', scale=(*names, 2.0))
    (images, rough, distance), = builds.asked
    assert rough is None and distance.metres == 2.0
    assert [images[k].name for k in (0, -1)] == names and len(images) == 8
    assert images[0].camera.fx == 50.0 and images[0].map_from_camera is None


def test_images_without_a_pose_reach_structure_from_motion(tmp_path, builds):
    bag = write(tmp_path / 'bag', half_known())
    build_verbs.build(bag=bag, output=tmp_path / 'map', poses='none')
    (images, rough, _), = builds.asked
    assert len(images) == 10
    assert np.isnan(rough[:4]).all()
    for k in range(5, 10):
        np.testing.assert_allclose(rough[k], camera_pose(k / 10), atol=1e-7)


def test_a_known_distance_beside_poses_of_the_bag_is_refused(tmp_path, builds):
    bag = write(tmp_path / 'bag', drive(8))
    with pytest.raises(ConfigError, match='poses of the bag say how far'):
        build_verbs.build(bag=bag, output=tmp_path / 'map', poses='none', scale=('a', 'b', 2.0))
    assert not builds.asked


def test_found_poses_that_are_polished_are_no_odometry(tmp_path, builds):
    bag = write(tmp_path / 'bag', drive(8))
    build_verbs.build(bag=bag, output=tmp_path / 'map', poses='none', registration='features')
    build_verbs.build(bag=bag, output=tmp_path / 'other', registration='features')
    found, given = (config.registration.odometry for config in builds.configs)
    assert found is None and given is not None


def test_the_frames_of_a_bag_without_poses_can_be_taken_and_are_told_of(tmp_path, capsys):
    bag = write(tmp_path / 'bag', drive(6, transforms=False, extrinsic=False))
    arguments = ['frames', '--bag', str(bag), '--output', str(tmp_path / 'frames')]
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, '--poses', 'none']) == 0
    assert 'poses: none' in capsys.readouterr().out
    notes = json.loads((tmp_path / 'frames' / 'report.json').read_text())['notes']
    assert any('no poses: the bag' in note and '--pose-topic' in note for note in notes)
    assert len(extracted_pictures(tmp_path / 'frames')) == 6


def test_poses_that_are_known_are_kept_where_others_are_not(tmp_path):
    bag = write(tmp_path / 'bag', half_known())
    found = extract_frames(bag, tmp_path / 'frames', EVERY, need_poses=False)
    assert (found.report['kept'], found.report['without_pose']) == (10, 4)
    pictures = extracted_pictures(tmp_path / 'frames')
    assert [image.map_from_camera is None for image in pictures] == [True] * 4 + [False] * 6
    assert len(read_posed_images(tmp_path / 'frames')) == 6
    # Who needs poses has those images that have one.
    assert extract_frames(bag, tmp_path / 'posed', EVERY).report['dropped'] == {'no_pose': 4}


def test_a_frame_that_is_asked_for_is_needed(tmp_path):
    bag = write(tmp_path / 'bag', drive(6))
    with pytest.raises(DataError, match="no transform of the frame 'map'"):
        extract_frames(bag, tmp_path / 'frames', BagFrameOptions(odom_frame='map'),
                       need_poses=False)
