"""Neighbours and matching pursuit as tensor operations, which is how the graphs are built on a GPU.

Definitions, ties and thresholds are those of the compiled kernels (see `kernels`). A GPU adds up a dot product in an
order of its own, so similarities agree with the CPU's to about 1e-6, and a graph can differ where two candidates are
that close. Everything here also runs on a CPU's tensors, slower than the compiled kernels do.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.graphs import shortage
from pipeline.graphs.kernels import CAREFUL, DEPENDENT, STOP

SHORT = (MemoryError, torch.OutOfMemoryError)
LARGEST_BLOCK = 8192  # rows; enough work for a GPU, small enough for a lively progress bar
SHARE = 0.8  # of a GPU's free memory that is planned with: libraries and fragments take some
Progress = Callable[[int, int], None] | None


def nearest(
    queries: np.ndarray, candidates: np.ndarray | None, k: int, device: torch.device, budget: float, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest candidates of each query, nearest first, equal ones by ascending id.

    Parameters
    ----------
    queries, candidates
        Unit rows (n, d) and (m, d), float32; None: the queries themselves, each row's own self excluded.
    k
        At most the number of candidates that a query has.
    budget
        Bytes that a block of queries may take; a GPU's take a share of what is free of its memory instead.

    Returns
    -------
    tuple
        Ids (n, k) int32 and similarities (n, k) float32.
    """
    ids, similarities = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
    left, right = _on(device, queries, candidates)
    budget = _room(device, budget)

    def block(first: int, last: int) -> None:
        found, values = _top(left[first:last], right, k, first if candidates is None else None)
        ids[first:last], similarities[first:last] = found.int().cpu().numpy(), values.cpu().numpy()

    for bounds in _blocks(len(left), _row_bytes(len(right)), budget):
        for _, last, _ in shortage.halving(block, *bounds, SHORT):
            if progress is not None:
                progress(last, len(queries))
    return ids, similarities


def supports(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    dictionary_size: int,
    sparsity: int,
    device: torch.device,
    budget: float,
    progress: Progress,
) -> np.ndarray:
    """Supports of orthogonal matching pursuit over each target's nearest candidates (Algorithm 1).

    Parameters
    ----------
    targets, candidates, device, budget
        As for `nearest`. The candidates' Gram matrix is computed once for all targets if half the budget holds it.
    dictionary_size, sparsity
        k_s, at most the number of candidates that a target has, and k_o, at most k_s.

    Returns
    -------
    np.ndarray
        Candidates (n, k_o) int32 in the order of their choice, -1 where there is no further one.
    """
    chosen = np.full((len(targets), sparsity), -1, np.int32)
    left, right = _on(device, targets, candidates)
    budget = _room(device, budget)
    gram = _gram(right) if 4 * len(right) ** 2 <= budget / 2 else None
    gathered = 0 if gram is not None else 4 * right.shape[1]  # bytes of each of a target's atoms
    row_bytes = _row_bytes(len(right)) + dictionary_size * (4 * sparsity + 48 + gathered)

    def block(first: int, last: int) -> None:
        part = left[first:last]
        found, similarities = _top(part, right, dictionary_size, first if candidates is None else None)
        ids, order = found.sort(1)
        support, careful = _pursue(similarities.gather(1, order), right, ids, gram, sparsity)
        rest = careful.nonzero()[:, 0]
        for start, end in _blocks(len(rest), 8 * (dictionary_size + sparsity) * right.shape[1], budget / 2):
            few = rest[start:end]
            support[few] = _pursue_exactly(part[few], right, ids[few], support[few])
        chosen[first:last] = support.int().cpu().numpy()

    for bounds in _blocks(len(left), row_bytes, budget if gram is None else budget - 4 * gram.numel()):
        for _, last, _ in shortage.halving(block, *bounds, SHORT):
            if progress is not None:
                progress(last, len(targets))
    return chosen


def _gram(rows: Tensor) -> Tensor | None:
    """Products of all rows, or None where memory is short."""
    try:
        return rows @ rows.T
    except SHORT:
        shortage.say(f"all {len(rows):,} x {len(rows):,} products", "they are computed as they are needed")
        return None


def _on(device: torch.device, queries: np.ndarray, candidates: np.ndarray | None) -> tuple[Tensor, Tensor]:
    left = torch.from_numpy(queries).to(device)
    return left, left if candidates is None else torch.from_numpy(candidates).to(device)


def _room(device: torch.device, budget: float) -> float:
    """Bytes to plan with, the features being there: on a GPU what its memory has left, elsewhere the budget."""
    return SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else budget


def _row_bytes(candidates: int) -> int:
    """Bytes that `_top` takes for each query: similarities, sorting keys, and what finding the largest keys takes."""
    return 48 * candidates


def _blocks(rows: int, row_bytes: int, budget: float) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of rows that fit the budget; a block has at least one row."""
    size = max(1, min(LARGEST_BLOCK, int(budget // row_bytes)))
    for first in range(0, rows, size):
        yield first, min(rows, first + size)


def _top(queries: Tensor, candidates: Tensor, k: int, first: int | None) -> tuple[Tensor, Tensor]:
    """Ids (b, k) int64 and similarities of each query's k nearest; the candidate first + row is left out of a row."""
    similarities = queries @ candidates.T  # (b, m)
    if first is not None:
        similarities.diagonal(first).fill_(-torch.inf)
    bits = (similarities + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 and 0.0 tie
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)  # grows with the float
    keys = ordered * 2**32 - torch.arange(len(candidates), device=queries.device)
    ids = keys.topk(k, dim=1).indices
    return ids, similarities.gather(1, ids)


def _pursue(
    alpha: Tensor, candidates: Tensor, ids: Tensor, gram: Tensor | None, sparsity: int
) -> tuple[Tensor, Tensor]:
    """Rounds in correlation space, for all targets at once (see `kernels._pursue_one` for the algebra).

    Parameters
    ----------
    alpha
        Similarities (b, k_s) of the targets to their dictionaries `ids`, which ascend.

    Returns
    -------
    tuple
        Supports (b, k_o) int64, and whether float32 became too coarse for a target (b,): it goes on elsewhere.
    """
    count, rows = len(ids), torch.arange(len(ids), device=ids.device)
    atoms = candidates[ids] if gram is None else None  # (b, k_s, d)
    lines = alpha.new_zeros((sparsity, *alpha.shape))  # <D_i, q_s>
    support = torch.full((count, sparsity), -1, device=ids.device)
    chosen = torch.zeros_like(support)
    residual = torch.ones(count, dtype=torch.float64, device=ids.device)
    careful = torch.zeros(count, dtype=torch.bool, device=ids.device)
    for step in range(sparsity):
        best, atom = alpha.abs().max(1)
        own = lines[:step, rows, atom]  # (step, b)
        distance = 1 - own.double().square().sum(0)
        careful |= (best < CAREFUL) | (distance < CAREFUL)
        support[:, step] = torch.where(careful, -1, ids[rows, atom])
        if step == sparsity - 1 or careful.all():
            break
        chosen[:, step] = atom
        if atoms is not None:
            products = torch.einsum("bd,bkd->bk", atoms[rows, atom], atoms)
        else:
            assert gram is not None
            products = gram[ids[rows, atom][:, None], ids]
        inverse = distance.clamp(min=CAREFUL).rsqrt().float()
        lines[step] = (products - torch.einsum("sb,sbk->bk", own, lines[:step])) * inverse[:, None]
        coefficient = alpha[rows, atom] * inverse
        alpha = alpha - coefficient[:, None] * lines[step]
        alpha.scatter_(1, chosen[:, : step + 1], 0.0)
        residual -= coefficient.double().square()
        careful |= residual < CAREFUL
    return support, careful


def _pursue_exactly(targets: Tensor, candidates: Tensor, ids: Tensor, support: Tensor) -> Tensor:
    """Go on from the chosen atoms with the residuals themselves, in float64 (see `kernels._pursue_exactly`)."""
    rows, sparsity = torch.arange(len(targets), device=targets.device), support.shape[1]
    atoms = candidates[ids].double()  # (b, k_s, d)
    support = support.clone()
    count = (support >= 0).sum(1)
    is_open = ~(ids[:, :, None] == support[:, None, :]).any(2)
    basis = atoms.new_zeros((len(targets), sparsity, atoms.shape[2]))
    for s in range(int(count.max())):
        taken = (support[:, s] >= 0)[:, None]
        vector, distance = _orthogonal(candidates[support[:, s].clamp(min=0)].double(), basis)
        basis[:, s] = torch.where(taken, vector * distance.clamp(min=DEPENDENT).rsqrt()[:, None], 0.0)
    target = targets.double()
    threshold = STOP * target.norm(dim=1)
    residual, left = _orthogonal(target, basis)
    while True:
        correlation = torch.einsum("bkd,bd->bk", atoms, residual).abs().masked_fill(~is_open, -1.0)
        best, atom = correlation.max(1)
        active = (count < sparsity) & (left.sqrt() > threshold) & (best > threshold)
        if not active.any():
            return support
        is_open[rows, atom] &= ~active
        vector, distance = _orthogonal(atoms[rows, atom], basis)
        added = (active & (distance >= DEPENDENT)).nonzero()[:, 0]
        basis[added, count[added]] = vector[added] * distance[added].rsqrt()[:, None]
        support[added, count[added]] = ids[added, atom[added]]
        count[added] += 1
        residual, left = _orthogonal(residual, basis)


def _orthogonal(vectors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What of the vectors (b, d) lies outside their bases (b, k_o, d), and its squared norm."""
    for _ in range(2):  # twice is enough (Kahan)
        shares = torch.einsum("bsd,bd->bs", basis, vectors)
        vectors = vectors - torch.einsum("bs,bsd->bd", shares, basis)
    return vectors, vectors.square().sum(1)
