"""Files written piece by piece are those that safetensors reads."""

import json
import struct

from nerfmatch_ros.tensor_file import map_tensors, Pieces, read_header, write_tensors
import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch


def test_what_is_written_in_pieces_is_read_whole(tmp_path, generator):
    whole = {'half': torch.randn(7, 3, generator=generator).half(),
             'number': torch.tensor([0, 3, 2 ** 40]),
             'double': torch.randn(2, 4, 4, generator=generator, dtype=torch.float64),
             'single': torch.randn(5, 3, generator=generator), 'none': torch.zeros(0, 3),
             'byte': torch.tensor([[1.0, 2.0, -3.5]]).to(torch.float8_e5m2),
             'one': torch.tensor(4.0), 'truth': torch.tensor([True, False])}
    pieces = {**whole, 'half': Pieces(torch.float16, (7, 3), (
                  whole['half'][k:k + 3] for k in (0, 3, 6))),
              'single': Pieces(torch.float32, (5, 3), [
                  whole['single'][:0], whole['single'][:4], whole['single'][4:]])}
    write_tensors(tmp_path / 'a.safetensors', pieces)
    read = load_file(tmp_path / 'a.safetensors')
    assert read.keys() == whole.keys()
    for name, value in whole.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape, name
        assert torch.equal(read[name].double(), value.double()), name
        mapped = map_tensors(tmp_path / 'a.safetensors')[name]
        assert mapped.dtype == value.dtype and mapped.shape == value.shape, name
        assert torch.equal(mapped.double(), value.double()), name
    with safe_open(tmp_path / 'a.safetensors', 'pt') as opened:
        assert torch.equal(opened.get_slice('half')[2:5], whole['half'][2:5])


@pytest.mark.parametrize('pieces', [
    [torch.zeros(2, 3)], [torch.zeros(4, 2)], [torch.zeros(4, 3).half()]])
def test_pieces_that_do_not_make_the_whole_are_refused(tmp_path, pieces):
    with pytest.raises(ValueError, match='of points'):
        write_tensors(tmp_path / 'a', {'points': Pieces(torch.float32, (4, 3), pieces)})


def written(path):
    write_tensors(path, {'points': torch.arange(12.0).view(4, 3), 'more': torch.ones(2).half()})
    return path


def with_header(change):
    def damage(content):
        length = struct.unpack('<Q', content[:8])[0]
        header = json.loads(content[8:8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack('<Q', len(text)) + text + content[8 + length:]
    return damage


@pytest.mark.parametrize('damage', [
    lambda content: b'', lambda content: content[:5], lambda content: content[:40],
    lambda content: content[:-1], lambda content: struct.pack('<Q', 2 ** 60) + content[8:],
    lambda content: content[:8] + b'x' + content[9:],
    lambda content: struct.pack('<Q', 2) + b'[]' + content[8:],
    with_header(lambda h: h['points'].update(shape=[5, 3])),
    with_header(lambda h: h['points'].update(shape=[-4, -3])),
    with_header(lambda h: h['points'].update(shape=[4, 3.0])),
    with_header(lambda h: h['points'].update(dtype='F7')),
    with_header(lambda h: h['points'].update(data_offsets=[-48, 0])),
    with_header(lambda h: h['points'].update(data_offsets=[0])),
    with_header(lambda h: h['more'].update(data_offsets=[1000, 1004])),
    with_header(lambda h: h['more'].pop('shape'))])
def test_files_that_their_header_does_not_describe_are_refused(tmp_path, damage):
    path = written(tmp_path / 'a.safetensors')
    path.write_bytes(damage(path.read_bytes()))
    for reader in (read_header, map_tensors):
        with pytest.raises(ValueError, match='a.safetensors'):
            reader(path)


def test_tensors_of_any_place_in_the_file_are_mapped(tmp_path):
    """Another writer may not begin a tensor at a multiple of its size."""
    path = tmp_path / 'a'
    values = torch.tensor([1.5, -2.0])
    header = json.dumps({'__metadata__': {'format': 'pt'},
                         'byte': {'dtype': 'U8', 'shape': [1], 'data_offsets': [0, 1]},
                         'odd': {'dtype': 'F32', 'shape': [2], 'data_offsets': [1, 9]}}).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + b'\7' + values.numpy().tobytes())
    read = map_tensors(path)
    assert read.keys() == {'byte', 'odd'} and torch.equal(read['odd'], values)
    assert read['odd'].data_ptr() % 4 == 0 and read['byte'].item() == 7
    assert map_tensors(path, ['byte']).keys() == {'byte'}
