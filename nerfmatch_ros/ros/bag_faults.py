"""What is wrong with the files of a bag that cannot be opened, told by their two ends."""

from pathlib import Path

ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'  # a compressed file or message begins with it; no CDR does
SUFFIXES = ('.mcap', '.db3')
REPAIR = ('repair a copy of it with `mcap recover FILE -o NEW.mcap` (mcap) or '
          "`sqlite3 FILE '.recover' | sqlite3 NEW.db3` (db3), and give the new file as the bag")
_MCAP_MAGIC = b'\x89MCAP0\r\n'  # at both ends
_SQLITE_MAGIC = b'SQLite format 3\0'


def fault_of(path: Path) -> str:
    """Say what ails a bag that cannot be opened, and what to do; '' where that is not known.

    path: a folder, of which the first file with a fault counts, or a file.
    """
    try:
        return _fault_of(path)
    except OSError:
        return ''


def _fault_of(path: Path) -> str:
    whole = path.is_dir() and (path / 'metadata.yaml').exists()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            continue
        if not whole and _begins(file, ZSTD_MAGIC):
            return (f'{file.name} is compressed as a whole (zstd), which is undone only by the '
                    f'metadata.yaml of its folder: give the folder with that, or run '
                    f'`zstd -d {file.name}` and give what that writes')
        if any(file.name.endswith(suffix) for suffix in SUFFIXES) and (cut := _cut_off(file)):
            return (f'{file.name} {cut}: the recorder was killed, the disk was full, or it was '
                    f'not copied whole; {REPAIR}')
    return ''


def _cut_off(file: Path) -> str:
    """Say that a file ends too early; '' where it does not, or is no file of a bag."""
    size = file.stat().st_size
    if _begins(file, _MCAP_MAGIC):
        with open(file, 'rb') as content:
            content.seek(-min(size, len(_MCAP_MAGIC)), 2)
            if content.read() != _MCAP_MAGIC or size < 2 * len(_MCAP_MAGIC):
                return f'ends after {size} bytes in the middle of a record'
    elif _begins(file, _SQLITE_MAGIC):
        with open(file, 'rb') as content:
            head = content.read(32)
        page = int.from_bytes(head[16:18], 'big')
        expected = (1 << 16 if page == 1 else page) * int.from_bytes(head[28:32], 'big')
        if size < expected:
            return f'has {size} of its {expected} bytes'
    return ''


def _begins(file: Path, magic: bytes) -> bool:
    with open(file, 'rb') as content:
        return content.read(len(magic)) == magic
