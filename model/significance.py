"""Paired tests between two runs on the same split: is a difference more than noise over users?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from model.metrics import Evaluation


@dataclass(frozen=True)
class Comparison:
    """One metric of two runs, over the users of both.

    Parameters
    ----------
    difference
        Mean of treatment minus baseline.
    interval
        95 % confidence interval of the mean difference (t distribution).
    effect_size
        Cohen's d_z: the mean difference in standard deviations of the differences; 0 when nothing differs.
    t_test, wilcoxon
        Two-sided p-values of the paired t-test and the Wilcoxon signed-rank test (zero differences take
        part in the ranking, after Pratt); 1 when nothing differs.
    """

    users: int
    difference: float
    interval: tuple[float, float]
    effect_size: float
    t_test: float
    wilcoxon: float


def compare(baseline: Evaluation, treatment: Evaluation) -> dict[str, Comparison]:
    """Paired comparison of every metric that both runs have.

    Raises
    ------
    ValueError
        When the runs were not evaluated on the same users.
    """
    if not np.array_equal(baseline.users, treatment.users):
        raise ValueError("the two runs were evaluated on different users; compare runs on one and the same split")
    shared = [name for name in baseline.per_user if name in treatment.per_user]
    return {name: paired(baseline.per_user[name], treatment.per_user[name]) for name in shared}


def compare_seeds(baseline: Sequence[Evaluation], treatment: Sequence[Evaluation]) -> dict[str, Comparison]:
    """`compare` on each user's mean over the seeds of a system: users stay the unit, seeds add no false sample."""
    return compare(_mean_over_seeds(baseline), _mean_over_seeds(treatment))


def paired(baseline: np.ndarray, treatment: np.ndarray) -> Comparison:
    """Compare two systems' values for the same users, both of shape (U,) with U >= 2."""
    if baseline.shape != treatment.shape or baseline.ndim != 1 or len(baseline) < 2:
        raise ValueError(f"expected two arrays of one length of at least 2, found {baseline.shape}, {treatment.shape}")
    difference = np.asarray(treatment, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    mean = float(difference.mean())
    spread = float(difference.std(ddof=1))
    if spread == 0:
        p = 1.0 if mean == 0 else 0.0
        effect = 0.0 if mean == 0 else float(np.copysign(np.inf, mean))
        return Comparison(len(difference), mean, (mean, mean), effect, p, p)
    error = spread / np.sqrt(len(difference))
    margin = float(stats.t.ppf(0.975, len(difference) - 1) * error)
    return Comparison(
        users=len(difference),
        difference=mean,
        interval=(mean - margin, mean + margin),
        effect_size=mean / spread,
        t_test=float(stats.ttest_rel(treatment, baseline).pvalue),
        wilcoxon=float(stats.wilcoxon(difference, zero_method="pratt", method="approx").pvalue),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction for testing several hypotheses; keeps the order of `p_values`."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _mean_over_seeds(runs: Sequence[Evaluation]) -> Evaluation:
    first = runs[0]
    if any(not np.array_equal(run.users, first.users) for run in runs):
        raise ValueError("the seeds of one system were evaluated on different users")
    names = [name for name in first.per_user if all(name in run.per_user for run in runs)]
    return Evaluation(first.users, {name: np.mean([run.per_user[name] for run in runs], axis=0) for name in names})
