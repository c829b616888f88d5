"""Files written piece by piece are those that safetensors reads."""

from nerfmatch_ros.tensor_file import map_tensors, Pieces, write_tensors
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
