"""Reference views are mapped from their file, and checked when they are used."""

from dataclasses import replace
import hashlib

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.references import (
    read_references,
    References,
    references_head_sha256,
    references_to_store,
)
from nerfmatch_ros.tensor_file import read_header, write_tensors
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

CAMERA = Camera('PINHOLE', 64, 48, 50.0, 50.0, 31.5, 23.5)
COUNTS = (5, 0, 700, 3)
NAMES = [f'{k}.png' for k in range(len(COUNTS))]
CAMERAS = [CAMERA] * len(COUNTS)


class View:
    """A view that tells what was asked of it."""

    def __init__(self, points, features, asked):
        self._points, self._features, self.asked = points, features, asked

    @property
    def points(self):
        self.asked.append('points')
        return self._points

    @property
    def features(self):
        self.asked.append('features')
        return self._features


@pytest.fixture
def views(generator):
    return [View(torch.randn(count, 3, generator=generator),
                 torch.randn(count, 16, generator=generator).half(), []) for count in COUNTS]


@pytest.fixture
def references(views, generator):
    return References(
        NAMES, CAMERAS, np.stack([np.eye(4)] * len(COUNTS)),
        torch.rand(len(COUNTS), 8, generator=generator),
        torch.tensor([0, *COUNTS]).cumsum(0), stored=views)


@pytest.fixture
def file(references, tmp_path):
    path = tmp_path / 'references.safetensors'
    write_tensors(path, references_to_store(references))
    return path


def flip(path, name, row):
    """Change the lowest bit of a byte of a tensor."""
    part = read_header(path)[name]
    content = bytearray(path.read_bytes())
    content[part.start + row * (part.end - part.start) // part.shape[0]] ^= 1
    path.write_bytes(content)


def mapped_kilobytes(path):
    """Give how much of a file's mappings into this process has been looked at."""
    total, inside = 0, False
    with open('/proc/self/smaps') as lines:
        for line in lines:
            if '-' in line.split()[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith('Rss:'):
                total += int(line.split()[1])
    return total


@pytest.mark.parametrize('check', [False, True])
def test_what_was_stored_is_read_view_by_view(file, views, check):
    read = read_references(file, NAMES, CAMERAS, check_views=check)
    for k, view in enumerate(views):
        points, features = read.view(k)
        assert torch.equal(points, view.points) and torch.equal(features, view.features)


def test_a_view_is_a_part_of_the_file_and_not_a_copy(file):
    read = read_references(file, NAMES, CAMERAS)
    for part, whole in zip(read.view(2), (read.points, read.features)):
        assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    again = read.view(2)
    assert again[0].data_ptr() == read.view(2)[0].data_ptr()


def test_only_views_that_are_used_take_memory(tmp_path, generator):
    count, each = 64, 4096
    whole = References(
        [str(k) for k in range(count)], [CAMERA] * count, np.stack([np.eye(4)] * count),
        torch.rand(count, 8, generator=generator), torch.arange(count + 1) * each,
        torch.zeros(count * each, 3), torch.zeros(count * each, 32).half())
    path = tmp_path / 'references.safetensors'
    write_tensors(path, references_to_store(whole))
    read = read_references(path, whole.names, whole.cameras, check_views=True)
    before = mapped_kilobytes(path)
    read.view(40)
    view = each * (3 * 4 + 32 * 2) / 1024
    # The system may read ahead around what is looked at, but not half of 64 views.
    assert view <= mapped_kilobytes(path) - before < 32 * view


def test_digests_are_those_of_points_and_features(file, views):
    stored = load_file(file)['digests']
    for k, view in enumerate(views):
        expected = hashlib.sha256(
            view.points.numpy().tobytes() + view.features.numpy().tobytes()).digest()
        assert bytes(stored[k].tolist()) == expected


@pytest.mark.parametrize('name', ['points', 'features'])
def test_a_damaged_view_is_refused_and_the_others_are_not(file, name):
    flip(file, name, row=300)
    assert read_references(file, NAMES, CAMERAS).view(2)[0].shape == (700, 3)  # not looked for
    read = read_references(file, NAMES, CAMERAS, check_views=True)
    for k in (0, 1, 3):
        read.view(k)
    with pytest.raises(MapError, match='reference view 2.png is damaged'):
        read.view(2)
    with pytest.raises(MapError, match='reference view 2.png is damaged'):
        read.view(2)


@pytest.mark.parametrize('check', [False, True])
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('name', ['points', 'features'])
def test_views_that_hold_no_numbers_are_refused(references, views, tmp_path, name, value, check):
    getattr(views[2], name)[699, 0] = value
    path = tmp_path / 'references.safetensors'
    write_tensors(path, references_to_store(references))
    read = read_references(path, NAMES, CAMERAS, check_views=check)
    read.view(3)
    with pytest.raises(MapError, match='reference view 2.png holds NaN or infinity'):
        read.view(2)


def test_a_view_is_checked_once_and_again_where_others_take_its_place(file):
    read = read_references(file, NAMES, CAMERAS, check_views=True)
    read.view(2)
    read.points[300] = torch.nan  # the file stays as it is
    read.view(2)
    with pytest.raises(MapError, match='2.png'):
        replace(read, points=read.points.clone()).view(2)
    assert read_references(file, NAMES, CAMERAS).view(2)[0].isfinite().all()


def test_the_head_vouches_for_all_but_the_views(file, tmp_path):
    first = references_head_sha256(file)
    for name in ('points', 'features'):
        flip(file, name, row=300)
    assert references_head_sha256(file) == first
    for name in ('starts', 'descriptors', 'map_from_camera', 'digests'):
        other = tmp_path / name
        other.write_bytes(file.read_bytes())
        flip(other, name, row=2)
        assert references_head_sha256(other) != first, name
    content = file.read_bytes().replace(b'"shape": [4, 8]', b'"shape": [8, 4]')
    file.write_bytes(content)
    assert references_head_sha256(file) != first


def test_views_are_read_once_to_be_stored(file, views):
    for view in views[1:]:
        assert view.asked == ['points', 'features']


def test_coordinates_alone_need_no_features(references, views, tmp_path):
    for view in views:
        view._features = None
    path = tmp_path / 'references.safetensors'
    write_tensors(path, references_to_store(references))
    read = read_references(path, NAMES, CAMERAS, check_views=True)
    assert read.view(2)[1] is None and 'features' not in read_header(path)
    assert torch.equal(read.view(2)[0], views[2].points)


def test_tokens_lie_under_their_own_name(references, views, tmp_path):
    path = tmp_path / 'references.safetensors'
    write_tensors(path, references_to_store(replace(references, holds='tokens')))
    assert 'features' not in read_header(path) and read_header(path)['tokens'].shape == (708, 16)
    read = read_references(path, NAMES, CAMERAS, holds='tokens')
    assert torch.equal(read.view(2)[1], views[2].features)


def test_files_of_other_writers_without_digests_are_read(file, views):
    tensors = load_file(file)
    del tensors['digests']
    save_file(tensors, file)
    assert torch.equal(read_references(file, NAMES, CAMERAS).view(2)[1], views[2].features)
    with pytest.raises(LookupError, match='digests'):
        read_references(file, NAMES, CAMERAS, check_views=True)
