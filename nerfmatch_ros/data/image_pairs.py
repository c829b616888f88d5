"""Pairs files, `query reference [score ...]` a line: which references to match a query with."""

from pathlib import Path

from nerfmatch_ros.errors import DataError


def read_pairs(path: Path) -> dict[str, list[str]]:
    """Give the references of each query, best first as in the file; a pair counts once."""
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'cannot read the pairs {path}: {error}') from error
    pairs: dict[str, dict[str, None]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise DataError(f'{path}, line {number}: expected `query reference [score ...]`, got '
                            f"'{line.strip()}'")
        pairs.setdefault(words[0], {})[words[1]] = None
    if not pairs:
        raise DataError(f'{path} holds no pairs; expected `query reference` a line')
    return {query: list(references) for query, references in pairs.items()}
