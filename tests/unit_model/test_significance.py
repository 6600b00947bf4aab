import numpy as np
import pytest
from scipy import stats

from model.metrics import Evaluation
from model.significance import compare, compare_seeds, holm, paired


def evaluation(values: np.ndarray, first_user: int = 0) -> Evaluation:
    return Evaluation(np.arange(first_user, first_user + len(values)), {"recall_at_20": values})


def test_planted_difference_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.random(2000)
    noise, gain = (baseline + rng.normal(mean, 0.5, 2000) for mean in (0, 0.1))
    assert paired(baseline, gain).t_test < 1e-6
    assert paired(baseline, gain).wilcoxon < 1e-6
    assert paired(baseline, gain).effect_size == pytest.approx(0.2, abs=0.05)
    low, high = paired(baseline, noise).interval
    assert paired(baseline, noise).t_test > 0.05
    assert low < 0 < high


def test_statistics_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1.
    result = paired(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert result.difference == 2
    assert result.effect_size == 2
    assert result.t_test == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))
    assert result.interval == pytest.approx((2 - 4.30265 / np.sqrt(3), 2 + 4.30265 / np.sqrt(3)), rel=1e-5)


def test_direction_is_treatment_minus_baseline() -> None:
    worse = compare(evaluation(np.array([0.5, 0.6, 0.9])), evaluation(np.array([0.1, 0.5, 0.6])))
    assert worse["recall_at_20"].difference < 0
    assert worse["recall_at_20"].effect_size < 0


def test_equal_runs_differ_by_nothing() -> None:
    values = np.array([0.0, 1.0, 0.5])
    result = paired(values, values)
    assert (result.difference, result.effect_size, result.t_test, result.wilcoxon) == (0, 0, 1, 1)


def test_other_users_are_an_error() -> None:
    with pytest.raises(ValueError, match="different users"):
        compare(evaluation(np.zeros(3)), evaluation(np.zeros(3), first_user=1))


def test_seeds_are_averaged_per_user() -> None:
    baseline = [evaluation(np.zeros(3)), evaluation(np.array([2.0, 2.0, 0.0]))]
    treatment = [evaluation(np.array([2.0, 3.0, 3.0]))]
    result = compare_seeds(baseline, treatment)["recall_at_20"]
    assert result.users == 3
    assert result.difference == pytest.approx(2)


def test_holm_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert list(corrected) == ["a", "b", "c"]
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1
