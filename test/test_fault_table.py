"""docs/faults.md has a row for every fault, and each of its tests is there."""

from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parent
ROWS = range(1, 41)
NAME = re.compile(r'`(test_\w+)`')


def table():
    """Give the tests that each row names, by its number."""
    rows = {}
    for line in (ROOT.parent / 'docs' / 'faults.md').read_text().splitlines():
        if match := re.match(r'\| (\d+) \|', line):
            assert int(match[1]) not in rows, f'row {match[1]} is there twice'
            rows[int(match[1])] = line
    return rows


def defined_tests():
    return {name for path in ROOT.rglob('test_*.py')
            for name in re.findall(r'^ *def (test_\w+)', path.read_text(), re.MULTILINE)}


def test_the_table_has_every_row_once_and_in_order():
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize('row', ROWS)
def test_a_row_names_its_fault_its_behaviour_and_tests_that_exist(row):
    cells = [cell.strip() for cell in table()[row].strip('|').split('|')]
    assert len(cells) == 4 and all(cells)
    tests = NAME.findall(cells[3])
    assert tests or 'needs a GPU' in cells[2]
    assert set(tests) <= defined_tests(), set(tests) - defined_tests()
    own = re.compile(rf'test_row_(\d+_(and|to)_)?0?{row}_|test_row_0?{row}_(and|to)_')
    assert any(own.match(test) for test in tests), f'none of them is named for row {row}'


def test_tests_named_outside_the_rows_exist():
    text = (ROOT.parent / 'docs' / 'faults.md').read_text()
    assert set(NAME.findall(text)) <= defined_tests()


def test_every_row_that_a_test_is_named_for_is_in_the_table():
    numbers = {int(number) for name in defined_tests() if name.startswith('test_row_')
               for number in re.match(r'test_row_(\d+)', name).groups()}
    assert numbers == set(ROWS)
