"""Cached views are read as NumPy wrote them, and nothing in such a file is ever run."""

import os
import pickle

from nerfmatch_ros.data.cached_view import cached_view_name, read_cached_view
from nerfmatch_ros.data.plain_pickle import read_pickled_arrays
from nerfmatch_ros.errors import DataError
import numpy as np
import pytest

HEADER = np.lib.format.magic(1, 0) + b'v\x00' + (
    b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b'\n')


def view(points=12, channels=5):
    """Give the dictionary of a view of so many points."""
    random = np.random.default_rng(3)
    return {
        'pt3d': random.normal(size=(points, 3)).astype(np.float32),
        'pt_feat': np.asfortranarray(random.normal(size=(points, channels)).astype(np.float32)),
        'pt_color': random.uniform(size=(points, 3)).astype(np.float32),
        'unnorm_scene': np.diag((23, 23, 23, 1)).astype(np.float32).T}


def save(path, content, protocol=4):
    """Write the file as `np.save` of the dictionary does."""
    array = np.empty((), object)
    array[()] = content
    path.write_bytes(HEADER + pickle.dumps(array, protocol))
    return path


@pytest.mark.parametrize('protocol', [3, 4])  # of NumPy before and since 2
def test_what_numpy_wrote_is_read(tmp_path, protocol):
    stored = view()
    read = read_cached_view(save(tmp_path / 'v.npy', stored, protocol))
    np.testing.assert_array_equal(read.points, stored['pt3d'])
    np.testing.assert_array_equal(read.features, stored['pt_feat'])
    np.testing.assert_array_equal(read.colour, stored['pt_color'])
    np.testing.assert_array_equal(read.map_from_scene, stored['unnorm_scene'])


def test_the_file_of_np_save_is_such_a_file(tmp_path):
    stored = {**view(), 'masks': np.array([[True, False]]), 'more': None,
              'big': np.arange(6, dtype='>i4').reshape(2, 3)}
    np.save(tmp_path / 'v.npy', stored)
    read = read_pickled_arrays(tmp_path / 'v.npy')
    assert set(read) == set(stored) - {'more'}
    for name, array in read.items():
        np.testing.assert_array_equal(array, stored[name])
    assert read['masks'].dtype == bool and read['big'].dtype == np.int32
    read['big'][0, 0] = 7  # its own memory


class Runs:
    """Pickles into a call of a function."""

    def __init__(self, *call):
        """Keep the call."""
        self.call = call

    def __reduce__(self):
        """Give the function and its arguments."""
        return self.call


@pytest.mark.parametrize('protocol', [0, 3, 4])
@pytest.mark.parametrize('inside', [True, False])
def test_a_file_that_would_run_something_is_refused(tmp_path, protocol, inside):
    proof = tmp_path / 'proof'
    attack = Runs(os.mkdir, (str(proof),))
    content = {**view(), 'masks': attack} if inside else attack
    file = save(tmp_path / 'v.npy', content, protocol)
    with pytest.raises(DataError, match='v.npy was refused: it would run (posix|nt|_codecs)'):
        read_cached_view(file)
    assert not proof.exists()
    # The attack is real: NumPy's own reader falls for it.
    np.load(file, allow_pickle=True)
    assert proof.exists()


def test_arrays_may_not_be_made_or_changed_in_unusual_ways(tmp_path):
    for content in (Runs(np.ndarray, ((10 ** 6,), 'O', b'')), Runs(np.dtype, ('f4',), 3)):
        with pytest.raises(DataError, match='v.npy'):
            read_cached_view(save(tmp_path / 'v.npy', {**view(), 'masks': content}))


def state_of(array, **changes):
    """Give a pickle that claims other things of an array than are true."""
    make, arguments, (version, shape, kind, order, content) = array.__reduce__()
    return Runs(make, arguments, (
        version, changes.get('shape', shape), kind, order, changes.get('content', content)))


@pytest.mark.parametrize('name, change, message', [
    ('pt3d', None, "no 'pt3d'"), ('pt3d', np.zeros((12, 2), np.float32), 'pt3d'),
    ('pt_feat', np.zeros((11, 5), np.float32), 'pt_feat'),
    ('pt_feat', np.array(1, np.float32), 'pt_feat'),
    ('pt_color', np.full((12, 3), np.nan, np.float32), 'pt_color.*finite'),
    ('unnorm_scene', np.eye(4, dtype=int), 'unnorm_scene.*int64'),
    ('masks', np.array([object()]), 'refused|type O'),
    ('masks', np.zeros(3, 'f4,i4'), 'refused|type V8'),
    ('masks', state_of(np.zeros(3), shape=(10 ** 9,)), 'do not fill'),
    ('masks', state_of(np.zeros(3), content=[1, 2]), 'dictionary of arrays')])
def test_what_is_no_view_is_named(tmp_path, name, change, message):
    content = {**view(), name: change}
    with pytest.raises(DataError, match=f'v.npy.*({message})'):
        read_cached_view(save(tmp_path / 'v.npy', content))


def test_broken_and_other_files_are_named(tmp_path):
    whole = save(tmp_path / 'v.npy', view()).read_bytes()
    for data in (b'', b'text', whole[:40], whole[:200], whole[:-30]):
        (tmp_path / 'v.npy').write_bytes(data)
        with pytest.raises(DataError, match='v.npy is no .npy file'):
            read_cached_view(tmp_path / 'v.npy')
    np.save(tmp_path / 'v.npy', np.zeros(3))
    with pytest.raises(DataError, match='float64'):
        read_cached_view(tmp_path / 'v.npy')
    with pytest.raises(DataError, match='cannot read .*none.npy'):
        read_cached_view(tmp_path / 'none.npy')


def test_names_are_those_of_the_release():
    assert cached_view_name('seq1/frame00003.png') == 'seq1_frame00003.npy'
    assert cached_view_name('seq-01/frame-000007.color.png') == 'seq-01_frame-000007.npy'
