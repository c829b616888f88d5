from dataclasses import dataclass, replace
import errno
import json
from pathlib import Path
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import cv2
from fake_localizer import CAMERA, circle, estimate, FakeLocalizer, queries
from nerfmatch_ros import bench_verbs, cli
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.tum import format_tum
from nerfmatch_ros.errors import MapError
from nerfmatch_ros.verb_options import load_map_localizer
import numpy as np
import pytest
import yaml


@pytest.fixture
def photographs(tmp_path):
    """Folder of a data set with three queries and one training image."""
    folder = tmp_path / 'photographs'
    folder.mkdir()
    frames = []
    for index, image in enumerate(queries(4)):
        name = f'{index}.png'
        cv2.imwrite(str(folder / name), image.pixels[..., ::-1])
        image = replace(image, name=name, split='train' if index == 3 else 'test')
        frames.append(transforms_json.frame_entry(image, folder))
    transforms_json.write(folder / 'transforms.json', frames)
    return folder


@pytest.fixture
def localizer(monkeypatch):
    """Stand for the map: all poses exact but the one of image 1, which fails."""
    answers = [estimate(pose) for pose in circle(4)]
    answers[1] = estimate(None, reason='too few matches')
    fake = FakeLocalizer(answers)
    monkeypatch.setattr(cli, 'load_map_localizer', lambda folder, device, *how, **named: fake)
    return fake


def module(monkeypatch, name, **members):
    """Put a module made of these members in place of the real one."""
    stand_in = ModuleType(name)
    vars(stand_in).update(members)
    monkeypatch.setitem(sys.modules, name, stand_in)


def run(*arguments):
    """Run the command line here and give its exit code."""
    return cli.main([str(argument) for argument in arguments])


def test_help_imports_nothing_heavy():
    code = (
        'import sys, nerfmatch_ros.cli as cli\n'
        'try:\n'
        '    cli.main(["--help"])\n'
        'finally:\n'
        '    heavy = {"torch", "numpy", "cv2", "matplotlib", "rclpy", "yaml"}\n'
        '    print("HEAVY", sorted(heavy & set(sys.modules)))\n')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert 'HEAVY []' in done.stdout
    for verb in cli.VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize('verb', cli.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        run(verb, '--help')
    assert caught.value.code == 0
    assert f'nerfmatch {verb}' in capsys.readouterr().out


def test_wrong_use_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        run('build', '--imagse', 'x')
    assert caught.value.code == 2


def test_localize_prints_one_line_of_json_an_image(photographs, localizer, capsys):
    paths = [photographs / '0.png', photographs / '1.png']
    assert run('localize', '--map', 'm', *paths) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first['name'] == str(paths[0])
    np.testing.assert_allclose(first['map_from_camera'], circle(4)[0])
    assert first['inliers'] == 50 and first['position_std_m'] == pytest.approx(0.01)
    assert np.shape(first['covariance']) == (6, 6) and first['seconds'] >= 0
    assert second['map_from_camera'] is None and second['covariance'] is None
    assert second['reason'] == 'too few matches' and second['position_std_m'] is None
    assert set(first) == set(second)


def test_localize_takes_the_camera_file(photographs, localizer, tmp_path):
    other = {**CAMERA.to_dict(), 'fx': 99.0}
    (tmp_path / 'camera.yaml').write_text(yaml.safe_dump(other))
    arguments = ['localize', '--map', 'm', photographs / '0.png']
    assert run(*arguments, '--camera', tmp_path / 'camera.yaml') == 0
    assert run(*arguments) == 0
    assert [image.camera.fx for image in localizer.asked] == [99.0, 30.0]


@pytest.mark.parametrize('options, refine', [
    ((), None), (('--track',), 'none'), (('--track', '--refine', 'match'), 'match'),
    (('--refine', 'none'), 'none'), (('--refine', 'map'), 'map')])
def test_a_track_is_not_refined_unless_that_is_asked_for(
        localizer, photographs, monkeypatch, options, refine):
    asked = []

    def load(folder, device, *how):
        asked.append(how)
        return localizer

    monkeypatch.setattr(cli, 'load_map_localizer', load)
    assert run('localize', photographs / '0.png', '--map', 'm', *options) == 0
    assert asked == [(refine, 'map', 'map')]


def test_error_of_the_user_is_one_line_and_code_2(photographs, localizer, capsys):
    assert run('localize', '--map', 'm', photographs / '0.png', photographs / 'none.png') == 2
    captured = capsys.readouterr()
    assert captured.out == ''  # nothing was started
    assert captured.err.startswith('error: ') and captured.err.count('\n') == 1
    assert 'none.png does not exist' in captured.err
    assert run('localize', '--map', 'm') == 2
    assert 'no photograph' in capsys.readouterr().err


def test_evaluate_takes_the_split(photographs, localizer, tmp_path, capsys):
    arguments = ['evaluate', '--map', 'm', '--images', photographs, '--output']
    assert run(*arguments, tmp_path / 'test') == 0
    assert run(*arguments, tmp_path / 'all', '--split', 'all') == 0
    counts = [json.loads((tmp_path / split / 'report.json').read_text())['queries']
              for split in ('test', 'all')]
    assert counts == [3, 4]
    assert 'median_translation_m' in capsys.readouterr().out


def release_annotations(photographs, name):
    """Write the queries of the data set as annotations of the published kind."""
    matrix = [[CAMERA.fx, 0, CAMERA.cx + 0.5], [0, CAMERA.fy, CAMERA.cy + 0.5], [0, 0, 1]]
    frames = [{'file_path': f'{index}.png', 'intrinsics': matrix, 'width': 32, 'height': 24,
               'transform_matrix': circle(4)[index].tolist()} for index in range(3)]
    (photographs / name).write_text(json.dumps({'frames': frames}))
    return photographs / name


def test_evaluate_prints_the_row_of_a_known_scene(
        photographs, localizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    annotations = release_annotations(photographs, 'transforms_OldHospital_test.json')
    (photographs / 'transforms.json').unlink()
    arguments = ['evaluate', '--map', 'm', '--images', photographs, '--output', tmp_path / 'out',
                 '--annotations', annotations]
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert 'OldHospital (Cambridge Landmarks)' in text and '3 of 182' in text
    assert '19.4 cm, 0.4 deg' in text and 'paper' not in text
    row = json.loads((tmp_path / 'out/report.json').read_text())['paper']
    assert row['scene'] == 'OldHospital' and row['queries'] == 3
    assert row['recall'] == pytest.approx(2 / 3)
    assert run(*arguments, '--split', 'train') == 2
    assert "none of split 'train'" in capsys.readouterr().err


def test_evaluate_says_nothing_of_papers_elsewhere(photographs, localizer, tmp_path, capsys):
    assert run('evaluate', '--map', 'm', '--images', photographs, '--output', tmp_path) == 0
    assert 'paper' not in json.loads((tmp_path / 'report.json').read_text())
    assert 'NeRFMatch' not in capsys.readouterr().out


def test_bench_takes_annotations(photographs, monkeypatch, tmp_path, capsys):
    taken = []
    module(monkeypatch, 'nerfmatch_ros.evaluation.refinement_report', print_refinement=print,
           report_refinement=lambda localizer, queries, config, **_: taken.extend(queries))
    monkeypatch.setattr(bench_verbs, 'load_map_localizer', lambda folder, device: None)
    annotations = release_annotations(photographs, 'transforms_fire_test.json')
    assert run('bench', 'refine', '--map', tmp_path, '--images', photographs, '--annotations',
               annotations) == 0
    assert [image.name for image in taken] == ['0.png', '1.png', '2.png']


def test_inspect_prints_a_table_or_json(monkeypatch, capsys):
    summary = {'format': 1, 'extent_m': np.float32(2.5), 'field': {'kind': 'grid', 'psnr': None}}

    def load(folder):
        if str(folder) != 'good':
            raise MapError(f'{folder} is no map')
        return SimpleNamespace(summary=lambda: summary)

    module(monkeypatch, 'nerfmatch_ros.scene_map', SceneMap=SimpleNamespace(load=load))
    assert run('inspect', 'good', '--json') == 0
    assert json.loads(capsys.readouterr().out) == {
        'format': 1, 'extent_m': 2.5, 'field': {'kind': 'grid', 'psnr': None}}
    assert run('inspect', 'good') == 0
    table = capsys.readouterr().out
    assert 'field.kind' in table and 'grid' in table and '2.5' in table
    assert run('inspect', 'bad') == 2
    assert capsys.readouterr().err == 'error: bad is no map\n'


def test_surface_cache_is_added_to_a_finished_map(tiny_map, tmp_path, capsys):
    folder = shutil.copytree(tiny_map, tmp_path / 'map')
    assert run('surface-cache', '--map', folder, '--points', '200', '--device', 'cpu') == 0
    table = capsys.readouterr().out
    assert 'surface_cache_points' in table and 'voxel_m' in table
    assert run('inspect', folder, '--json') == 0
    assert 0 < json.loads(capsys.readouterr().out)['surface_cache_points'] <= 200
    assert run('surface-cache', '--map', folder, '--points', '0') == 2
    assert 'points of a surface cache is 0' in capsys.readouterr().err
    assert run('surface-cache', '--map', tmp_path / 'no') == 2
    assert 'there is no map folder' in capsys.readouterr().err


def test_render_writes_a_picture_for_each_pose(localizer, tmp_path, capsys):
    trajectory = tmp_path / 'poses.tum'
    trajectory.write_text(format_tum(enumerate(circle(3))))
    assert run('render', '--map', 'm', '--trajectory', trajectory, '--output', tmp_path / 'a') == 0
    names = sorted(path.name for path in (tmp_path / 'a').iterdir())
    assert names == ['000000.png', '000001.png', '000002.png']
    assert cv2.imread(str(tmp_path / 'a/000000.png')).shape == (24, 32, 3)
    pose = '-1 0 0 0 0 0 1'  # begins like an option
    assert run('render', '--map', 'm', '--pose', pose, '--output', tmp_path / 'b') == 0
    assert [path.name for path in (tmp_path / 'b').iterdir()] == ['000000.png']
    capsys.readouterr()
    assert run('render', '--map', 'm', '--output', tmp_path / 'c') == 2
    assert 'either --pose or --trajectory' in capsys.readouterr().err


def test_build_hands_over_training_images_configuration_and_time(
        photographs, monkeypatch, capsys, tmp_path):
    calls = []

    @dataclass(frozen=True)
    class BuildConfig:
        seed: int = 0

    module(monkeypatch, 'nerfmatch_ros.mapping.build_map', BuildConfig=BuildConfig,
           build_map=lambda *positional, **named: calls.append((positional, named)))
    config = tmp_path / 'c.yaml'
    config.write_text('seed: 3\n')
    arguments = ['build', '--images', photographs, '--output', tmp_path / 'map']
    assert run(*arguments, '--config', config, '--minutes', '5', '--device', 'cpu') == 0
    (images, output, options), named = calls[0]
    assert [image.name for image in images] == ['3.png']
    assert output == tmp_path / 'map' and options == BuildConfig(seed=3)
    assert named == {'device': 'cpu', 'minutes': 5.0, 'rough': False, 'beside': {},
                     'origin': {'from': 'the data set', 'up': 'not known'}}
    assert run(*arguments, '--device', 'cpu') == 0
    assert calls[1][0][2] == BuildConfig() and calls[1][1]['minutes'] is None
    assert run(*arguments, '--minutes', '0') == 2
    assert '--minutes 0' in capsys.readouterr().err
    config.write_text('sead: 3\n')
    assert run(*arguments, '--config', config) == 2
    assert "did you mean 'seed'" in capsys.readouterr().err
    annotations = release_annotations(photographs, 'transforms_mine_train.json')
    masks = tmp_path / 'masks/masks_bg/mine'
    masks.mkdir(parents=True)
    for index in range(3):
        cv2.imwrite(str(masks / f'{index}.png'), np.full((24, 32), 255, np.uint8))
    arguments += ['--annotations', annotations, '--masks', tmp_path / 'masks']
    assert run(*arguments, '--device', 'cpu') == 0
    images = calls[2][0][0]
    assert [image.name for image in images] == ['0.png', '1.png', '2.png']
    assert all(image.sky_mask().all() for image in images)


def test_rough_poses_are_handed_over_as_such(photographs, monkeypatch, capsys, tmp_path):
    from nerfmatch_ros.mapping import build_map
    calls = []
    monkeypatch.setattr(build_map, 'build_map',
                        lambda *positional, **named: calls.append((positional, named)))
    arguments = ['build', '--images', photographs, '--output', tmp_path / 'map']
    assert run(*arguments, '--poses', 'rough', '--registration', 'l2g+features') == 0
    (_, _, config), named = calls[0]
    assert named['rough'] and config.registration.steps == ('l2g', 'features')
    assert config.registration.odometry is None
    assert run(*arguments, '--registration', 'l2g') == 2
    assert 'these are exact' in capsys.readouterr().err
    assert run(*arguments, '--poses', 'rough', '--registration', 'look') == 2
    assert 'l2g, barf, features' in capsys.readouterr().err


def test_interrupt_ends_quietly(monkeypatch, capsys, photographs):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'load_map_localizer', interrupted)
    assert run('localize', '--map', 'm', photographs / '0.png') == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_a_full_disk_is_an_error_with_a_remedy(monkeypatch, capsys, photographs):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device', '/maps/kitchen.build/pixels')
    monkeypatch.setattr(cli, 'load_map_localizer', full)
    assert run('localize', '--map', 'm', photographs / '0.png') == 2
    said = capsys.readouterr().err
    assert said.startswith('error: no space') and '/maps/kitchen.build/pixels' in said


def test_refine_chooses_the_steps_of_every_pose(tiny_map, photographs, capsys):
    assert load_map_localizer(tiny_map, 'cpu').config.refine == ('match', 'photometric')
    assert load_map_localizer(tiny_map, 'cpu', 'none').config.refine == ()
    for name in ('float32', 'bfloat16'):
        localizer = load_map_localizer(tiny_map, 'cpu', precision=name)
        assert str(localizer.precision) == f'torch.{name}'
    assert load_map_localizer(tiny_map, 'cpu', 'views+photometric').config.refine == (
        'views', 'photometric')
    assert run('localize', '--map', tiny_map, '--refine', 'look', photographs / '0.png') == 2
    assert "refinement step 'look' is unknown; use match" in capsys.readouterr().err


def test_a_localizer_is_chosen_by_name(photographs, localizer, monkeypatch, tmp_path):
    asked = []

    def load(folder, device, *how):
        asked.append(how)
        return localizer

    monkeypatch.setattr(cli, 'load_map_localizer', load)
    assert run('localize', photographs / '0.png', '--map', 'm', '--localizer', 'hybrid') == 0
    assert run('evaluate', '--map', 'm', '--images', photographs, '--output', tmp_path / 'out',
               '--localizer', 'scene_geometry') == 0
    assert asked == [(None, 'map', 'hybrid'), (None, 'map', 'scene_geometry')]


def test_a_localizer_that_the_map_does_not_serve_is_an_error(tiny_map, photographs, capsys):
    assert run('localize', '--map', tiny_map, '--localizer', 'hybrid', photographs / '0.png') == 2
    assert '--scene-geometry' in capsys.readouterr().err
