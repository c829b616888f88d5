"""Published checkpoints are read as data: hyper-parameters are kept, foreign code never runs."""

import argparse
import os
import pathlib

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.importers.official_checkpoint import read_official_checkpoint
import pytest
import torch


def save(path, **changes):
    content = {
        'epoch': 15, 'pytorch-lightning_version': '1.5.10', 'callbacks': {},
        'state_dict': {'model.a': torch.arange(3.0)},
        'hyper_parameters': {
            'data': argparse.Namespace(
                scene='ShopFacade', depth=50, deep=[argparse.Namespace(x=1)]),
            'exp': argparse.Namespace(odir=pathlib.PurePosixPath('outputs/nerf'))}, **changes}
    torch.save(content, path)
    return path


class MakesFile:
    """What a malicious checkpoint holds: unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def test_weights_and_nested_options_are_read(tmp_path):
    read = read_official_checkpoint(save(tmp_path / 'a.ckpt'))
    assert torch.equal(read.weights['model.a'], torch.arange(3.0))
    assert read.option('data', 'scene') == 'ShopFacade'
    assert read.option('data', 'deep') == [{'x': 1}]
    assert read.option('exp', 'odir') == 'outputs/nerf'
    assert read.option('data', 'absent', default=7) == 7
    assert read.require('data', 'depth', among=(1, 50)) == 50
    with pytest.raises(DataError, match="data.scene is 'ShopFacade'; only 'x'"):
        read.require('data', 'scene', among=('x',))


def test_paths_of_this_system_are_read(tmp_path):
    path = save(tmp_path / 'a.ckpt', hyper_parameters={'odir': pathlib.Path('outputs/nerf')})
    assert read_official_checkpoint(path).option('odir') == 'outputs/nerf'


@pytest.mark.parametrize('where', ['hyper_parameters', 'state_dict', 'callbacks', 'extra'])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, where):
    victim = tmp_path / 'created'
    path = save(tmp_path / 'a.ckpt', **{where: {'x': MakesFile(victim)}})
    with pytest.raises(DataError, match=r'refused: it asks to run code \((posix|nt)\.system\)'):
        read_official_checkpoint(path)
    assert not victim.exists()


def test_a_plain_pickle_that_would_run_code_is_refused(tmp_path):
    import pickle
    victim, path = tmp_path / 'created', tmp_path / 'a.ckpt'
    path.write_bytes(pickle.dumps({'state_dict': MakesFile(victim)}))
    with pytest.raises(DataError, match=r'a\.ckpt'):
        read_official_checkpoint(path)
    assert not victim.exists()


@pytest.mark.parametrize('content, message', [
    (b'', 'cannot be read|no PyTorch checkpoint'), (b'PK\x03\x04 broken', 'cannot be read'),
    (b'hello world, no pickle', 'cannot be read|no PyTorch checkpoint')])
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / 'a.ckpt'
    path.write_bytes(content)
    with pytest.raises(DataError, match=f'a.ckpt.*({message})'):
        read_official_checkpoint(path)


def test_options_that_hold_themselves_are_refused(tmp_path):
    endless = argparse.Namespace()
    endless.again = endless
    with pytest.raises(DataError, match='hold themselves'):
        read_official_checkpoint(save(tmp_path / 'a.ckpt', hyper_parameters={'data': endless}))


def test_other_files_are_named(tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        read_official_checkpoint(tmp_path / 'absent.ckpt')
    with pytest.raises(DataError, match='no state_dict'):
        read_official_checkpoint(save(tmp_path / 'a.ckpt', state_dict={'a': 'b'}))
    bad = save(tmp_path / 'a.ckpt', state_dict={'model.b': torch.tensor([1.0, float('nan')])})
    with pytest.raises(DataError, match='model.b holds NaN'):
        read_official_checkpoint(bad)
