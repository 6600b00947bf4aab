"""One semantic graph over users and items, fused from subspace and similarity graphs (eq. 6)."""

from typing import Any

import numpy as np
from scipy.sparse import block_array, csr_array

from pipeline.settings import FusionSettings


def fuse(
    user_subspace: csr_array,
    item_subspace: csr_array,
    user_item_subspace: csr_array,
    user_similarity: csr_array,
    item_text_similarity: csr_array,
    item_visual_similarity: csr_array,
    user_item_similarity: csr_array,
    settings: FusionSettings,
) -> csr_array:
    """Semantic graph Ĝ = [[C^U ⊕ G_U, C^UI ⊕ G_UI], [(C^UI ⊕ G_UI)ᵀ, C^I ⊕ (G_I^v ⊕ G_I^t)]] (eq. 6).

    The paper defines ⊕ as intersection, its prose and its ablations speak of a union: `settings.operator` and, between
    the two item modalities, `settings.modality_operator` say which.

    Parameters
    ----------
    user_subspace, user_similarity
        C^U, G_U: (M, M) binary.
    item_subspace, item_text_similarity, item_visual_similarity
        C^I, G_I^t, G_I^v: (N, N) binary; the last (0, 0) where there is no visual modality, and then G_I^t stands
        alone.
    user_item_subspace, user_item_similarity
        C^UI, G_UI: (M, N) binary.
    settings
        Operators, symmetry, and the ablations: `graphs` keeps one kind of graph, `blocks` the UI and IU blocks (inter)
        or the UU and II blocks (intra).

    Returns
    -------
    csr_array
        (M + N, M + N) float32, all data 1.0, indices sorted; users first. UU and II are directed unless
        `settings.symmetric`.

    Raises
    ------
    ValueError
        If a graph's shape does not fit the others; names it.
    """
    users, items = user_item_subspace.shape
    for name, graph, shape in (
        ("user_subspace", user_subspace, (users, users)),
        ("item_subspace", item_subspace, (items, items)),
        ("user_similarity", user_similarity, (users, users)),
        ("item_text_similarity", item_text_similarity, (items, items)),
        ("user_item_similarity", user_item_similarity, (users, items)),
    ):
        if graph.shape != shape:
            raise ValueError(
                f"{name} has shape {graph.shape}, expected {shape} as user_item_subspace has {users, items}"
            )
    if item_visual_similarity.shape not in ((0, 0), (items, items)):
        raise ValueError(
            f"item_visual_similarity has shape {item_visual_similarity.shape}, expected {items, items} or (0, 0)"
        )

    item_similarity = item_text_similarity
    if item_visual_similarity.shape != (0, 0):
        item_similarity = _combine(item_visual_similarity, item_text_similarity, settings.modality_operator)

    def meet(subspace: csr_array, similarity: csr_array) -> csr_array:
        if settings.graphs == "both":
            return _combine(subspace, similarity, settings.operator)
        return subspace if settings.graphs == "subspace" else similarity

    user_user, item_item, user_item = csr_array((users, users)), csr_array((items, items)), csr_array((users, items))
    if settings.blocks != "inter":
        user_user = meet(user_subspace, user_similarity)
        item_item = meet(item_subspace, item_similarity)
    if settings.blocks != "intra":
        user_item = meet(user_item_subspace, user_item_similarity)
    graph = block_array([[user_user, user_item], [user_item.T, item_item]], format="csr", dtype=np.float32)
    if settings.symmetric:
        graph = graph.maximum(graph.T).tocsr()
    graph.sort_indices()
    return graph


def graph_summary(graph: csr_array, blocks: tuple[int, int] | None = None) -> dict[str, Any]:
    """Figures that tell at a glance whether a graph is sound.

    Parameters
    ----------
    graph
        (n, m) binary.
    blocks
        (M, N) of a graph over users and items: adds the edges of each block, `edges_uu`, `edges_ui`, `edges_iu` and
        `edges_ii`.

    Returns
    -------
    dict
        `nodes` (rows), `edges`, `isolated` (rows without an edge: a convolution gives them zeros) and their share,
        `density` (edges of all n m), and `degrees`, a list of [least degree, rows] for degrees 0, 1, 2-3, 4-7, ... .
    """
    degrees = np.diff(graph.indptr)
    isolated = int(np.count_nonzero(degrees == 0))
    bins = np.bincount(np.frexp(degrees)[1]) if degrees.size else np.zeros(0, np.int64)
    summary: dict[str, Any] = {
        "nodes": graph.shape[0],
        "edges": int(graph.nnz),
        "isolated": isolated,
        "isolated_share": isolated / max(graph.shape[0], 1),
        "density": graph.nnz / max(graph.shape[0] * graph.shape[1], 1),
        "degrees": [[(1 << bin) >> 1, int(rows)] for bin, rows in enumerate(bins)],
    }
    if blocks is not None:
        users = blocks[0]
        if graph.shape != (sum(blocks), sum(blocks)):
            raise ValueError(f"graph of shape {graph.shape} has no blocks of {blocks[0]} users and {blocks[1]} items")
        for row, rows in (("u", graph[:users]), ("i", graph[users:])):
            among_users = int(np.count_nonzero(rows.indices < users))
            summary[f"edges_{row}u"], summary[f"edges_{row}i"] = among_users, int(rows.nnz) - among_users
    return summary


def _combine(left: csr_array, right: csr_array, operator: str) -> csr_array:
    """Union or intersection of two binary graphs."""
    return (left.maximum(right) if operator == "union" else left.multiply(right)).tocsr()
