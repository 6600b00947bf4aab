"""Subspace-aware graphs: sparse self-expression by orthogonal matching pursuit (Algorithm 1)."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from pipeline import compute
from pipeline.graphs import csr
from pipeline.graphs.execution import DEFAULT, Execution

if TYPE_CHECKING:
    from pipeline.graphs.products import Group


def subspace_graph(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    dictionary_size: int = 800,
    sparsity: int = 10,
    how: Execution = DEFAULT,
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
    how
        Its budget counts the Gram matrix too, which is computed here, and for each thread 4 k_s (d + k_o) bytes where
        there is none; its index finds the dictionaries.

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
    with kernels.thread_pool(how.threads):
        left, right = products.unit_pair(targets, candidates)
        same = candidates is None
        size = max(0, min(dictionary_size, right.kept.size - same))
        supports = np.full((targets.shape[0], min(sparsity, size)), -1, np.int32)
        budget, gpu = how.memory_gb * 1e9, products.accelerator(how.device)
        if gpu is not None and supports.size > 0 and left.kept.size > 0:
            from pipeline.graphs import tensors

            found = tensors.supports(
                left.units, None if same else right.units, size, supports.shape[1], gpu, budget, how.progress
            )
            supports[left.kept] = np.where(found >= 0, right.kept[found], -1)
        elif size > 0 and left.kept.size > 0:
            held = left.units.nbytes + (0 if same else right.units.nbytes) + supports.nbytes
            room = budget - held - 8 * size * products.LARGEST_BLOCK  # ids and similarities of a block
            index = how.index_for(right.kept.size)
            gram = products.gram(right.units, room) if index is None else None
            if gram is None:
                room -= kernels.get_num_threads() * 4 * size * (right.units.shape[1] + sparsity)
                gram = np.empty((0, 0), np.float32)
            whole, done = np.arange(left.kept.size, dtype=np.int32), 0
            groups = comparisons(left.units, right.units, whole, size, index, room - gram.nbytes, how.report)
            arrays = left.units, None if same else right.units, gram
            limits = size, supports.shape[1], room - gram.nbytes, how.threads_of_a_block
            parts = ((part, *limits) for (part,) in products.parts(how.cluster, groups))
            for part, found in compute.blocks(how.cluster, _pursue, arrays, parts):
                supports[left.kept[part]] = np.where(found >= 0, right.kept[found], -1)
                done += part.size
                how.tell(done, left.kept.size)
    return csr.from_neighbours(supports, (targets if candidates is None else candidates).shape[0])


def _pursue(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    gram: np.ndarray,
    groups: "Iterable[Group]",
    size: int,
    sparsity: int,
    room: float,
    threads: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Targets of some groups, a block at a time, and their supports; without candidates, among themselves."""
    from pipeline.graphs import kernels, products

    with kernels.thread_pool(threads):
        others = targets if candidates is None else candidates
        ready = gram if candidates is None and gram.size else None
        for part, ids, similarities in products.search(targets, others, size, True, groups, room, ready):
            found = np.full((part.size, sparsity), -1, np.int32)
            kernels.pursue(targets[part], others, ids, similarities, gram, found)
            yield part, found
