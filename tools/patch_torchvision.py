"""Lets `import torchvision` work beside a CPU build of torch in this virtual environment.

timm imports torchvision. Where the only torchvision at hand was built for CUDA, its compiled
operators do not load beside a CPU torch, and the import then fails because two of them are never
declared. Their declarations (no implementation) are enough for everything that timm uses.

Does nothing where torchvision imports already. Otherwise writes a module and a .pth file into the
site-packages of the interpreter that runs this. The .pth file costs nothing at start-up: the
operators are declared when torchvision is imported, and only for the two versions patched here,
so that a later pair of matching builds is left alone.

    python tools/patch_torchvision.py
"""

from importlib.metadata import version
from pathlib import Path
import subprocess
import sys
import sysconfig

MODULE_NAME = '_torchvision_operators'

MODULE = '''"""Declares two operators of torchvision before its import (patch_torchvision.py)."""

from importlib.metadata import PackageNotFoundError, version
import sys

VERSIONS = {versions!r}
libraries = []


class OperatorDeclarer:
    """A finder that finds nothing: it acts when torchvision is first looked for."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != 'torchvision' or libraries:
            return None
        try:
            if VERSIONS != {{name: version(name) for name in VERSIONS}}:
                return None
        except PackageNotFoundError:
            return None
        import torch

        library = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            library.define(
                operator + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
            )
        libraries.append(library)  # the declarations live as long as this object
        return None


sys.meta_path.insert(0, OperatorDeclarer)
'''


def torchvision_error() -> str:
    """The last line of the error of `import torchvision` in a fresh interpreter; '' if none."""
    result = subprocess.run(
        [sys.executable, '-c', 'import torchvision'], capture_output=True, text=True, check=False
    )
    return '' if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def main() -> int:
    """Patches the environment of this interpreter if it needs it; returns the exit code."""
    error = torchvision_error()
    if not error:
        print('torchvision imports: nothing to patch')
        return 0
    if 'torchvision::nms' not in error:
        print(f'torchvision does not import, and this patch is not the cure: {error}')
        return 1
    if sys.prefix == sys.base_prefix:
        print('Refusing to patch a Python that is not a virtual environment: ' + sys.prefix)
        return 1
    versions = {name: version(name) for name in ('torch', 'torchvision')}
    site_packages = Path(sysconfig.get_paths()['purelib'])
    (site_packages / f'{MODULE_NAME}.py').write_text(MODULE.format(versions=versions))
    (site_packages / f'{MODULE_NAME}.pth').write_text(f'import {MODULE_NAME}\n')
    error = torchvision_error()
    if error:
        print(f'torchvision still does not import after the patch: {error}')
        return 1
    print(f'Declared the missing operators of torchvision {versions["torchvision"]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
