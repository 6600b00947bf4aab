"""Fusion of subspace and similarity graphs into the semantic graph (eq. 6), and figures that describe a graph."""

from typing import Any, Literal

import numpy as np
from scipy.sparse import block_array, csr_array

from pipeline.settings import FusionSettings

Operator = Literal["union", "intersection"]
HISTOGRAM_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def combine(first: csr_array, second: csr_array, operator: Operator) -> csr_array:
    """Edges in either graph (`union`) or in both (`intersection`); shapes must agree."""
    if first.shape != second.shape:
        raise ValueError(f"graphs of shapes {first.shape} and {second.shape} cannot be combined")
    return _binary(first + second if operator == "union" else first.multiply(second))


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
    """Ĝ = C ⊕ G (eq. 6).

    Parameters
    ----------
    user_subspace, item_subspace, user_item_subspace
        C^U (M, M), C^I (N, N), C^UI (M, N).
    user_similarity, item_text_similarity, item_visual_similarity, user_item_similarity
        G_U (M, M), G_I^t and G_I^v (N, N), G_UI (M, N); a G_I^v of shape (0, 0) means no visual modality.

    Returns
    -------
    csr_array
        (M + N, M + N) float32, binary, users first. The UU and II blocks are directed unless `settings.symmetric`;
        the IU block is the transpose of the UI block.
    """
    item_similarity = item_text_similarity
    if item_visual_similarity.shape != (0, 0):
        item_similarity = combine(item_visual_similarity, item_text_similarity, settings.modality_operator)

    def block(subspace: csr_array, similarity: csr_array) -> csr_array:
        if settings.graphs == "both":
            return combine(subspace, similarity, settings.operator)
        return _binary(subspace if settings.graphs == "subspace" else similarity)

    users, items = user_item_subspace.shape
    user_user = block(user_subspace, user_similarity)
    item_item = block(item_subspace, item_similarity)
    user_item = block(user_item_subspace, user_item_similarity)
    if settings.blocks == "inter":
        user_user, item_item = _empty(users, users), _empty(items, items)
    elif settings.blocks == "intra":
        user_item = _empty(users, items)
    fused = csr_array(block_array([[user_user, user_item], [user_item.T, item_item]], format="csr"))
    return combine(fused, csr_array(fused.T), "union") if settings.symmetric else _binary(fused)


def graph_summary(graph: csr_array, blocks: tuple[int, int] | None = None) -> dict[str, Any]:
    """Figures of a graph.

    Parameters
    ----------
    blocks
        (M, N) of a graph over users and items: edges are then counted by block too.

    Returns
    -------
    dict
        rows, columns, edges, density; isolated (rows without an edge) and isolated_share; mean_degree, max_degree;
        degree_histogram ("0", "1", "2-3", "4-7", ... -> rows); edges_uu, edges_ui, edges_iu, edges_ii.
    """
    degrees = np.diff(graph.indptr)
    rows, columns = graph.shape
    isolated = int((degrees == 0).sum())
    summary: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "edges": int(graph.nnz),
        "density": graph.nnz / max(rows * columns, 1),
        "isolated": isolated,
        "isolated_share": isolated / max(rows, 1),
        "mean_degree": float(degrees.mean()) if rows else 0.0,
        "max_degree": int(degrees.max()) if rows else 0,
        "degree_histogram": _histogram(degrees),
    }
    if blocks is not None:
        users, items = blocks
        for row_name, start, end in (("u", 0, users), ("i", users, users + items)):
            part = graph.indices[graph.indptr[start] : graph.indptr[end]]
            to_users = int((part < users).sum())
            summary |= {f"edges_{row_name}u": to_users, f"edges_{row_name}i": len(part) - to_users}
    return summary


def _histogram(degrees: np.ndarray) -> dict[str, int]:
    histogram = {"0": int((degrees == 0).sum())}
    for low, high in zip(HISTOGRAM_BOUNDS, (*HISTOGRAM_BOUNDS[1:], np.inf), strict=True):
        count = int(((degrees >= low) & (degrees < high)).sum())
        name = str(low) if high == low + 1 else f"{low}+" if high == np.inf else f"{low}-{int(high) - 1}"
        if count:
            histogram[name] = count
    return histogram


def _binary(graph: csr_array) -> csr_array:
    result = csr_array(graph, dtype=np.float32)
    result.sum_duplicates()
    result.eliminate_zeros()
    result.data = np.ones(result.nnz, dtype=np.float32)
    return result


def _empty(rows: int, columns: int) -> csr_array:
    return csr_array((rows, columns), dtype=np.float32)
