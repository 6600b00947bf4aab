"""An unpickler for matrices and plain containers, and nothing that could run code.

NumPy's and SciPy's own ways of being unpickled are not called: they trust what they are given, and a damaged file ends
the process. Arrays and matrices are held as plain parts, and made of them once those fit together. The unpickler is the
one that Python has in Python: with that in C a few bytes claim any amount of memory. What a pickle may do is counted,
for it can name the same list any number of times. Its tuples are lists here: the hash of a tuple, and so its use as a
key, takes twice as long with every tuple around it that holds it twice.
"""

import io
import pickle
import re
from collections.abc import Callable
from functools import partial
from reprlib import repr as short  # of bounded length, also for lists that hold one another
from struct import unpack
from typing import IO, TYPE_CHECKING, Any, ClassVar

from pipeline.sources import SourceError

if TYPE_CHECKING:
    import numpy as np

_SPARSE_MODULES = {
    "scipy.sparse",
    *(f"scipy.sparse.{dash}{kind}" for dash in ("", "_") for kind in ("coo", "csr", "csc")),
}
# Made of nothing, or (containers) of one container, whose elements are counted.
_CONTAINERS = (dict, list, set, frozenset, bytes, bytearray)
_BUILTINS = {kind.__name__: kind for kind in (*_CONTAINERS, int, float, complex, str)} | {"tuple": list}
_NUMBERS = re.compile(r"[iuf][1248]|b1")
MAX_BYTES = 1 << 30  # of a pickle, unpacked; the published ones have a few per cent of that
MAX_STEPS = 1 << 22  # steps and copied elements of a pickle, which come to 1 GB; the published ones take a few per cent


class _Kind:
    """A dtype of numbers: `("f4", False, True)`, then its byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        if not _NUMBERS.fullmatch(name):
            raise SourceError(f"the pickle holds an array of {name[:20]!r}, and only numbers are read")
        self.name = name

    def __setstate__(self, state: list[Any]) -> None:
        if state[1] not in ("<", ">", "|"):
            raise SourceError(f"the pickle holds numbers of the byte order {short(state[1])}")
        self.name = state[1] + self.name.lstrip("<>|")


class _Array:
    """An array: version, shape, dtype, whether it is in Fortran's order, and its bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: list[Any] = []

    def __setstate__(self, state: list[Any]) -> None:
        self.state = state

    def array(self) -> "np.ndarray":
        if len(self.state) != 5:
            raise SourceError("the pickle holds an array without bytes of its own")
        _, shape, kind, _, content = self.state
        found = _numbers(content, kind)
        if shape != [found.size]:  # of one dimension, as all arrays of a sparse matrix are
            raise SourceError(f"the pickle holds an array of shape {short(shape)} with {found.size} values")
        return found


def _numbers(content: bytes, kind: _Kind) -> "np.ndarray":
    import numpy as np

    return np.frombuffer(content, np.dtype(kind.name))


def _frombuffer(content: bytes, kind: _Kind, shape: list[int], order: str) -> _Array:
    found = _Array()
    found.state = [1, shape, kind, order == "F", content]
    return found


def _scalar(kind: _Kind, content: bytes) -> Any:
    return _numbers(content, kind).item()


class _Matrix:
    """A sparse matrix: those of its attributes that it is made of, by name."""

    form = ""
    parts: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parts = {name: state[name] for name in _PARTS if name in state}

    def matrix(self) -> Any:
        """The matrix; SciPy holds its parts against each other."""
        import scipy.sparse

        if self.form.startswith("coo"):
            row, column = self.parts["coords"] if "coords" in self.parts else (self.parts["row"], self.parts["col"])
            content: Any = self._array("data"), (row.array(), column.array())
        else:
            content = tuple(self._array(name) for name in ("data", "indices", "indptr"))
        found = getattr(scipy.sparse, self.form)(content, shape=self.parts["_shape"])
        # SciPy's own check leaves out a matrix whose last pointer is 0, and writes where the others point.
        if hasattr(found, "indptr") and (found.indptr[1:] < found.indptr[:-1]).any():
            raise SourceError("an index pointer of its matrix is below the one before it; get it again")
        return found

    def _array(self, name: str) -> "np.ndarray":
        return self.parts[name].array()


_PARTS = ("_shape", "data", "indices", "indptr", "row", "col", "coords")
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


def _empty(*_: Any) -> dict[Any, Any]:
    return {}


class _Counted(dict):
    """The unpickler's steps by their codes, of which no more than `MAX_STEPS` are given out."""

    left = MAX_STEPS

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.take(1)
        return super().__getitem__(code)

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise SourceError(f"the pickle takes more than {MAX_STEPS} steps, which no such file does; get it again")


class MatrixUnpickler(pickle._Unpickler):
    """Loads numpy arrays, scipy sparse matrices and builtin containers; every other global is an error."""

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch
    stack: list[Any]  # these three the unpickler sets when it begins
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.steps = _Counted(self.dispatch)
        self.dispatch = self.steps  # type: ignore[misc]

    def _make(self, kind: type, *content: Any) -> Any:
        """A value of a builtin kind, not of a length alone: a few characters could make that as large as memory."""
        if content and not (kind in _CONTAINERS and len(content) == 1 and isinstance(content[0], _CONTAINERS)):
            names = ", ".join(type(part).__name__ for part in content[:2])
            raise SourceError(f"the pickle asks for {kind.__name__} of {names}, which no such file does")
        self.steps.take(sum(map(len, content)))
        return kind(*content)

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
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return partial(self._make, _BUILTINS[name])
        if (module, name) == ("collections", "OrderedDict"):
            return partial(self._make, dict)
        if (module, name) == ("collections", "defaultdict"):
            return _empty  # only what it holds is read
        raise SourceError(
            f"the pickle asks for {module}.{name}, and only numpy arrays, scipy sparse matrices and plain containers "
            "are read: the file is not one of RLMRec's, or it has been tampered with"
        )

    def _load_build(self) -> None:
        state, held = self.stack.pop(), self.stack[-1]
        if not isinstance(held, _Kind | _Array | _Matrix):
            raise SourceError(f"the pickle sets attributes of {type(held).__name__}, which no such file does")
        held.__setstate__(state)

    def _load_bytearray(self) -> None:
        (length,) = unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # Python's own makes room for the length first

    def _gather(self, count: int) -> None:
        self.stack[-count:] = [self.stack[-count:]]

    def _call(self, load: Callable[[Any], None]) -> None:
        self.steps.take(len(self.stack[-1]))  # arguments, which can be a list that is named again and again
        load(self)

    dispatch = dispatch | {
        pickle.EMPTY_TUPLE[0]: dispatch[pickle.EMPTY_LIST[0]],
        pickle.TUPLE[0]: dispatch[pickle.LIST[0]],
        pickle.TUPLE1[0]: lambda self: self._gather(1),
        pickle.TUPLE2[0]: lambda self: self._gather(2),
        pickle.TUPLE3[0]: lambda self: self._gather(3),
        pickle.REDUCE[0]: lambda self, load=dispatch[pickle.REDUCE[0]]: self._call(load),
        pickle.NEWOBJ[0]: lambda self, load=dispatch[pickle.NEWOBJ[0]]: self._call(load),
        pickle.BUILD[0]: _load_build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }
    del dispatch[pickle.NEWOBJ_EX[0]]  # calls with names of arguments, which no admitted class has


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
        The pickle asks for anything else, is not a pickle, or unpacks to more than `MAX_BYTES`
        or takes more than `MAX_STEPS`.
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
