"""Subspace graphs brought up to date row by row (see `reuse`). On its own: similarity graphs know no pursuit."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pipeline.graphs import omp
from pipeline.graphs.kept import delete
from pipeline.graphs.reuse import Built, Memory, built, is_kept, refreshed
from pipeline.settings import IndexSettings

if TYPE_CHECKING:
    from pipeline.graphs.index import Report


def subspace_graph(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    dictionary_size: int,
    sparsity: int,
    memory: Memory,
    memory_gb: float = 4.0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    index: IndexSettings | None = None,
    report: "Report | None" = None,
) -> Built:
    """`omp.subspace_graph`, from what is in `memory` as far as it goes; a row is computed if its pursuit runs anew."""
    if not is_kept(targets, candidates, dictionary_size, memory_gb, device, index):
        delete(memory.path)
        graph = omp.subspace_graph(
            targets, candidates, dictionary_size, sparsity, memory_gb, threads, progress, device, index, report
        )
        return Built(graph, graph.shape[0], 0)
    kept, computed = refreshed(targets, candidates, dictionary_size, sparsity, memory, memory_gb, threads, progress)
    return built(kept.supports, kept, computed)
