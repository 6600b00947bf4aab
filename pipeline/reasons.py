"""Why an item is recommended: the items of the user's own history that are nearest to it in meaning."""

import numpy as np
from scipy.sparse import csr_array


def nearest_in_history(
    recommended: np.ndarray, history: csr_array, vectors: np.ndarray, count: int = 2, minimum: float = 0.1
) -> np.ndarray:
    """Nearest history items of every recommended item.

    Parameters
    ----------
    recommended
        Item ids, (M, k) integers; -1 where there is none.
    history
        (M, N); the items of each user's history.
    vectors
        Unit text vectors of the items, (N, d) float32; zero rows are near to nothing.
    count
        Reasons per recommendation.
    minimum
        Least cosine that still counts as a reason.

    Returns
    -------
    numpy.ndarray
        Item ids, (M, k, count) int32, nearest first, ties to the lower id; -1 where there is no reason.
    """
    reasons = np.full((*recommended.shape, count), -1, dtype=np.int32)
    for user in range(history.shape[0]):
        own = history.indices[history.indptr[user] : history.indptr[user + 1]]  # (h,) ascending
        cosines = vectors[recommended[user]] @ vectors[own].T  # (k, h)
        cosines[recommended[user] < 0] = -1
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]  # (k, <= count)
        near = np.take_along_axis(cosines, order, axis=1) >= minimum
        reasons[user, :, : order.shape[1]] = np.where(near, own[order], -1)
    return reasons
