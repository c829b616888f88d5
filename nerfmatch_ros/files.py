"""Files that are written whole or not at all, and known again by their checksum."""

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import os
from pathlib import Path


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """
    Give a temporary path beside `path`; on success it becomes `path`, on an error it vanishes.

    A reader, or a second run after a crash, meets either the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last because image writers choose the format by it.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        yield temporary
        with open(temporary, 'r+b') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8, with line ends as given."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding='utf-8', newline='')


def file_sha256(path: Path) -> str:
    """Give the SHA-256 of a file of any size, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
