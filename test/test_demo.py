from functools import partial
import json
from types import SimpleNamespace

from fake_localizer import estimate, FakeLocalizer, moved, queries
from nerfmatch_ros import cli, demo
from nerfmatch_ros.data.tum import format_tum
from nerfmatch_ros.errors import MapError, NerfmatchError
from nerfmatch_ros.files import write_text
import pytest


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """Give a function that runs the demo on five images, off by so many metres each, or None."""
    images = queries(5)

    def run(*offsets, ros='no'):
        answers = [
            estimate(None, reason='too [few] matches') if offset is None
            else estimate(moved(image.map_from_camera, offset))
            for image, offset in zip(images, offsets, strict=True)]
        monkeypatch.setattr(demo, 'synthetic_images', lambda split, count, camera: images)
        monkeypatch.setattr(demo, 'Localizer', SimpleNamespace(
            load=lambda folder, device: FakeLocalizer(answers)))
        return demo.run_demo(queries=5, output=tmp_path / 'out', ros=ros, map_folder=tmp_path)

    return run


def test_accurate_drive_succeeds_and_leaves_report_and_pictures(drive, tmp_path, capsys):
    assert drive(0.01, 0.02, 0.03, 0.02, None) == 0
    printed = capsys.readouterr().out
    assert 'Directly through Localizer' in printed and 'too [few] matches' in printed
    assert 'query-004' in printed and '80% within' in printed
    assert json.loads((tmp_path / 'out/report.json').read_text())['localized'] == 4
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert {'trajectory.png', 'worst.png', 'errors.csv', 'poses.tum'} <= names


@pytest.mark.parametrize('offsets', [
    (0.06, 0.06, 0.06, 0.06, 0.06),  # the median
    (0.01, 0.01, 0.01, 0.2, None),  # the share that is near
    (None, None, None, None, None),
])
def test_drive_below_the_promise_fails(drive, offsets, capsys):
    assert drive(*offsets) == 1
    assert 'Below what is promised' in capsys.readouterr().out


def test_ros_that_is_asked_for_and_missing_is_an_error(drive, monkeypatch, capsys):
    monkeypatch.setattr(demo, '_missing_ros', lambda: 'rclpy cannot be imported (none)')
    with pytest.raises(NerfmatchError, match='--ros yes, but rclpy cannot be imported'):
        drive(0, 0, 0, 0, 0, ros='yes')
    assert drive(0, 0, 0, 0, 0, ros='auto') == 0
    assert 'rclpy cannot be imported' in capsys.readouterr().out


def test_missing_map_names_the_command_that_makes_it(tmp_path, capsys):
    with pytest.raises(MapError, match='make demo-map'):
        demo.run_demo(queries=1, output=tmp_path, ros='no', map_folder=tmp_path / 'none')
    assert cli.main(['demo', '--map', str(tmp_path / 'none')]) == 2
    assert 'make demo-map' in capsys.readouterr().err
    assert cli.main(['demo', '--queries', '0']) == 2


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Give a function that runs the demo through a replay that gives poses off by so much."""
    pytest.importorskip('rosbags')
    images = queries(5)

    def replay(bag, folder, output, options, *, off, refined):
        assert (bag / 'metadata.yaml').is_file()
        poses = [(stamp, image.map_from_camera) for stamp, image in enumerate(images)]
        write_text(output / 'true_poses.tum', format_tum(poses))
        write_text(output / 'poses.tum', format_tum(
            [(stamp, moved(pose, off)) for stamp, pose in poses[1:]]))
        return {'streams': {'pose': {'median_translation_m': off, 'median_rotation_deg': 0.1}},
                'refined_vs_fast': {'pairs': 4, 'refined_median_translation_m': refined,
                                    'unrefined_median_translation_m': 0.02}}

    def run(off, refined):
        from nerfmatch_ros.ros import replay as module
        from nerfmatch_ros.ros import replay_result
        monkeypatch.setattr(demo, 'synthetic_images', lambda split, count, camera: images)
        monkeypatch.setattr(demo, '_missing_ros', lambda: None)
        monkeypatch.setattr(module, 'replay', partial(replay, off=off, refined=refined))
        monkeypatch.setattr(replay_result, 'print_replay', lambda report, output: None)
        return demo.run_demo(queries=5, output=tmp_path / 'out', ros='yes', map_folder=tmp_path)

    return run


def test_with_ros_the_drive_is_a_bag_and_the_published_poses_are_judged(played, capsys):
    assert played(0.01, 0.01) == 0
    assert '80% of the images' in capsys.readouterr().out
    assert played(0.01, 0.01) == 0, 'a second demo replaces the bag of the first'


@pytest.mark.parametrize(('off', 'refined', 'complaint'), [
    (0.2, 0.01, 'fewer than 80%'), (0.06, 0.01, 'the median exceeds'),
    (0.01, 0.02, 'refined poses are not closer'), (0.01, None, 'refined poses are not closer'),
])
def test_published_poses_below_the_promise_fail(played, off, refined, complaint, capsys):
    assert played(off, float('nan') if refined is None else refined) == 1
    assert complaint in ' '.join(capsys.readouterr().out.split())
