"""Files that are written whole or not at all, and known again by their checksum."""

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import hashlib
import os
from pathlib import Path
import shutil

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FULL = 1 << 16  # bytes that are left of a disk on which writing failed because it is full


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """
    Give a temporary path beside `path`; on success it becomes `path`, on an error it vanishes.

    A reader, or a second run after a crash, meets either the old file or the new one. A disk that
    is full is an OSError (ENOSPC), whatever the writer itself raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last because image writers choose the format by it.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        with full_disk_named(path):
            yield temporary
            with open(temporary, 'r+b') as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn what a writer raises for want of space into an OSError (ENOSPC) that names `path`."""
    try:
        yield
    except Exception as error:
        if _disk_is_full(error, path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _disk_is_full(error: Exception, folder: Path) -> bool:
    """Tell whether writing failed for want of space; libraries say so each in its own way."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _FULL


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
