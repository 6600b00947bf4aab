"""Subspace-aware graphs: sparse self-expression by orthogonal matching pursuit (Algorithm 1)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from pipeline.graphs import csr
from pipeline.settings import IndexSettings

if TYPE_CHECKING:
    from pipeline.graphs.index import Report


def subspace_graph(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    dictionary_size: int = 800,
    sparsity: int = 10,
    memory_gb: float = 4.0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    index: IndexSettings | None = None,
    report: "Report | None" = None,
) -> csr_array:
    """Supports of orthogonal matching pursuit: an edge from each target to every atom chosen for it.

    The dictionary of a target are its `dictionary_size` nearest candidates. Each round takes the atom of largest
    absolute correlation with the residual, equal ones in favour of the lower candidate, and refits all chosen atoms by
    least squares. The pursuit of a target ends after `sparsity` rounds, or when the residual or the best correlation
    falls to 1e-6 of the target's norm. An atom within 1e-3 of the span of the chosen ones (squared: 1e-6) is skipped.

    While correlations are well above the resolution of float32, a round works in correlation space: it needs one line
    of the candidates' Gram matrix, which is computed once for all targets if it fits the budget and no index is used.
    Otherwise the products that a round needs come from the gathered dictionary, bit for bit the same, so the graph does
    not depend on the budget. A target whose residual gets small goes on in float64 from the features themselves.

    Parameters
    ----------
    targets
        (n, d) floating point; rows are normalised here. A zero row gets no edges.
    candidates
        (m, d), or None: the targets themselves, each row's own self excluded. A zero row gets no edges.
    dictionary_size
        k_s; all candidates where there are fewer.
    sparsity
        k_o, the largest support.
    memory_gb
        As for `knn.nearest`; the Gram matrix counts too, and for each thread 4 k_s (d + k_o) bytes where there is none.
    threads
        Default: every core.
    progress
        Called with (targets done, targets in all).
    device, index, report
        As for `knn.nearest`; the index finds the dictionaries.

    Returns
    -------
    csr_array
        (n, m) float32, all data 1.0, indices sorted: the supports, not the coefficients.

    Raises
    ------
    ValueError
        If a size is below 1, the dimensions differ, a feature is NaN or infinite (names the row), or there is no such
        device.
    """
    from pipeline.graphs import kernels, products
    from pipeline.graphs.index import comparisons

    if dictionary_size < 1 or sparsity < 1:
        raise ValueError(f"dictionary_size = {dictionary_size}, sparsity = {sparsity}: both must be at least 1")
    with kernels.thread_pool(threads):
        left, right = products.unit_pair(targets, candidates)
        same = candidates is None
        size = max(0, min(dictionary_size, right.kept.size - same))
        supports = np.full((targets.shape[0], min(sparsity, size)), -1, np.int32)
        budget, gpu = memory_gb * 1e9, products.accelerator(device)
        if gpu is not None and supports.size > 0 and left.kept.size > 0:
            from pipeline.graphs import tensors

            found = tensors.supports(
                left.units, None if same else right.units, size, supports.shape[1], gpu, budget, progress
            )
            supports[left.kept] = np.where(found >= 0, right.kept[found], -1)
        elif size > 0 and left.kept.size > 0:
            held = left.units.nbytes + (0 if same else right.units.nbytes) + supports.nbytes
            room = budget - held - 8 * size * products.LARGEST_BLOCK  # ids and similarities of a block
            if index is not None and right.kept.size <= index.above:
                index = None
            gram = products.gram(right.units, room) if index is None else None
            if gram is None:
                room -= kernels.get_num_threads() * 4 * size * (right.units.shape[1] + sparsity)
                gram = np.empty((0, 0), np.float32)
            whole, done = np.arange(left.kept.size, dtype=np.int32), 0
            groups = comparisons(left.units, right.units, whole, size, index, room - gram.nbytes, report)
            ready = gram if same and gram.size else None
            for part, ids, similarities in products.search(
                left.units, right.units, size, True, groups, room - gram.nbytes, ready
            ):
                found = np.full((part.size, supports.shape[1]), -1, np.int32)
                kernels.pursue(left.units[part], right.units, ids, similarities, gram, found)
                supports[left.kept[part]] = np.where(found >= 0, right.kept[found], -1)
                done += part.size
                if progress is not None:
                    progress(done, left.kept.size)
    return csr.from_neighbours(supports, (targets if candidates is None else candidates).shape[0])
