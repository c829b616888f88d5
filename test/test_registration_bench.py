"""Comparing registrations: the same starts, errors after alignment, nothing done twice."""

from types import SimpleNamespace

from fake_localizer import queries
from nerfmatch_ros import registration_bench
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.mapping.register_poses import RegistrationConfig
from nerfmatch_ros.registration_bench import bench_registration, PoseErrorMeans, RoughStart
import numpy as np
import pytest

NOISE = RoughStart.parse('noise:0.05:3')


@pytest.fixture
def registered(monkeypatch):
    """Stand for the registration: gives the poses back as they are; calls are recorded."""
    asked = []

    def stand_in(images, config, **options):
        asked.append((config, np.stack([image.map_from_camera for image in images])))
        return SimpleNamespace(images=images, notes={})

    monkeypatch.setattr(registration_bench, 'register', stand_in)
    return asked


def test_every_schedule_begins_at_the_same_poses(registered, tmp_path):
    report = bench_registration(queries(30), [NOISE], ['barf', 'l2g+features'],
                                RegistrationConfig(), tmp_path)
    assert [config.steps for config, _ in registered] == [('barf',), ('l2g', 'features')]
    assert np.array_equal(registered[0][1], registered[1][1])
    result = report['results']['noise:0.05:3']['barf']
    assert 0.04 < result['before_m'] < 0.12 and 2 < result['before_deg'] < 8
    assert result['after_m'] == pytest.approx(result['before_m'])


def test_a_registration_is_told_how_rough_the_start_is(registered, tmp_path):
    starts = [RoughStart.parse(text) for text in ('noise:0.15:8', 'noise:0.02:0', 'drift:0.01:1')]
    bench_registration(queries(30), starts, ['features'], RegistrationConfig(), tmp_path)
    known = [(config.translation, config.rotation, config.odometry) for config, _ in registered]
    assert known[0] == (0.15, 8, None)
    assert known[1][0] == 0.02 and 0 < known[1][1] < 1
    assert known[2][2] == 0.02  # whatever this odometry's is


def test_finished_ones_are_kept(registered, tmp_path):
    for _ in range(2):
        bench_registration(queries(30), [NOISE], ['barf'], RegistrationConfig(), tmp_path)
    assert len(registered) == 1


def test_a_folder_of_other_poses_is_refused(registered, tmp_path):
    bench_registration(queries(30), [NOISE], ['barf'], RegistrationConfig(), tmp_path)
    (tmp_path / 'noise_0.05_3' / 'barf' / 'result.json').unlink()
    with pytest.raises(DataError, match='other poses'):
        bench_registration(queries(30), [NOISE], ['barf'], RegistrationConfig(), tmp_path, seed=1)


def test_a_frame_of_another_scale_is_no_error():
    poses = np.stack([image.map_from_camera for image in queries(9)])
    moved = Similarity(1.3, np.diag([1.0, -1.0, -1.0]), [1, 2, 3]).apply_to_pose(poses)
    errors = PoseErrorMeans.of(moved, poses)
    assert errors.metres < 1e-9 and errors.degrees < 1e-5


@pytest.mark.parametrize('text', ['noise', 'noise:0.05', 'jump:1:2', 'drift:-1:2', 'noise:a:3'])
def test_starts_that_say_nothing_are_refused(text):
    with pytest.raises(ConfigError, match='noise:METRES:DEGREES'):
        RoughStart.parse(text)


def test_a_document_keeps_its_other_sections(registered, tmp_path):
    file = tmp_path / 'registration.md'
    report = bench_registration(queries(30), [NOISE], ['barf'], RegistrationConfig(),
                                tmp_path / 'out')
    for name in ('kitchen', 'hall', 'kitchen'):
        registration_bench.write_section(report, file, name, 'nerfmatch bench registration')
    text = file.read_text()
    assert text.count('## kitchen') == 1 and text.count('## hall') == 1
    assert text.count('| noise:0.05:3 | barf |') == 2
