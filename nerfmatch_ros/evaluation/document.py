"""Sections of a document that commands fill: each lies between two marks of its name."""

from pathlib import Path

from nerfmatch_ros.errors import ConfigError


def with_section(document: str, mark: str, text: str, *, head: str = '') -> str:
    """Put a section between the two marks of its name; at the end where there are none.

    head: what an empty document begins with.
    """
    document = document or head
    begin, end = f'<!-- {mark} -->', f'<!-- end of {mark} -->'
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if bool(found) != (end in document) or (found and not closed):
        raise ConfigError(f'the document has only one of the lines {begin} and {end}, or in the '
                          'wrong order; put both there or take both out')
    if not found:
        before, after = before.rstrip('\n') + '\n\n', '\n'
    return f'{before}{begin}\n{text}{end}{after}'


def text_of(path: Path) -> str:
    """Read a document; '' where there is none."""
    return Path(path).read_text(encoding='utf-8') if Path(path).exists() else ''


def row(*values: str) -> str:
    """Write a row of a Markdown table."""
    return f'| {" | ".join(values)} |'


def number(value: float | None, factor: float = 1.0) -> str:
    """Write a number with three digits; '-' where there is none."""
    if value is None:
        return '-'
    return f'{factor * value:.0f}' if abs(factor * value) >= 100 else f'{factor * value:.3g}'
