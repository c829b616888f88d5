"""Arrays from a pickled dictionary in a .npy file, without running any code of the file.

NumPy's own reader of such files unpickles whatever is in them, which may be any program. Here a
pickle may name nothing but NumPy's array and number type, and even these are stand-ins that only
take notes: NumPy believes what a pickle says of an array's memory, so the real ones are not safe.
"""

import io
import math
from pathlib import Path
import pickle
from typing import Any

from nerfmatch_ros.errors import DataError
import numpy as np

_KINDS = 'fiub'  # floating point, whole numbers, booleans: plain memory without references


def read_pickled_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a .npy file of one dictionary: its arrays of numbers by name, plain values left out."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror}') from error
    try:
        stored = _Unpickler(io.BytesIO(data[_end_of_header(data):])).load()
        content = stored.only_item()
        return {name: value.array() for name, value in content.items()
                if isinstance(value, _StoredArray)}
    except _ForbiddenError as error:
        raise DataError(f'{path} was refused: {error}. A file of arrays needs no such thing; get '
                        'it from somebody you trust') from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f'{path} is no .npy file with a dictionary of arrays: {error!r}; write it '
                        'again') from error


def _end_of_header(data: bytes) -> int:
    """Check the header of a .npy file with one object in it and give where the pickle begins."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read(file)
    if shape != () or dtype.kind != 'O':
        raise ValueError(f'it holds an array of shape {shape} and type {dtype}')
    return file.tell()


class _ForbiddenError(Exception):
    """The pickle names something that is no array."""


class _StandIn:
    """Takes notes of what a pickle does to an object; a note is all that it can make."""

    def __setstate__(self, state: Any):
        """Refuse a state, unless a stand-in knows what to do with it."""
        raise _ForbiddenError(f'it changes a {type(self).__name__}')


class _ArrayType(_StandIn):
    """Stands for numpy.ndarray, which a pickle names and does not call."""

    def __new__(cls, *_):
        """Refuse to be called."""
        raise _ForbiddenError('it makes an array in an unusual way')


class _NumberType(_StandIn):
    """Stands for numpy.dtype, with its code such as f4 and its order of bytes."""

    def __init__(self, code: str, *_):
        """Keep the code."""
        self.code, self.order = code, '='

    def __setstate__(self, state: tuple):
        """Keep the order of bytes, the second of (version, order, ...)."""
        self.order = state[1]


class _StoredArray(_StandIn):
    """Stands for an array as a pickle makes it: empty at first, then filled."""

    def __init__(self, *_):
        """Wait for the content: what comes first is about an empty array."""
        self.shape, self.kind, self.fortran, self.content = (), None, False, None

    def __setstate__(self, state: tuple):
        """Keep (version, shape, number type, column by column, bytes or list)."""
        _, self.shape, self.kind, self.fortran, self.content = state

    def only_item(self) -> dict:
        """Give the dictionary in this array of one object."""
        if self.kind.code[0] != 'O' or self.shape != () or len(self.content) != 1:
            raise ValueError('it holds more than one object')
        return dict(self.content[0])

    def array(self) -> np.ndarray:
        """Make a real array of the bytes."""
        dtype = np.dtype(self.kind.code)
        if dtype.kind not in _KINDS or dtype.subdtype is not None:
            raise ValueError(f'it holds values of type {self.kind.code}')
        if self.kind.order in '<>':
            dtype = dtype.newbyteorder(self.kind.order)
        values = np.frombuffer(self.content, dtype)
        if len(values) != math.prod(self.shape):
            raise ValueError(f'{len(values)} numbers do not fill an array of {self.shape}')
        order = 'F' if self.fortran else 'C'
        # A copy in the machine's own order of bytes, which may be written to.
        return values.reshape(self.shape, order=order).astype(dtype.newbyteorder('='), order='C')


_ALLOWED = {
    ('numpy', 'ndarray'): _ArrayType,
    ('numpy', 'dtype'): _NumberType,
    ('numpy.core.multiarray', '_reconstruct'): _StoredArray,
    ('numpy._core.multiarray', '_reconstruct'): _StoredArray,  # since NumPy 2
}


class _Unpickler(pickle.Unpickler):
    """Finds the stand-ins and nothing else."""

    def find_class(self, module: str, name: str) -> type:
        """Give the stand-in of a name."""
        if (module, name) not in _ALLOWED:
            raise _ForbiddenError(f'it would run {module}.{name}')
        return _ALLOWED[module, name]
