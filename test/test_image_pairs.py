"""Pairs files: order, repetitions, and errors that name the line."""

from nerfmatch_ros.data.image_pairs import read_pairs
from nerfmatch_ros.errors import DataError
import pytest


def test_references_stay_in_order_and_further_columns_do_not_count(tmp_path):
    file = tmp_path / 'pairs.txt'
    file.write_text('q2 b 0.9\nq1 c 7 8 9\n\nq2 a 0.8\nq2 b 0.1\n')
    assert read_pairs(file) == {'q2': ['b', 'a'], 'q1': ['c']}


@pytest.mark.parametrize('text, message', [
    ('q a\nq\n', 'pairs.txt, line 2: .*query reference.*q'), ('\n', 'no pairs'),
    (b'\xff\xfe', 'cannot read')])
def test_what_is_no_pair_is_named(tmp_path, text, message):
    file = tmp_path / 'pairs.txt'
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_pairs(file)
    with pytest.raises(DataError, match='cannot read the pairs'):
        read_pairs(tmp_path / 'none.txt')
