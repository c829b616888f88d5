"""Checkpoints: a training goes on as if it had not stopped; damage is named."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.training_clock import TrainingClock
import pytest
import torch
from torch import nn


def parts(width=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    return model, torch.optim.Adam(model.parameters(), 0.05, fused=True), TrainingClock(steps=20)


def train(model, optimizer, clock, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(clock.step)
        data = torch.randn(8, 3, generator=generator)
        loss = (model(data)[:, 0] - data.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick()


def test_an_interrupted_training_ends_like_a_whole_one(tmp_path):
    whole = parts()
    train(*whole, 20)
    first = parts()
    train(*first, 8)
    save_checkpoint(tmp_path / 'a.checkpoint', *first)
    second = parts()
    load_checkpoint(tmp_path / 'a.checkpoint', *second)
    assert second[2].step == 8
    train(*second, 12)
    assert not second[2].running
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name


def test_a_failing_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, first = tmp_path / 'a.checkpoint', parts()
    save_checkpoint(path, *first)
    content = path.read_bytes()

    def fail(state, file):
        file.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr('torch.save', fail)
    train(*first, 2)
    with pytest.raises(OSError):
        save_checkpoint(path, *first)
    assert path.read_bytes() == content


def other_model(path):
    save_checkpoint(path, *parts(width=5))


def cut_short(path):
    save_checkpoint(path, *parts())
    path.write_bytes(path.read_bytes()[:1000])


def with_code(path):
    torch.save({'model': print, 'optimizer': {}, 'clock': {}}, path)


@pytest.mark.parametrize('damage', [
    other_model, cut_short, with_code, lambda path: path.write_bytes(b''),
    lambda path: path.write_text('text'), lambda path: torch.save({'model': {}}, path),
])
def test_a_foreign_or_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    path = tmp_path / 'field.checkpoint'
    damage(path)
    with pytest.raises(DataError, match='field.checkpoint.*delete it'):
        load_checkpoint(path, *parts())
