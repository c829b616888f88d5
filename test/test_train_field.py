"""Training of a field: it learns, goes on after an interruption, and uses its losses."""

from dataclasses import replace

from nerfmatch_ros.mapping import train_field as module
from nerfmatch_ros.mapping.engine import make_engine
from nerfmatch_ros.mapping.field_loss import (
    FieldLoss,
    FieldTrainingConfig,
    training_loss,
)
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.mapping.train_field import train_field
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.mapping.training_pixels import PixelSize
from nerfmatch_ros.radiance_field.grid_field import GridField
from nerfmatch_ros.radiance_field.renderer import RenderedRays
import numpy as np
import pytest
from sphere_scene import FRAME, sphere_images
from tiny_build import TINY, TINY_MIP
import torch

CONFIG = FieldTrainingConfig(steps=30, rays=200, depth_rays=20, longest_side=80)
NO_POINTS = SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, int),
                         np.zeros((0, 2)), np.zeros(0, int))


@pytest.fixture(scope='module')
def dataset():
    images = [replace(image, depth=np.full((64, 80), 1.5, np.float32))
              for image in sphere_images()[:2]]
    return RayDataset(images, FRAME, NO_POINTS, how=PixelSize(80))


def fresh(kind='grid'):
    torch.manual_seed(0)
    return (TINY if kind == 'grid' else TINY_MIP).field.make(2)


@pytest.mark.parametrize('kind', ['grid', 'mip'])
def test_a_field_learns_its_photographs(kind, dataset, tmp_path, engine):
    numbers, config = [], replace(CONFIG, steps=60, network_rate=0.02, final_rate=1.0)
    field = train_field(fresh(kind), dataset, config, engine=engine,
                        checkpoint=tmp_path / 'a.checkpoint',
                        report=lambda done, values: numbers.append((done, values)))
    assert [done for done, _ in numbers] == [1 / 3, 2 / 3, 1]
    assert numbers[-1][1]['psnr'] > numbers[0][1]['psnr'] + 0.2  # smoothed over 50 steps
    assert not field.training and not (tmp_path / 'a.checkpoint').exists()
    assert all(value.isfinite().all() for value in field.state_dict().values())


class Killed(BaseException):
    """Ends a training as a kill would."""


def test_an_interrupted_training_ends_like_a_whole_one(
        dataset, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(module, 'CHECKPOINT_STEPS', 10)
    path, steps = tmp_path / 'a.checkpoint', []

    def kill(done, values):
        raise Killed

    with pytest.raises(Killed):  # in step 20
        train_field(fresh(), dataset, CONFIG, engine=engine, checkpoint=path, report=kill)
    draw = RayDataset.draw

    def counting(self, *args):
        steps.append(1)
        return draw(self, *args)

    monkeypatch.setattr(RayDataset, 'draw', counting)
    resumed = train_field(fresh(), dataset, CONFIG, engine=engine, checkpoint=path)
    assert len(steps) == 20  # of 30; the state of step 10 was kept
    whole = train_field(fresh(), dataset, CONFIG, engine=engine, checkpoint=tmp_path / 'none')
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize('most', [1, 7, 40, 1000])
def test_pieces_of_a_step_add_up_to_its_loss_and_gradient(most, dataset, engine):
    """Whatever is rendered at once; without random intervals, which each piece draws anew."""
    clock = TrainingClock(steps=10)
    clock.step = 5
    for kind in ('grid', 'mip'):
        config = replace(CONFIG, rays=50, bfloat16=False, delayed=0.1)
        losses, gradients = [], []
        for at_once in (0, most):
            field = fresh(kind).train()
            loss, _ = engine.setup(FieldLoss(field, config), torch.optim.SGD(field.parameters()))
            pieces, random = module._share(
                dataset, replace(config, rays_at_once=at_once), engine, clock,
                torch.Generator().manual_seed(3), field.ray_samples)
            assert sum(int(mask.sum()) for mask in random) == 50
            assert max(len(piece.batch.colour) for piece in pieces) <= (at_once or 50)
            charged = 0
            for piece in pieces:
                piece.generator = None
                value, _ = loss(piece)
                engine.backward(value)
                charged += value.item()
            losses.append(charged)
            gradients.append({name: p.grad for name, p in field.named_parameters()})
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-6)


def test_slow_steps_are_saved_by_time(dataset, tmp_path, engine, monkeypatch):
    monkeypatch.setattr(module, 'CHECKPOINT_SECONDS', 0.0)
    saved = []
    monkeypatch.setattr(module, 'save_checkpoint', lambda path, field, optimizer, clock, **_:
                        saved.append(clock.step))
    train_field(fresh(), dataset, CONFIG, engine=engine, checkpoint=tmp_path / 'a.checkpoint')
    assert saved == [10, 20, 30]


def test_a_cpu_computes_few_samples_at_once(dataset, engine, monkeypatch):
    monkeypatch.setattr(module, 'SAMPLES_ON_CPU', 60)
    pieces, _ = module._share(dataset, replace(CONFIG, rays=40, depth_rays=0), engine,
                              TrainingClock(steps=2), torch.Generator().manual_seed(0), 10)
    assert [len(piece.batch.colour) for piece in pieces] == [6, 6, 6, 6, 6, 5, 5]


def test_training_is_deterministic(dataset, tmp_path, engine):
    config = replace(CONFIG, steps=6)
    one, two = (train_field(fresh(), dataset, config, engine=engine, checkpoint=tmp_path / 'none')
                for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def rendered(weights, edges, proposal_colour=None):
    return RenderedRays(weights, edges, weights.sum(-1), torch.full((len(weights), 3), 0.5), None,
                        weights, proposal_colour)


def test_losses_set_in_where_they_apply(generator):
    edges = torch.linspace(0.1, 2, 9).expand(4, -1)
    weights = torch.rand(4, 8, generator=generator) / 8
    colour, nothing = torch.full((4, 3), 0.5), torch.zeros(4)
    config = FieldTrainingConfig(delayed=0.1)
    view = rendered(weights, edges)
    assert training_loss(view, colour, nothing, nothing + 1, config, 0.05) == 0
    late = training_loss(view, colour, nothing, nothing + 1, config, 0.9)
    assert late > 0  # distortion and opacity
    deep = training_loss(view, colour, nothing + 1, nothing + 0.01, config, 0.05)
    assert deep > 0
    wrong = training_loss(view, colour + 0.1, nothing, nothing + 1, config, 0.05)
    assert wrong.item() == pytest.approx(0.01, rel=1e-4)
    proposed = rendered(weights, edges, torch.full((4, 3), 0.7))
    assert training_loss(proposed, colour, nothing, nothing + 1, config, 0.05).item() == (
        pytest.approx(0.04, rel=1e-4))


def test_exposures_of_the_photographs_are_learnt(dataset, tmp_path, engine):
    field = train_field(fresh(), dataset, replace(CONFIG, steps=20), engine=engine,
                        checkpoint=tmp_path / 'none')
    assert isinstance(field, GridField) and field.exposure.abs().max() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('kind', ['grid', 'mip'])
def test_training_runs_on_cuda(kind, tmp_path):
    dataset = RayDataset(sphere_images()[:2], FRAME, NO_POINTS, how=PixelSize(80), device='cuda')
    field = train_field(fresh(kind), dataset, CONFIG, engine=make_engine('cuda:0'),
                        checkpoint=tmp_path / 'none')
    assert all(value.isfinite().all() for value in field.state_dict().values())
