"""Localizers compared: what is measured, what they may see, what is written."""

from dataclasses import replace
import json

from nerfmatch_ros import cli
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation import localizer_bench
from nerfmatch_ros.evaluation.localizer_bench import (
    bench_localizers,
    cells,
    is_sure,
    told_apart,
    WAYS,
    write_report,
)
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
from tiny_build import tiny_images


@pytest.fixture(scope='module')
def images(room):
    return tiny_images(room, 4)


class Known:
    """Answers photographs by name with their true pose, moved by a centimetre along x."""

    def __init__(self, images):
        self.poses, self.asked = {image.name: image.map_from_camera for image in images}, []

    def localize(self, image):
        self.asked.append(image)
        pose = self.poses.get(image.name)
        if pose is None:
            return PoseEstimate(np.eye(4), '', np.eye(6), 5, 9, 1.0, probability=0.2)
        moved = pose.copy()
        moved[0, 3] += 0.01
        return PoseEstimate(moved, '', np.eye(6), 50, 90, 1.0, probability=0.9,
                            source='splatted: of this')


@pytest.fixture
def report(tiny_map, images, monkeypatch):
    """A report of stand-ins, each for one way."""
    made = []

    def make(scene_map, name, config):
        made.append((name, config.start, config.rounds))
        return Known(images)

    monkeypatch.setattr(localizer_bench, 'make_localizer', make)
    network = SceneGeometry(SceneGeometryConfig(channels=16, width=16))
    scene_map = replace(SceneMap.load(tiny_map), scene_geometry=network)
    foreign = [replace(image, name=f'far {image.name}') for image in images[:2]]
    report = bench_localizers(scene_map, images, {'far': foreign})
    assert made == [(way.localizer, way.start, 0) for way in WAYS.values()]
    return report


def test_errors_and_trust_are_measured_in_every_way(report):
    assert list(report['results']) == list(WAYS)
    for result in report['results'].values():
        assert result['localized'] == result['within_5cm_5deg'] == 1
        assert result['median_m'] == pytest.approx(0.01) and result['cpu_ms'] >= 0
        assert result['sure_elsewhere'] == {'far': 0} and result['sources'] == {'splatted': 4}
    assert cells(report['results']['scene_geometry'])[:2] == ('100%', '1')


def test_localizers_never_see_a_true_pose(tiny_map, images, monkeypatch):
    known = Known(images)
    monkeypatch.setattr(localizer_bench, 'make_localizer', lambda *_: known)
    bench_localizers(SceneMap.load(tiny_map), images)
    assert len(known.asked) == 2 * len(images)  # a map without scene geometry has two ways
    assert all(image.map_from_camera is None and image.depth_map() is None
               for image in known.asked)


def test_a_pose_counts_unless_it_is_called_wrong():
    pose = PoseEstimate(np.eye(4), '', np.eye(6), 5, 9, 1.0)
    assert is_sure(pose) and is_sure(replace(pose, probability=0.5))
    assert not is_sure(replace(pose, probability=0.4))
    assert not is_sure(replace(pose, map_from_camera=None, probability=0.9))


def test_a_map_has_its_section_in_the_document(report, tmp_path):
    for name in ('kitchen', 'hall', 'kitchen'):
        write_report(report, output=tmp_path / 'out', markdown=tmp_path / 'd.md', name=name,
                     command='nerfmatch bench localizers')
    document = (tmp_path / 'd.md').read_text()
    assert document.startswith('# Localizers') and document.count('## kitchen') == 1
    assert '4 images; elsewhere 2 of far: `nerfmatch bench localizers`' in document
    assert document.count('| hybrid, else retrieval | 100% | 1 |') == 2
    assert json.loads((tmp_path / 'out' / 'localizers.json').read_text()) == report


def test_photographs_without_poses_are_refused(tiny_map, images):
    for given in ([], [replace(images[0], map_from_camera=None)]):
        with pytest.raises(DataError, match='known poses'):
            bench_localizers(SceneMap.load(tiny_map), given)


def test_folders_of_other_places_are_told_apart(tmp_path):
    here = [tmp_path / name for name in ('a/b/photos', 'b/photos', 'c/photos', 'c/hall')]
    assert told_apart([*here, tmp_path / 'c' / 'x' / '..' / 'hall']) == {
        'a/b/photos': here[0].resolve(), f'{tmp_path.name}/b/photos': here[1].resolve(),
        'c/photos': here[2].resolve(), 'hall': here[3].resolve()}
    assert told_apart([]) == {}


def test_the_command_measures_a_real_map(tiny_map, images, tmp_path, monkeypatch, capsys):
    read = []
    monkeypatch.setattr('nerfmatch_ros.data.reader.read_posed_images',
                        lambda folder, *_: read.append(folder.name) or images)
    assert cli.main(['bench', 'localizers', '--map', str(tiny_map), '--images',
                     str(tmp_path / 'here'), '--elsewhere', str(tmp_path / 'far'),
                     str(tmp_path / 'old' / 'far'), '--limit', '2',
                     '--output', str(tmp_path / 'out'), '--device', 'cpu']) == 0
    assert read == ['here', 'far', 'far']
    report = json.loads((tmp_path / 'out' / 'localizers.json').read_text())
    assert report['images'] == 2 and report['elsewhere'] == {
        f'{tmp_path.name}/far': 2, 'old/far': 2}
    assert list(report['results']) == ['nerfmatch, whole map', 'nerfmatch, retrieval']
    title = f'2 images; elsewhere 2 of {tmp_path.name}/far, 2 of old/far'
    assert title in ' '.join(capsys.readouterr().out.split())
