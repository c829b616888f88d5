"""Retrieval with the matcher's tokens."""

from nerfmatch_ros.retrieval import describe, fit_words, nearest
import torch
import torch.nn.functional as F


def clusters(generator, count=6, each=40, channels=16, spread=0.15):
    centres = F.normalize(torch.randn(count, channels, generator=generator), dim=-1)
    noise = torch.randn(count, each, channels, generator=generator)
    return centres, F.normalize(centres[:, None] + spread * noise, dim=-1)


def test_words_are_the_clusters_of_the_descriptors(generator):
    centres, members = clusters(generator)
    words = fit_words(members.reshape(-1, 16), 30)
    assert words.shape == (30, 16)
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(30))
    assert (centres @ words.T).amax(1).min() > 0.8


def test_words_are_deterministic_and_never_more_than_descriptors(generator):
    descriptors = clusters(generator)[1].reshape(-1, 16)
    assert torch.equal(fit_words(descriptors, 8), fit_words(descriptors, 8))
    assert len(fit_words(descriptors[:5], 8)) == 5


def test_an_image_finds_itself_and_then_its_neighbours(generator):
    centres, _ = clusters(generator, count=12)
    # View k shows the places k to k + 3, in random shares, with noise.
    views = []
    for k in range(9):
        place = k + torch.randint(4, (80,), generator=generator)
        noise = 0.2 * torch.randn(80, 16, generator=generator)
        views.append(F.normalize(centres[place] + noise, dim=-1))
    words = fit_words(torch.cat(views), 16)
    references = torch.stack([describe(cells, words, 20.0) for cells in views])
    torch.testing.assert_close(references.norm(dim=-1), torch.ones(9))
    for k, cells in enumerate(views):
        again = F.normalize(cells + 0.1 * torch.randn(80, 16, generator=generator), dim=-1)
        indices, scores = nearest(describe(again, words, 20.0), references.half(), 3)
        assert indices[0] == k
        assert all(abs(j - k) <= 3 for j in indices.tolist())
        assert (scores.diff() <= 0).all()


def test_no_more_references_are_given_than_there_are(generator):
    references = F.normalize(torch.rand(4, 8, generator=generator), dim=-1)
    indices, scores = nearest(references[2], references, 10)
    assert indices[0] == 2 and sorted(indices.tolist()) == [0, 1, 2, 3] and len(scores) == 4
