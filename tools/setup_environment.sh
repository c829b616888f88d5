#!/usr/bin/env bash
# Sets up a virtual environment for the demo and the tests: tools/setup_environment.sh FOLDER
# Needs python3 (3.10 or later) with venv; PYTHON names another interpreter. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:?usage: tools/setup_environment.sh FOLDER}
python=${PYTHON:-python3}

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

command -v "$python" > /dev/null || fail "$python is not installed; install Python 3.10 or later"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || fail "$("$python" --version) is too old; set PYTHON to a Python 3.10 or later"
if [ ! -x "$venv/bin/python" ]; then
    say "virtual environment $venv ($("$python" --version))"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        fail "$python cannot make a virtual environment; install python3-venv"
    }
fi
bin=$venv/bin
install() { "$bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

say 'torch (a large download where it is not cached)'
install -r requirements/torch.txt
say 'libraries'
install -r requirements/base.txt
install --no-deps -r requirements/no-deps.txt
"$bin/python" tools/patch_torchvision.py
say 'test tools'
install -r requirements/dev.txt

# The wheels exist for CPython 3.10 to 3.14 on x86-64 Linux with glibc.
if "$bin/python" - << 'PYTHON'
import platform, sys
fits = (platform.system(), platform.machine()) == ('Linux', 'x86_64')
fits = fits and platform.libc_ver()[0] == 'glibc' and sys.implementation.name == 'cpython'
sys.exit(not (fits and (3, 10) <= sys.version_info[:2] <= (3, 14)))
PYTHON
then
    say 'ROS 2 wheels'
    install -r requirements/ros-wheels.txt
    if "$bin/python" -c 'import tf2_msgs.msg' 2> /dev/null; then
        say 'tf2_msgs is there'
    elif ! command -v gcc > /dev/null || ! command -v g++ > /dev/null; then
        say 'gcc and g++ are not installed: tf2_msgs cannot be built, so the node publishes no /tf'
    else
        say 'tf2_msgs'
        "$bin/python" tools/generate_tf2_msgs.py
    fi
else
    say "no ROS 2 wheels for $(uname -sm), $("$bin/python" --version): going on without the node"
fi
