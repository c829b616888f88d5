"""Retrieval with the matcher's tokens."""

import sys

from nerfmatch_ros import retrieval
from nerfmatch_ros.retrieval import describe, fit_words, nearest, RetrievalIndex
import pytest
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


def drive(generator, count=3000, channels=24):
    """Descriptors along a way: those of neighbours are alike, as those of photographs are."""
    steps = torch.randn(count, channels, generator=generator)
    return F.normalize(F.normalize(steps.cumsum(0), dim=-1).abs().sqrt(), dim=-1)


def queries(references, generator, count=40):
    chosen = torch.randint(len(references), (count,), generator=generator)
    noise = 0.02 * torch.randn(count, references.shape[1], generator=generator)
    return F.normalize(references[chosen] + noise, dim=-1)


def test_few_references_are_all_compared(generator):
    references = drive(generator, 200)
    index = RetrievalIndex(references.half())
    assert index.exact
    for query in queries(references, generator, 5):
        for found, expected in zip(index.nearest(query, 7), nearest(query, references.half(), 7)):
            assert torch.equal(found, expected)


def test_many_references_are_found_in_their_groups(generator, monkeypatch, caplog):
    pytest.importorskip('faiss')
    caplog.set_level('INFO', logger='nerfmatch_ros')
    monkeypatch.setattr(retrieval, 'EXACT_UP_TO', 1000)
    monkeypatch.setattr(retrieval, '_PROBED', 12)
    references = drive(generator)
    index = RetrievalIndex(references)
    assert not index.exact and 'searched in 12 of 62 groups' in caplog.text
    shared, firsts = 0, 0
    asked = queries(references, generator)
    for query in asked:
        numbers, scores = index.nearest(query, 10)
        expected, _ = nearest(query, references, 10)
        torch.testing.assert_close(scores, references[numbers] @ query)
        assert (scores.diff() <= 0).all() and len(set(numbers.tolist())) == 10
        shared += len(set(numbers.tolist()) & set(expected.tolist()))
        firsts += int(numbers[0] == expected[0])
    assert shared > 0.95 * 10 * len(asked) and firsts >= len(asked) - 1


def test_the_same_groups_are_made_each_time(generator, monkeypatch):
    pytest.importorskip('faiss')
    monkeypatch.setattr(retrieval, 'EXACT_UP_TO', 1000)
    references = drive(generator)
    first, second = RetrievalIndex(references), RetrievalIndex(references)
    for query in queries(references, generator, 10):
        assert torch.equal(first.nearest(query, 5)[0], second.nearest(query, 5)[0])


def test_more_than_the_searched_groups_hold_is_found_nevertheless(generator, monkeypatch):
    pytest.importorskip('faiss')
    monkeypatch.setattr(retrieval, 'EXACT_UP_TO', 1000)
    monkeypatch.setattr(retrieval, '_PROBED', 1)
    references = drive(generator)
    numbers, _ = RetrievalIndex(references).nearest(references[7], 2000)
    assert torch.equal(numbers, nearest(references[7], references, 2000)[0])


def test_without_faiss_the_search_is_exact_and_says_how_it_would_be_faster(
        generator, monkeypatch, caplog):
    monkeypatch.setattr(retrieval, 'EXACT_UP_TO', 1000)
    monkeypatch.setitem(sys.modules, 'faiss', None)
    references = drive(generator)
    index = RetrievalIndex(references)
    assert index.exact and 'nerfmatch_ros[scale]' in caplog.text and '3000' in caplog.text
    found, expected = index.nearest(references[2], 4), nearest(references[2], references, 4)
    assert torch.equal(found[0], expected[0])
