import numpy as np
from scipy.sparse import csr_array

from model.metrics import recommend


def test_best_unseen_items_with_their_scores():
    rng = np.random.default_rng(3)
    users, items = (rng.normal(size=(size, 4)).astype(np.float32) for size in (700, 30))
    train = csr_array((rng.random((700, 30)) < 0.2).astype(np.float32))
    best, scores = recommend(users, items, train, 5)
    expected = users @ items.T
    expected[train.toarray() > 0] = -np.inf
    order = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    assert np.array_equal(best, order)
    assert np.allclose(scores, np.take_along_axis(expected, order, axis=1), atol=1e-5)


def test_a_user_who_has_almost_everything():
    train = csr_array(np.array([[1, 1, 0]], dtype=np.float32))
    best, scores = recommend(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), train, 2)
    assert best.tolist() == [[2, -1]]
    assert np.isnan(scores[0, 1])
