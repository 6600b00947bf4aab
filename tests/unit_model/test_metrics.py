import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from model.compiled import top_items
from model.metrics import _top_items_torch, evaluate, popularity, ranking_metrics


def brute_force(scores: np.ndarray, train: np.ndarray, held_out: np.ndarray, k: int) -> dict[str, list[float]]:
    """Sort everything, one user at a time."""
    metrics: dict[str, list[float]] = {f"recall_at_{k}": [], f"ndcg_at_{k}": []}
    for user in range(len(scores)):
        wanted = set(np.flatnonzero(held_out[user]))
        if not wanted:
            continue
        candidates = [item for item in range(scores.shape[1]) if not train[user, item]]
        ranking = sorted(candidates, key=lambda item: (-scores[user, item], item))[:k]
        gains = [1 / np.log2(rank + 2) for rank, item in enumerate(ranking) if item in wanted]
        ideal = [1 / np.log2(rank + 2) for rank in range(min(k, len(wanted)))]
        metrics[f"recall_at_{k}"].append(len(gains) / len(wanted))
        metrics[f"ndcg_at_{k}"].append(sum(gains) / sum(ideal))
    return metrics


def example(seed: int, users: int, items: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties where `levels` is small, and disjoint train and held-out interactions."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-levels, levels + 1, (users, items)) / 3).astype(np.float32)
    kind = rng.random((users, items))
    return scores, kind < 0.3, kind > 0.75


def sparse(dense: np.ndarray) -> csr_array:
    return csr_array(dense.astype(np.float32))


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 200), st.integers(1, 50))
def test_metrics_equal_brute_force_and_lie_in_bounds(seed: int, users: int, items: int, levels: int) -> None:
    scores, train, held_out = example(seed, users, items, levels)
    held_out[0, 0], train[0, 0] = True, False
    result = evaluate(lambda block: torch.from_numpy(scores)[block], sparse(train), sparse(held_out), top_k=(1, 5, 20))
    for k in (1, 5, 20):
        for name, expected in brute_force(scores, train, held_out, k).items():
            np.testing.assert_allclose(result.per_user[name], expected, atol=1e-12)
            assert (result.per_user[name] >= 0).all()
            assert (result.per_user[name] <= 1 + 1e-12).all()
            assert result.means[name] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_blocks_equal_brute_force(threads: int) -> None:
    torch.set_num_threads(threads)
    scores, train, held_out = example(0, 1100, 40, 1000)
    result = evaluate(lambda block: torch.from_numpy(scores)[block], sparse(train), sparse(held_out))
    for name, expected in brute_force(scores, train, held_out, 20).items():
        np.testing.assert_allclose(result.per_user[name], expected, atol=1e-12)


def test_ndcg_by_hand() -> None:
    # Items 4 and 1 are wanted; item 4 is first, item 1 third: (1 + 1/2) / (1 + 1/log2(3)).
    metrics = ranking_metrics(np.array([[4, 0, 1]]), sparse(np.array([[0, 1, 0, 0, 1]])), np.array([0]), [3])
    assert metrics["ndcg_at_3"][0] == pytest.approx(1.5 / (1 + 1 / np.log2(3)))
    assert metrics["recall_at_3"][0] == 1


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 150))
def test_gpu_form_of_top_items_equals_the_kernel(seed: int, k: int, items: int) -> None:
    scores, train, _ = example(seed, 6, items, 4)
    scores[scores == 0] *= -1  # some zeros are negative
    graph, users = sparse(train), np.arange(6)
    np.testing.assert_array_equal(
        _top_items_torch(torch.from_numpy(scores), graph, users, k),
        top_items(scores, graph.indptr, graph.indices, users, k)[0],
    )


def test_training_items_are_never_recommended_even_when_few_others_are_left() -> None:
    train = sparse(np.array([[1, 1, 0, 1]]))
    top, _ = top_items(np.array([[9, 8, 1, 7]], dtype=np.float32), train.indptr, train.indices, np.array([0]), 3)
    assert top.tolist() == [[2, -1, -1]]


@pytest.mark.parametrize("place", [0, 7, 40, 99])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_nan_score_is_an_error(place: int, threads: int) -> None:
    torch.set_num_threads(threads)
    train, held_out = np.zeros((200, 100)), np.ones((200, 100))
    scores = torch.arange(100.0).flip(0).repeat(200, 1)
    scores[150, place] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate(lambda block: scores[block], sparse(train), sparse(held_out), top_k=(5,))
    assert torch.get_num_threads() == threads


def test_empty_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="no interactions"):
        evaluate(lambda block: torch.zeros(len(block), 2), sparse(np.array([[1, 0]])), sparse(np.array([[0, 0]])))


def test_popularity_ranks_by_training_count() -> None:
    train = sparse(np.array([[0, 1, 1], [0, 0, 1]]))
    assert popularity(train)(torch.tensor([0, 1])).tolist() == [[0, 1, 2], [0, 1, 2]]


def torch_s_own() -> RuntimeError:
    """What torch raises where the machine has no more memory."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55)
    return raised.value


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), torch_s_own()])
def test_users_whose_scores_do_not_fit_are_scored_by_halves(error: Exception, caplog: pytest.LogCaptureFixture):
    dense, train, held_out = example(3, 50, 30, 4)

    def measured(limit: int) -> dict[str, bytes]:
        def scores(users: torch.Tensor) -> torch.Tensor:
            if len(users) > limit:
                raise error
            return torch.from_numpy(dense)[users]

        found = evaluate(scores, sparse(train), sparse(held_out), (5, 10))
        return {name: values.tobytes() for name, values in found.per_user.items()}

    assert measured(7) == measured(1) == measured(50)
    assert "half as many are; the result is the same" in caplog.text
    with pytest.raises(MemoryError, match="no memory for one user's scores of 30 items"):
        measured(0)


def test_another_error_is_not_taken_for_a_shortage() -> None:
    _, train, held_out = example(3, 50, 30, 4)

    def scores(users: torch.Tensor) -> torch.Tensor:
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        evaluate(scores, sparse(train), sparse(held_out), (5,))
