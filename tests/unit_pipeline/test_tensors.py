"""The graphs' tensor form, which a GPU runs, against the compiled kernels; here on a CPU's tensors."""

import numpy as np
import pytest
import torch

from pipeline.graphs import tensors
from pipeline.graphs.execution import Execution
from pipeline.graphs.knn import nearest
from pipeline.graphs.omp import subspace_graph
from pipeline.graphs.products import accelerator, unit_rows

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
BUDGETS = [4e9, 1.0]  # bytes: room for everything, and for one row at a time without a Gram matrix


def text_like(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Clusters around a common direction."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    common, centres = 1.5 * shared.standard_normal(dimensions), shared.standard_normal((12, dimensions))
    features = common + centres[rng.integers(0, 12, rows)] + 0.8 * rng.standard_normal((rows, dimensions))
    return unit_rows(features, "features").units


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("same", [True, False])
def test_neighbours_are_the_kernels_own(device: torch.device, budget: float, same: bool) -> None:
    queries, candidates = text_like(230, 40, 1), None if same else text_like(310, 40, 2)
    expected = nearest(queries, candidates, 30)
    ids, similarities = tensors.nearest(queries, candidates, 30, device, budget, None)
    np.testing.assert_allclose(similarities, expected.similarities, atol=1e-6)
    assert np.mean(ids == expected.ids) > 0.999  # two within rounding of each other may swap places


@pytest.mark.parametrize("device", DEVICES)
def test_equal_similarities_go_to_the_lower_id(device: torch.device) -> None:
    queries = np.eye(3, dtype=np.float32)
    candidates = np.eye(3, dtype=np.float32)[[0, 1, 0, 2, 0, 1]]
    ids, _ = tensors.nearest(queries, candidates, 6, device, 4e9, None)
    assert ids.tolist() == [[0, 2, 4, 1, 3, 5], [1, 5, 0, 2, 3, 4], [3, 0, 1, 2, 4, 5]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("same", [True, False])
def test_supports_are_the_kernels_own(device: torch.device, budget: float, same: bool) -> None:
    targets, candidates = text_like(150, 40, 1), None if same else text_like(190, 40, 2)
    expected = subspace_graph(targets, candidates, 60, 8)
    found = np.sort(tensors.supports(targets, candidates, 60, 8, device, budget, None), axis=1)
    equal = [row.tolist() == expected[[t]].indices.tolist() for t, row in enumerate(found)]
    assert np.mean(equal) > 0.98


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("case", ["duplicates", "noisy copies", "low rank", "few candidates"])
def test_degenerate_dictionaries(device: torch.device, budget: float, case: str) -> None:
    rng = np.random.default_rng(3)
    features, size = rng.standard_normal((60, 20)), 25
    if case == "duplicates":
        features = features[rng.integers(0, 20, 60)]
    elif case == "noisy copies":  # residuals that float32 correlations alone are too coarse for
        features[20:] = features[rng.integers(0, 20, 40)] + 1e-2 * rng.standard_normal((40, 20))
    elif case == "low rank":
        features = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 20))
    else:
        features, size = features[:6], 5
    units = unit_rows(features, "features").units
    expected = subspace_graph(units, None, size, min(8, size))
    found = tensors.supports(units, None, size, min(8, size), device, budget, None)
    for target, row in enumerate(found):
        chosen = sorted(row[row >= 0].tolist())
        assert chosen == expected[[target]].indices.tolist()
        assert (row[len(chosen) :] == -1).all()


def test_progress_reaches_the_end() -> None:
    calls: list[tuple[int, int]] = []
    features = text_like(40, 8, 1)
    tensors.supports(features, None, 10, 3, CPU, 4e4, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (40, 40)
    assert len(calls) > 1


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"resources\.device = 'nonsense' cannot be used.*choose auto or cpu"):
        accelerator("nonsense")
    assert accelerator("cpu") is None
    with pytest.raises(ValueError, match="nonsense"):
        subspace_graph(text_like(9, 4, 1), None, 3, 2, Execution(device="nonsense"))


def test_a_gpu_plans_with_its_own_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60e9, 80e9))
    assert tensors._room(torch.device("cuda:1"), 1e9) == tensors.SHARE * 60e9
    assert tensors._room(CPU, 1e9) == 1e9
