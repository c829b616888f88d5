from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[1]


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'], cwd=ROOT, text=True,
        capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
