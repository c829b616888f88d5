"""Several views at once are matched as one after the other."""

from nerfmatch_ros.matching import view_matching
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.matching.view_matching import match_views
import pytest
import torch


@pytest.fixture(scope='module')
def matcher():
    torch.manual_seed(0)
    return make_matcher(MatcherConfig(
        kind='paper', backbone='convformer_s18', window=5, octaves=4, point_hidden=0,
        self_attention=1, cross_attention=1, threshold=0.0), 16).eval()


def views(matcher, generator, sizes):
    with torch.no_grad():
        image = matcher.encode_image(torch.rand(3, 48, 64, generator=generator))
        return image, [matcher.encode_points(torch.rand(size, 3, generator=generator),
                                             torch.rand(size, 16, generator=generator))
                       for size in sizes]


def test_a_batch_of_views_gives_the_pairs_of_each(matcher, generator):
    image, points = views(matcher, generator, (30, 30, 30))
    for found, view in zip(matcher.match_together(image, points), points):
        alone = matcher.match_coarse(image, view)
        assert torch.equal(found.cells, alone.cells) and len(found.cells)
        assert torch.equal(found.points, alone.points)
        torch.testing.assert_close(found.confidence, alone.confidence)
        torch.testing.assert_close(found.tokens, alone.tokens)


@pytest.mark.parametrize('sizes, together', [((30, 30), 1), ((30, 20), 0), ((30,), 0)])
def test_only_views_of_one_size_go_together(matcher, generator, sizes, together, monkeypatch):
    image, points = views(matcher, generator, sizes)
    calls = []
    monkeypatch.setattr(matcher, 'match_together',
                        lambda image, views: (calls.append(1), ['together'] * len(views))[1])

    class OnGpu:
        """Tokens that say they are on a GPU, where a batch pays."""

        def __init__(self, tokens):
            self.is_cuda, self._tokens = True, tokens

        def __getattr__(self, name):
            return getattr(self._tokens, name)

    claimed = view_matching.ImageTokens(image.coarse, image.fine, image.rows, image.columns)
    object.__setattr__(claimed, 'coarse', OnGpu(image.coarse))
    monkeypatch.setattr(matcher, 'match_coarse', lambda image, view: 'alone')
    found = match_views(matcher, claimed, points)
    assert len(calls) == together and len(found) == len(sizes)
    assert (found == ['alone'] * len(sizes)) != bool(together)
