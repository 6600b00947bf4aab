"""An unpickler for matrices and plain containers, and nothing that could run code."""

import io
import pickle
from typing import IO, Any

from pipeline.sources import SourceError

_NUMPY = {("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")}
_KINDS = ("coo", "csr", "csc")
_SPARSE_MODULES = {"scipy.sparse", *(f"scipy.sparse.{dash}{kind}" for dash in ("", "_") for kind in _KINDS)}
_SPARSE_CLASSES = {f"{kind}_{form}" for kind in _KINDS for form in ("matrix", "array")}
# Safe to call: they only build a container or a number of what they are given.
_BUILTINS = {"dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "str", "bytes", "bytearray"}


class MatrixUnpickler(pickle.Unpickler):
    """Loads numpy arrays, scipy sparse matrices and builtin containers; every other global is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle asks for, if it is one of the few admitted.

        Raises
        ------
        SourceError
            It is not, named.
        """
        import numpy as np

        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        for core in ("numpy.core.", "numpy._core."):
            if module.startswith(core) and (module.removeprefix(core), name) in _NUMPY:
                # Old pickles name the package by its former path.
                return super().find_class(f"numpy._core.{module.removeprefix(core)}", name)
        if module in _SPARSE_MODULES and name in _SPARSE_CLASSES:
            import scipy.sparse

            return getattr(scipy.sparse, name)
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return super().find_class("builtins", name)
        if (module, name) in (("collections", "OrderedDict"), ("collections", "defaultdict")):
            return super().find_class(module, name)
        raise SourceError(
            f"the pickle asks for {module}.{name}, and only numpy arrays, scipy sparse matrices and plain containers "
            "are read: the file is not one of RLMRec's, or it has been tampered with"
        )


def load_pickle(file: IO[bytes], where: str) -> Any:
    """Read a pickle of matrices and plain containers.

    Raises
    ------
    SourceError
        The pickle asks for anything else, or is not a pickle.
    """
    try:
        return MatrixUnpickler(io.BytesIO(file.read())).load()
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise SourceError(f"{where}: not a readable pickle ({type(error).__name__}: {error}); get it again") from error
