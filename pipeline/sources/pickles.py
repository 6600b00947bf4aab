"""An unpickler for matrices and plain containers, and nothing that could run code.

NumPy's and SciPy's own ways of being unpickled are not called: they trust what they are given, and a damaged file ends
the process. Arrays and matrices are held as plain parts, and made of them once those fit together. The unpickler is the
one that Python has in Python: with that in C a few bytes claim any amount of memory.
"""

import io
import math
import pickle
import re
from typing import IO, TYPE_CHECKING, Any

from pipeline.sources import SourceError

if TYPE_CHECKING:
    import numpy as np

_SPARSE_MODULES = {
    "scipy.sparse",
    *(f"scipy.sparse.{dash}{kind}" for dash in ("", "_") for kind in ("coo", "csr", "csc")),
}
# Safe to call: they only build a container or a number of what they are given.
_BUILTINS = {"dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "str"}
_NUMBERS = re.compile(r"[iuf][1248]|b1")
MAX_BYTES = 1 << 30  # of a pickle, unpacked; the published ones have a few per cent of that


class _Kind:
    """A dtype of numbers: `("f4", False, True)`, then its byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if not _NUMBERS.fullmatch(name):
            raise SourceError(f"the pickle holds an array of {name[:20]!r}, and only numbers are read")
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|"):
            raise SourceError(f"the pickle holds numbers of the byte order {state[1]!r}")
        self.name = state[1] + self.name.lstrip("<>|")


class _Array:
    """An array: version, shape, dtype, whether it is in Fortran's order, and its bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> "np.ndarray":
        if len(self.state) != 5:
            raise SourceError("the pickle holds an array without bytes of its own")
        _, shape, kind, fortran, content = self.state
        return _numbers(content, kind, shape, "F" if fortran else "C")


def _numbers(content: bytes, kind: _Kind, shape: tuple[int, ...], order: Any = "C") -> "np.ndarray":
    import numpy as np

    found = np.frombuffer(content, np.dtype(kind.name))
    if found.size != math.prod(shape):
        raise SourceError(f"the pickle holds an array of shape {shape} with {found.size} values")
    return found.reshape(shape, order=order)


def _frombuffer(content: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    found = _Array()
    found.state = (1, shape, kind, order == "F", content)
    return found


def _scalar(kind: _Kind, content: bytes) -> Any:
    return _numbers(content, kind, ()).item()


class _Matrix:
    """A sparse matrix: its attributes, by name."""

    form = ""

    def matrix(self) -> Any:
        """The matrix; SciPy holds its parts against each other."""
        import scipy.sparse

        parts = {name: part.array() if isinstance(part, _Array) else part for name, part in vars(self).items()}
        if self.form.startswith("coo"):
            places = parts["coords"] if "coords" in parts else (parts["row"], parts["col"])
            content: Any = parts["data"], tuple(part.array() if isinstance(part, _Array) else part for part in places)
        else:
            content = parts["data"], parts["indices"], parts["indptr"]
        found = getattr(scipy.sparse, self.form)(content, shape=parts["_shape"])
        # SciPy's own check leaves out a matrix whose last pointer is 0, and writes where the others point.
        if hasattr(found, "indptr") and (found.indptr[1:] < found.indptr[:-1]).any():
            raise SourceError("an index pointer of its matrix is below the one before it; get it again")
        return found


_MATRICES = {
    form: type(form, (_Matrix,), {"form": form})
    for kind in ("coo", "csr", "csc")
    for form in (f"{kind}_matrix", f"{kind}_array")
}
_NUMPY = {
    ("multiarray", "_reconstruct"): _Array,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _frombuffer,
}


def _bytes(*content: Any) -> bytes:
    """`bytes` of some content, and not of a length alone, which a few characters could make as large as memory."""
    if content and isinstance(content[0], int):
        raise SourceError("the pickle asks for an empty buffer")
    return bytes(*content)


def _bytearray(*content: Any) -> bytearray:
    return bytearray(_bytes(*content))


class MatrixUnpickler(pickle._Unpickler):
    """Loads numpy arrays, scipy sparse matrices and builtin containers; every other global is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle asks for, if it is one of the few admitted.

        Raises
        ------
        SourceError
            It is not, named.
        """
        if (module, name) == ("numpy", "dtype"):
            return _Kind
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        for core in ("numpy.core.", "numpy._core."):  # old pickles name the package by its former path
            if module.startswith(core) and (module.removeprefix(core), name) in _NUMPY:
                return _NUMPY[module.removeprefix(core), name]
        if module in _SPARSE_MODULES and name in _MATRICES:
            return _MATRICES[name]
        if module in ("builtins", "__builtin__") and name in ("bytes", "bytearray"):
            return _bytes if name == "bytes" else _bytearray
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return super().find_class("builtins", name)
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict")):
            return super().find_class(module, name)
        raise SourceError(
            f"the pickle asks for {module}.{name}, and only numpy arrays, scipy sparse matrices and plain containers "
            "are read: the file is not one of RLMRec's, or it has been tampered with"
        )


def load_pickle(file: IO[bytes], size: int, where: str) -> Any:
    """Read a pickle of matrices and plain containers.

    Parameters
    ----------
    size
        Its bytes when unpacked; no more than these are read.
    where
        What it is called in messages.

    Raises
    ------
    SourceError
        The pickle asks for anything else, is not a pickle, or unpacks to more than `MAX_BYTES`.
    """
    try:
        if size > MAX_BYTES:  # asked before anything is unpacked
            raise SourceError(f"more than {MAX_BYTES >> 20} MB when unpacked, which no such file has; get it again")
        found = MatrixUnpickler(io.BytesIO(file.read(size))).load()
        return found.matrix() if isinstance(found, _Matrix) else found
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise SourceError(f"{where}: not a readable pickle ({type(error).__name__}: {error}); get it again") from error
