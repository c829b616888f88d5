"""Two processes train a field like one, also after one of them was killed."""

from dataclasses import replace
import os
import signal

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import train_field as module
from nerfmatch_ros.mapping.engine import make_engine
from nerfmatch_ros.mapping.field_loss import FieldTrainingConfig
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.mapping.training_pixels import PixelSize
import numpy as np
from processes import run_together, WorkerDiedError
import pytest
from sphere_scene import FRAME, sphere_images
from tiny_build import TINY, TINY_MIP
import torch

# Pieces of 50 rays draw the same intervals whoever renders them.
CONFIG = FieldTrainingConfig(steps=40, rays=200, rays_at_once=50, depth_rays=0, bfloat16=False,
                             delayed=0.1)
KINDS = {'grid': (TINY.field, CONFIG),
         'mip': (TINY_MIP.field, replace(CONFIG, loss='paper'))}


def train(folder, kind, killed=None) -> tuple[list[float], dict[str, np.ndarray]]:
    """PSNR now and then and the weights in the end; the process `killed` ends in step 20."""
    engine = make_engine('cpu')
    module.CHECKPOINT_STEPS = 10
    images = [replace(image, depth=np.full((64, 80), 1.5, np.float32))
              for image in sphere_images()[:2]]
    nothing = SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, int),
                           np.zeros((0, 2)), np.zeros(0, int))
    dataset = RayDataset(images, FRAME, nothing, how=PixelSize(80))
    curve = []

    def report(done, numbers):
        curve.append(numbers['psnr'])
        if engine.global_rank == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    fields, config = KINDS[kind]
    torch.manual_seed(engine.global_rank)  # the first process's weights count
    field = module.train_field(fields.make(2), dataset, config, engine=engine,
                               checkpoint=folder / 'checkpoint', report=report)
    return curve, {name: value.numpy() for name, value in field.state_dict().items()}


def assert_alike(one, other):
    np.testing.assert_allclose(one[0][-1], other[0][-1], atol=0.02)
    for name, value in one[1].items():
        np.testing.assert_allclose(other[1][name], value, atol=2e-3, err_msg=name)


@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_learn_what_one_learns(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'CHECKPOINT_STEPS', 10)
    (tmp_path / 'one').mkdir()
    alone = train(tmp_path / 'one', kind)
    first, second = run_together(2, train, tmp_path, kind)
    assert_alike(alone, first)
    np.testing.assert_allclose(first[0], alone[0], atol=0.02)
    assert first[0] == second[0]
    for name, value in first[1].items():
        np.testing.assert_array_equal(second[1][name], value)


def test_a_training_goes_on_after_a_worker_was_killed(tmp_path):
    whole = run_together(2, train, tmp_path / 'whole', 'grid')
    with pytest.raises(WorkerDiedError, match='-9'):
        run_together(2, train, tmp_path / 'killed', 'grid', 1)
    assert (tmp_path / 'killed' / 'checkpoint').exists()
    for other, resumed in zip(whole, run_together(2, train, tmp_path / 'killed', 'grid')):
        # From step 10 on, or 20 where the first process wrote that before it met the death.
        assert 1 <= len(resumed[0]) <= 2 == len(other[0])
        for name, value in other[1].items():
            np.testing.assert_array_equal(resumed[1][name], value, err_msg=name)


def test_fewer_rays_than_processes_are_refused(engine, tmp_path):
    class Crowd:
        """An engine of very many processes."""

        world_size = 1000

    with pytest.raises(ConfigError, match='cannot be shared'):
        module.train_field(TINY.field.make(1), None, CONFIG, engine=Crowd(),
                           checkpoint=tmp_path / 'none')
