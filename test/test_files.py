import errno
from types import SimpleNamespace

from nerfmatch_ros.files import write_text, written_atomically
import pytest


def test_text_arrives_whole_and_alone(tmp_path):
    write_text(tmp_path / 'deep' / 'a.txt', 'grün\n')
    assert (tmp_path / 'deep' / 'a.txt').read_bytes() == 'grün\n'.encode()
    assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['a.txt']


def test_failure_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / 'a.txt'
    write_text(path, 'old')
    with pytest.raises(RuntimeError), written_atomically(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_format_can_be_told_from_the_temporary_name(tmp_path):
    with written_atomically(tmp_path / 'a.png') as temporary:
        assert temporary.suffix == '.png' and temporary.parent == tmp_path
        temporary.touch()


@pytest.mark.parametrize(('error', 'free'), [
    (RuntimeError('unexpected pos 64 vs 0'), 512),  # torch
    (ValueError('I/O error: No space left on device (os error 28)'), 10**9),  # safetensors
    (OSError(errno.EDQUOT, 'Disk quota exceeded'), 10**9),
])
def test_a_full_disk_is_named_whatever_the_writer_says(tmp_path, monkeypatch, error, free):
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=free))
    with pytest.raises(OSError) as raised, written_atomically(tmp_path / 'a.pt') as temporary:
        temporary.write_text('half')
        raise error
    assert raised.value.errno == errno.ENOSPC and 'a.pt' in str(raised.value)
    assert not list(tmp_path.iterdir())
