"""Which form of the numerical work runs: the compiled one, or plain torch to hold it against.

`fast` computes only what a loss reads, with compiled products and gradients written out. `reference` says the same in
torch's own operations and leaves the gradients to autograd. Both see the same random numbers, so a training differs
by rounding alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from model.config import Kernels

_form: ContextVar[Kernels] = ContextVar("kernels", default="fast")


@contextmanager
def use(form: Kernels) -> Iterator[None]:
    """Run what is inside with one form."""
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


def are_fast() -> bool:
    """Whether the compiled form is wanted."""
    return _form.get() == "fast"


def are_compiled(values: Tensor) -> bool:
    """Whether the fast form of work on these values is compiled code; on a GPU it is torch's operations."""
    return not values.is_cuda
