"""Where memory cannot be had although the budget allows it: the same work goes on in smaller pieces, and says so."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)
Found = TypeVar("Found")


def say(what: str, instead: str) -> None:
    """Notice that `what` did not fit, and what is done `instead`."""
    logger.warning(
        "no memory for %s: %s; the result is the same. A lower resources.memory_gb avoids this", what, instead
    )


def too_small(what: str) -> MemoryError:
    """The error for what cannot be made smaller."""
    return MemoryError(
        f"no memory for {what}, and that cannot be made smaller: free memory on this machine or its GPU, or run the "
        "stage on a larger one"
    )


def halving(
    work: Callable[[int, int], Found], first: int, last: int, short: type[Exception] | tuple[type[Exception], ...]
) -> Iterator[tuple[int, int, Found]]:
    """Do rows `first` to `last` at once, or in halves, quarters, ... where memory is short.

    Parameters
    ----------
    work
        Does the rows between two bounds.
    short
        Errors that say that memory is short.

    Yields
    ------
    Bounds of the rows done, in order, and what `work` gave.

    Raises
    ------
    MemoryError
        If not even one row can be done.
    """
    waiting = [(first, last)]
    while waiting:
        first, last = waiting.pop()
        try:
            found = work(first, last)
        except short:
            if last - first <= 1:
                raise too_small("one row") from None
        else:
            yield first, last, found
            continue
        # Outside of the handler: until it ends, the error holds on to all that the failed attempt had allocated.
        middle = (first + last) // 2
        say(f"a block of {last - first:,} rows", f"halved to {last - middle:,}")
        waiting += [(middle, last), (first, middle)]
