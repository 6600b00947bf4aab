import numpy as np
from scipy.sparse import csr_array

from pipeline.reasons import nearest_in_history


def test_reasons_are_the_nearest_own_items():
    angles = np.deg2rad([0, 10, 20, 90, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    vectors = np.concatenate([vectors, np.zeros((1, 2), np.float32)])  # item 5 has no text
    history = csr_array(np.array([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=np.float32))
    recommended = np.array([[1, 4, 5], [0, 1, -1]])
    reasons = nearest_in_history(recommended, history, vectors, count=2)
    assert reasons[0].tolist() == [[0, 2], [3, 2], [-1, -1]]  # ties at 10 degrees go to the lower id
    assert (reasons[1] == -1).all()
