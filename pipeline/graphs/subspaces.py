"""Subspace graphs brought up to date row by row (see `reuse`). On its own: similarity graphs know no pursuit."""

import numpy as np

from pipeline.graphs import omp
from pipeline.graphs.execution import DEFAULT, Execution
from pipeline.graphs.reuse import Built, Memory, built, is_kept, refreshed


def subspace_graph(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    dictionary_size: int,
    sparsity: int,
    memory: Memory,
    how: Execution = DEFAULT,
) -> Built:
    """`omp.subspace_graph`, from what is in `memory` as far as it goes; a row is computed if its pursuit runs anew."""
    if not is_kept(targets, candidates, dictionary_size, how):
        memory.path.unlink(missing_ok=True)
        graph = omp.subspace_graph(targets, candidates, dictionary_size, sparsity, how)
        return Built(graph, graph.shape[0], 0)
    kept, computed = refreshed(targets, candidates, dictionary_size, sparsity, memory, how)
    return built(kept.supports, kept, computed)
