"""An encoder that is replayed from a CUDA graph, or computed where there can be none."""

from nerfmatch_ros.matching.cuda_graph import GraphedEncoder
import pytest
import torch


def encode(images):
    return images.mean(1, keepdim=True), None


def test_without_a_gpu_it_is_computed_and_said_once_a_shape(caplog, monkeypatch):
    def refused(self, images):
        raise RuntimeError('no CUDA here\nand more')

    monkeypatch.setattr(GraphedEncoder, '_capture', refused)
    graphed = GraphedEncoder(encode)
    for size in (8, 8, 16):
        images = torch.rand(1, 3, size, size)
        assert torch.equal(graphed(images)[0], encode(images)[0])
    assert [record.getMessage() for record in caplog.records] == [
        f'pictures of shape (1, 3, {size}, {size}) are encoded without a CUDA graph: no CUDA here'
        for size in (8, 16)]


def test_the_shapes_not_seen_for_longest_are_forgotten(monkeypatch):
    captured = []
    monkeypatch.setattr(GraphedEncoder, '_capture',
                        lambda self, images: (captured.append(len(images[0, 0])), encode)[1])
    graphed = GraphedEncoder(encode)
    for size in (1, 2, 3, 4, 1, 5, 1, 2):
        graphed(torch.rand(1, 3, size, 8))
    assert captured == [1, 2, 3, 4, 5, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_a_replay_gives_what_the_encoder_gives():
    network = torch.nn.Conv2d(3, 4, 3).cuda().eval()
    graphed = GraphedEncoder(lambda images: (network(images), None))
    with torch.inference_mode():
        first, second = (torch.rand(1, 3, 16, 16, device='cuda') for _ in range(2))
        found = graphed(first)[0]
        torch.testing.assert_close(graphed(second)[0], network(second))
        torch.testing.assert_close(found, network(first))
