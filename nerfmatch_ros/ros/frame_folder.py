"""The folder that frames are extracted into: whole files only, a journal, and whose it is."""

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import json
from pathlib import Path
from typing import Any

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import write_text, written_atomically

PICTURES = 'images'
MARK = 'extraction.json'  # which bag and options; and whether all of it is there
JOURNAL = 'progress.jsonl'


def is_extraction(folder: Path) -> bool:
    """Tell whether a folder holds the photographs of a bag."""
    return (Path(folder) / MARK).is_file()


class FrameFolder:
    """What an extraction leaves on the disk, also when it is killed."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def finished(self) -> bool:
        """Whether everything is there."""
        try:
            return bool(json.loads((self.folder / MARK).read_text())['finished'])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def begin(self, identity: Any) -> list[dict]:
        """
        Make the folder or go on in it, and give the journal of what is done.

        identity: what is extracted and how, for JSON. Raises a DataError where the folder holds
        anything else.
        """
        with self.guarded():
            mark = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
            path = self.folder / MARK
            if path.is_file() and self._begun():
                self._check(mark)
            elif not path.is_file() and self.folder.exists() and (
                    not self.folder.is_dir() or any(self.folder.iterdir())):
                raise DataError(f'{self.folder} is not empty and holds no frames of a bag; '
                                'choose another folder')
            else:
                (self.folder / PICTURES).mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps({'mark': mark, 'finished': False}))
                (self.folder / JOURNAL).unlink(missing_ok=True)
            (self.folder / PICTURES).mkdir(exist_ok=True)
            for torn in (*self.folder.glob('.*'), *(self.folder / PICTURES).glob('.*')):
                torn.unlink()
            return self._journal()

    def note(self, record: dict) -> None:
        """Write down that a segment is done; its picture is there already."""
        with self.guarded(), open(self.folder / JOURNAL, 'a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')

    def write_picture(self, name: str, content: bytes) -> None:
        """Write a picture whole or not at all; name: relative to the folder."""
        with self.guarded(), written_atomically(self.folder / name) as temporary:
            temporary.write_bytes(content)

    def finish(self) -> None:
        """Say that everything is there."""
        with self.guarded():
            path = self.folder / MARK
            write_text(path, json.dumps({**json.loads(path.read_text()), 'finished': True}))
            (self.folder / JOURNAL).unlink(missing_ok=True)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn what a full disk or a folder without permission raises into a DataError."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f'{self.folder} cannot be written: {error}. What is there is whole; make room or '
                'give write permission and repeat the command, it goes on from here') from error

    def _begun(self) -> bool:
        """Tell whether a picture is there: of a bag that could not be read there is none."""
        return any((self.folder / PICTURES).glob('[!.]*'))

    def _check(self, mark: str) -> None:
        try:
            found = json.loads((self.folder / MARK).read_text())['mark']
        except (ValueError, KeyError, TypeError):
            found = None
        if found != mark:
            raise DataError(
                f'{self.folder} holds frames of another bag or with other options; repeat that '
                'command to finish it, or delete the folder to start anew')

    def _journal(self) -> list[dict]:
        """Read the journal up to where it was torn, and mend it."""
        path = self.folder / JOURNAL
        if not path.is_file():
            return []
        records = []
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        write_text(path, ''.join(json.dumps(record) + '\n' for record in records))
        return records
