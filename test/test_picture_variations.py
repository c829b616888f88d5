"""Harder photographs: what changes, by how much, and the same each time."""

from nerfmatch_ros.mapping.picture_variations import KINDS, vary
import numpy as np
import pytest

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
OTHERS = [np.full((30, 40, 3), 255, np.uint8)]


def varied(kind, hardness, others=OTHERS, picture=PICTURE):
    return vary(picture, kind, hardness, others, np.random.default_rng(1))


def change(kind, hardness):
    return np.abs(varied(kind, hardness).astype(float) - PICTURE).mean()


def test_a_plain_picture_stays():
    assert (varied('plain', 1.0) == PICTURE).all()


@pytest.mark.parametrize('kind', KINDS[1:])
def test_harder_is_further_from_the_picture_and_the_same_each_time(kind):
    before = PICTURE.copy()
    assert 0 < change(kind, 0.0) < change(kind, 1.0)
    assert varied(kind, 0.5).dtype == np.uint8 and varied(kind, 0.5).shape == PICTURE.shape
    assert (varied(kind, 0.5) == varied(kind, 0.5)).all()
    assert (PICTURE == before).all()


@pytest.mark.parametrize('hardness, share', [(0, 0.15), (1, 0.7)])
def test_foreign_pieces_cover_the_share_that_is_asked_for(hardness, share):
    foreign = (varied('foreign', hardness, picture=np.zeros_like(PICTURE)) > 0).all(-1).mean()
    assert share <= foreign < share + 0.16


def test_without_other_views_foreign_pieces_come_from_the_picture_upside_down():
    dark_above = np.zeros_like(PICTURE)
    dark_above[24:] = 200
    mixed = varied('foreign', 1.0, others=[], picture=dark_above)
    assert (mixed[:24] == 200).any() and set(np.unique(mixed)) == {0, 200}


def test_occluders_leave_the_rest_untouched():
    occluded = varied('occluded', 0.3)
    same = (occluded == PICTURE).all(-1).mean()
    assert 0.5 < same < 0.85


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'foggy' is unknown"):
        varied('foggy', 0.5)
