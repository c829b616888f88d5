"""The engine: one process or several behave alike, and wrong environments are named."""

import time

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.engine import from_first, gathered, make_engine, once, total
from nerfmatch_ros.mapping.training_clock import TrainingClock
import numpy as np
from processes import run_together
import pytest
import torch
from torch import nn


def line(engine):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    return module, optimizer, *engine.setup(module, optimizer)


def gradient_of_shares() -> np.ndarray:
    """Gradient of a loss whose batch of 8 is shared by the processes."""
    engine = make_engine('cpu')
    module, _, wrapped, _ = line(engine)
    batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    engine.backward(wrapped(batch[engine.global_rank::engine.world_size]).square().mean())
    return module.weight.grad.numpy()


def speak(folder) -> dict:
    """What a process sees of the others."""
    engine = make_engine('cpu')
    rank = engine.global_rank
    once(engine, lambda: (folder / 'first').write_text(str(rank)))
    seen = (folder / 'first').read_text()
    engine.barrier()  # nobody reads what is gone
    once(engine, (folder / 'first').unlink)
    clock = TrainingClock(steps=10 ** 6, minutes=10.0, engine=engine)
    clock.tick()
    time.sleep(0.05 * rank)
    clock.tick()
    module, optimizer, *_ = line(engine)
    missing = load_checkpoint(folder / 'none', module, optimizer, clock, engine=engine)
    module.weight.data += rank
    save_checkpoint(folder / 'checkpoint', module, optimizer, clock, engine=engine)
    loaded = load_checkpoint(folder / 'checkpoint', module, optimizer, clock, engine=engine)
    return {'rank': rank, 'seen': seen, 'progress': clock.progress, 'missing': missing,
            'loaded': loaded, 'weight': module.weight.tolist(),
            'first': from_first(engine, 5.0 + rank),
            'gathered': gathered(engine, torch.arange(1 + rank)).tolist(),
            'total': total(engine, torch.tensor([1.0, rank])).tolist()}


def test_one_process_needs_no_others(tmp_path):
    alone = speak(tmp_path)
    assert alone['first'] == 5.0 and alone['total'] == [1, 0]
    assert alone['loaded'] and not alone['missing']


def test_the_first_process_writes_and_its_clock_counts(tmp_path):
    one, two = run_together(2, speak, tmp_path)
    assert (one['rank'], two['rank']) == (0, 1)
    assert one['seen'] == two['seen'] == '0' and not list(tmp_path.glob('*.tmp'))
    assert one['progress'] == two['progress'] > 0
    assert one['weight'] == two['weight']  # what the first one saved
    assert one['loaded'] and two['loaded'] and not one['missing'] and not two['missing']
    assert one['first'] == two['first'] == 5.0
    assert one['total'] == two['total'] == [2, 1]
    assert one['gathered'] == two['gathered'] == [0, 0, 0, 1]


def test_two_shares_of_a_batch_give_the_gradient_of_the_whole():
    whole = gradient_of_shares()
    for shared in run_together(2, gradient_of_shares):
        np.testing.assert_allclose(shared, whole, rtol=1e-5)


@pytest.mark.parametrize('settings, words', [
    ({'WORLD_SIZE': 'two'}, "WORLD_SIZE is 'two'"),
    ({'WORLD_SIZE': '2'}, 'RANK'),
    ({'WORLD_SIZE': '3', 'LOCAL_WORLD_SIZE': '2', 'RANK': '0', 'LOCAL_RANK': '0'},
     'same --nproc-per-node'),
])
def test_environments_that_torchrun_does_not_make_are_refused(monkeypatch, settings, words):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        make_engine('cpu')


def test_more_processes_than_devices_are_refused(monkeypatch):
    for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE'):
        monkeypatch.setenv(name, str(torch.cuda.device_count() + 2))
    for name in ('RANK', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '0')
    with pytest.raises(ConfigError, match='CUDA devices'):
        make_engine('cuda:0')
