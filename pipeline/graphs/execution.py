"""How a graph is made: what it may take, where, and who is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.settings import IndexSettings

if TYPE_CHECKING:
    from pipeline.compute import Cluster


@dataclass(frozen=True)
class Execution:
    """How a graph is made. Of all this only `index` and a GPU's rounding show in the result.

    Attributes
    ----------
    memory_gb
        Budget in 10^9 bytes of all that is held at a time beside the features that come in: normalised copies of them,
        packed rows, similarities, and the result. Where the copies (4 d bytes for each row of either side) and the
        result take it up, the rest is as small as can be.
    threads
        Default: every core.
    device
        `cpu`, a GPU by torch's name, or `auto`: a GPU where there is one. A GPU's blocks take most of what is free of
        its memory, similarities are rounded in another way, by about 1e-6, and the search is exact.
    index
        Above how many candidates an index is searched, and the recall that it is to reach (see `index`). Default:
        the search is exact.
    cluster
        Where blocks of rows are worked on, each by one thread and within the budget. Default: here. A GPU of this
        machine comes first.
    progress
        Called with (rows done, rows in all).
    report
        Called with the figures of an index, `recall` among them, where one is used.
    """

    memory_gb: float = 4.0
    threads: int | None = None
    device: str = "cpu"
    index: IndexSettings | None = None
    cluster: "Cluster | None" = None
    progress: Callable[[int, int], None] | None = None
    report: Callable[[dict[str, Any]], None] | None = None

    @property
    def threads_of_a_block(self) -> int | None:
        """Threads that work on one block."""
        return self.threads if self.cluster is None else 1

    def index_for(self, candidates: int) -> IndexSettings | None:
        """Settings of the index, where there are enough candidates for one."""
        return self.index if self.index is not None and candidates > self.index.above else None

    def tell(self, done: int, total: int) -> None:
        """Say how far the work is."""
        if self.progress is not None:
            self.progress(done, total)


DEFAULT = Execution()
