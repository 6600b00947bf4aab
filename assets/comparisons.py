"""Models side by side on a dataset, from the replicates that there are.

Settings are tuned nowhere here: give them in the dataset's file, or take those of sweeps (`scale report --tuned`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl
from scipy.sparse import csr_array

from assets.metrics import ranking_metrics
from assets.replicates import REPLICATES, drawn, frame, replicates, spread, stored_replicates
from assets.reporting import sections
from assets.settings import SUBJECT, Dataset, partition_of, settings_of
from assets.stage import Result, stage
from assets.store import stored_path
from assets.training import evaluation_of, interaction_matrix, metrics_of, pairs_of
from assets.trials import trial_record
from model.registry import MODELS
from pipeline import parquet

if TYPE_CHECKING:
    from model.metrics import Evaluation

TABLES = [dg.AssetKey(name) for name in ("users", "items", "interactions")]

# Systems of the paper's tables by their names there, and the models that stand for them.
TABLE_1 = {
    "BPR": ["bpr"], "LightGCN": ["lightgcn"], "LayerGCN": ["layergcn"], "VBPR": ["vbpr"], "LATTICE": ["lattice"],
    "SLMRec": ["slmrec"], "BM3": ["bm3"], "FREEDOM": ["freedom"], "MGCN": ["mgcn"], "LGMRec": ["lgmrec"],
    "DiffMM": ["diffmm"], "MENTOR": ["mentor"], "SCALE": ["scale"],
}  # fmt: skip
TABLE_2 = {
    "LightGCN": ["lightgcn"], "KAR (LightGCN)": ["kar"], "RLMRec (LightGCN)": ["rlmrec-con", "rlmrec-gen"],
    "SGL": ["sgl"], "KAR (SGL)": ["kar-sgl"], "RLMRec (SGL)": ["rlmrec-con-sgl", "rlmrec-gen-sgl"],
    "SCALE": ["scale"],
}  # fmt: skip
NOTE_1 = "the paper quotes most baselines from MENTOR's table"
NOTE_2 = (
    "the paper names d = 64 and batches of 2,048, RLMRec's own runs take 32 and 4,096, and which of RLMRec's two "
    "alignments its rows are of is not said"
)

SIGNIFICANCE = {
    "model": pl.String, "title": pl.String, "against": pl.String, "against_title": pl.String, "metric": pl.String,
    "users": pl.Int64, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64, "effect_size": pl.Float64,
    "t_test": pl.Float64, "wilcoxon": pl.Float64,
}  # fmt: skip
PUBLISHED = {
    "system": pl.String, "model": pl.String, "metric": pl.String, "published": pl.Float64, "ours": pl.Float64,
    "sd": pl.Float64, "difference": pl.Float64, "why": pl.String,
}  # fmt: skip
BREAKDOWN = {
    "model": pl.String, "title": pl.String, "axis": pl.String, "bucket": pl.String, "count": pl.Int64,
    "metric": pl.String, "mean": pl.Float64, "sd": pl.Float64, "seeds": pl.Int64,
}  # fmt: skip
LISTS = {
    "model": pl.String, "title": pl.String, "measure": pl.String, "mean": pl.Float64, "sd": pl.Float64,
    "seeds": pl.Int64,
}  # fmt: skip


@stage(
    group="evidence",
    code=["model.significance"],
    tables={
        "comparison": "Test metrics of every model that has replicates: mean and sd over seeds.",
        "significance": "Each model against SCALE, LightGCN and the best baseline by validation, paired by user.",
    },
    reads=REPLICATES,
    whatever_there_is=True,
)
def comparison_tables(context: dg.AssetExecutionContext) -> dict[str, Result]:
    """Means over seeds, and paired tests on each user's mean over seeds, p-values after Holm over the models."""
    name = partition_of(context)["dataset"]
    found = replicates(name)
    rows = [row for model, table in found.items() for row in _means(table, _about(model))]
    metric = f"validation_{settings_of(context).training.selection_metric}"
    strength = {model: float(runs[metric].mean()) for model, runs in stored_replicates(name, "replicate_runs").items()}  # type: ignore[arg-type]
    comparison, significance = pl.DataFrame(rows), significance_table(found, strength)
    shown = {"models": len(found), "best_by_validation": MODELS[max(strength, key=strength.__getitem__)].title}
    return {
        "comparison": Result(comparison, shown | drawn(context, sections.comparison(comparison))),
        "significance": Result(
            significance, drawn(context, sections.significance(significance)) if significance.height else {}
        ),
    }


@stage(
    group="evidence",
    code=[],
    tables={
        "table_1": "The paper's Table 1 on this dataset: published numbers, ours, and what lies between.",
        "table_2": "The paper's Table 2 on this dataset: published numbers, ours, and what lies between.",
    },
    reads=REPLICATES,
    whatever_there_is=True,
)
def paper_tables(context: dg.AssetExecutionContext) -> dict[str, Result]:
    """Ours beside the published numbers; a table that does not have this dataset is empty."""
    found, settings = replicates(partition_of(context)["dataset"]), settings_of(context)
    made = {}
    for number, (systems, note) in enumerate(((TABLE_1, NOTE_1), (TABLE_2, NOTE_2)), start=1):
        table = paper_table(systems, found, settings, note)
        shown = drawn(context, sections.published(table, number)) if table.height else {}
        made[f"table_{number}"] = Result(table, shown)
    return made


@stage(
    group="evidence",
    code=["model.lists"],
    tables={
        "breakdown": "Test metrics by the activity of users and by the popularity of items, cold items among them.",
        "lists": "Coverage, exposure, popularity, novelty and diversity of the recommended lists.",
    },
    reads=[*REPLICATES, *TABLES],
    whatever_there_is=True,
)
def breakdown_tables(context: dg.AssetExecutionContext) -> dict[str, Result]:
    """For whom the models are right, on which items, and what their lists are like."""
    name = partition_of(context)["dataset"]
    users, items, pairs = (parquet.read_table(stored_path(key, name)) for key in TABLES)
    shape = (users.height, items.height)
    train, test = (interaction_matrix(pairs_of(pairs, split), shape) for split in ("train", "test"))
    groups: list[dict[str, Any]] = []
    measures: list[dict[str, Any]] = []
    for model, table in replicates(name).items():
        seeds = table.partition_by("seed", maintain_order=True)
        found = [_groups(seed, train, test) for seed in seeds]
        for place, (axis, bucket, count, metric, _) in enumerate(found[0]):
            means = spread([seed[place][-1] for seed in found])
            about = {**_about(model), "axis": axis, "bucket": bucket, "count": count, "metric": metric}
            groups.append({**about, **means})
        alike = [_list_metrics(seed, train) for seed in seeds]
        measures += [
            {**_about(model), "measure": measure, **spread([seed[measure] for seed in alike])} for measure in alike[0]
        ]
    breakdown, lists = frame(groups, BREAKDOWN), frame(measures, LISTS)
    return {
        "breakdown": Result(breakdown, drawn(context, sections.breakdown(breakdown))),
        "lists": Result(lists, drawn(context, sections.lists(lists))),
    }


def cost(name: str) -> pl.DataFrame:
    """What each model's trainings took, mean over seeds, beside what they gave.

    Not an asset: seconds differ from run to run, and a result is a function of its input.

    Returns
    -------
    model, title, seconds, seconds_per_epoch, best_epoch, epochs, peak_memory_gb, recall_at_20.
    """
    rows = []
    for model, runs in stored_replicates(name, "replicate_runs").items():
        records = pl.DataFrame([
            {
                "seconds": record["seconds"], "seconds_per_epoch": record["seconds"] / record["epochs"],
                "best_epoch": record["best_epoch"], "epochs": record["epochs"],
                "peak_memory_gb": record["peak_memory_gb"], "recall_at_20": record["test"].get("recall_at_20"),
            }
            for record in (trial_record(name, trial) for trial in runs["trial"])
        ])  # fmt: skip
        rows.append({**_about(model), **records.mean().row(0, named=True)})
    return pl.DataFrame(rows)


def _about(model: str) -> dict[str, str]:
    return {"model": model, "title": MODELS[model].title}


def _means(table: pl.DataFrame, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric: mean and sd over seeds of the mean over users."""
    by_seed = table.group_by("seed").agg(pl.col(metrics_of(table)).mean(), users=pl.len()).sort("seed")
    return [
        {**about, "metric": metric, **spread(by_seed[metric].to_list()), "users": by_seed["users"][0]}
        for metric in metrics_of(table)
    ]


def significance_table(found: Mapping[str, pl.DataFrame], strength: Mapping[str, float]) -> pl.DataFrame:
    """Every model against SCALE, against LightGCN and against the best baseline, as far as these are there.

    Parameters
    ----------
    found
        Replicates by model.
    strength
        Validation metric by model: the highest, SCALE's apart, is the best baseline's.

    Returns
    -------
    polars.DataFrame
        The columns of `SIGNIFICANCE`. `difference` is the model's mean minus that of the one it is held `against`;
        p-values are after Holm over all models that are held against the same one.
    """
    best = max((model for model in found if model != SUBJECT), key=strength.__getitem__, default=SUBJECT)
    against = [model for model in dict.fromkeys((SUBJECT, "lightgcn", best)) if model in found]
    return frame([test for other in against for test in _tests(found, other)], SIGNIFICANCE)


def _tests(found: Mapping[str, pl.DataFrame], other: str) -> list[dict[str, Any]]:
    """Every other model against one, all metrics."""
    from model.significance import compare_seeds, holm

    baseline = _evaluations(found[other])
    tests = {model: compare_seeds(baseline, _evaluations(table)) for model, table in found.items() if model != other}
    rows = []
    for metric in baseline[0].per_user:
        single = {model: test[metric] for model, test in tests.items() if metric in test}
        t_test = holm({model: test.t_test for model, test in single.items()})
        wilcoxon = holm({model: test.wilcoxon for model, test in single.items()})
        rows += [
            {
                **_about(model), "against": other, "against_title": MODELS[other].title, "metric": metric,
                "users": test.users, "difference": test.difference, "low": test.interval[0], "high": test.interval[1],
                "effect_size": test.effect_size, "t_test": t_test[model], "wilcoxon": wilcoxon[model],
            }
            for model, test in single.items()
        ]  # fmt: skip
    return rows


def _evaluations(table: pl.DataFrame) -> list["Evaluation"]:
    return [evaluation_of(seed) for seed in table.partition_by("seed", maintain_order=True)]


def paper_table(
    systems: Mapping[str, Sequence[str]], found: Mapping[str, pl.DataFrame], settings: Dataset, note: str
) -> pl.DataFrame:
    """Published metrics of a table's systems, ours from the replicates `found`, and the difference.

    Parameters
    ----------
    systems
        Names in the table -> models that stand for them.
    note
        Of the table, for the reader of a difference.

    Returns
    -------
    polars.DataFrame
        system, model, metric, published, ours, sd, difference, why; empty unless all numbers that were published for
        the dataset are of these systems.
    """
    if not settings.published or not settings.published.keys() <= systems.keys():
        return frame([], PUBLISHED)
    encoder = settings.embeddings.model if settings.embeddings.encoder == "sentence-transformers" else "LSA"
    profiles = f"{settings.profiles.backend} profiles of {settings.profiles.history} histories"
    ours_is = f"{settings.interactions.split} split, {profiles}, {encoder}"
    why = f"ours: {ours_is}; the paper's own split and profiles are not published, and {note}"
    rows = []
    for system, models in systems.items():
        published = settings.published.get(system, {})
        for model in models:
            ours = {row["metric"]: row for row in _means(found[model], {})} if model in found else {}
            label = system if len(models) == 1 else f"{system}: {MODELS[model].title}"
            for metric in ranking_metrics([*published, *ours]):
                row = {"system": label, "model": model, "metric": metric, "published": published.get(metric)}
                if metric in ours:
                    row |= {"ours": ours[metric]["mean"], "sd": ours[metric]["sd"]}
                if metric in ours and metric in published:
                    row |= {"difference": ours[metric]["mean"] - published[metric], "why": why}
                rows.append(row)
    return frame(rows, PUBLISHED)


def _groups(seed: pl.DataFrame, train: csr_array, test: csr_array) -> list[tuple[str, str, int, str, float]]:
    """Axis, bucket, its users or held-out pairs, metric and mean, for one seed."""
    from model.lists import activity_buckets, bucket_means, recall_by_popularity

    users, top = seed["user"].to_numpy(), _lists(seed)
    buckets = activity_buckets(users, train)
    means = bucket_means(buckets, {metric: seed[metric].to_numpy() for metric in metrics_of(seed)})
    activity = [
        ("activity", bucket, len(buckets[bucket]), metric, value)
        for bucket, values in means.items()
        for metric, value in values.items()
    ]
    recall = recall_by_popularity(top, users, train, test)
    metric = f"recall_at_{top.shape[1]}"
    return activity + [("popularity", group, found.pairs, metric, found.recall) for group, found in recall.items()]


def _list_metrics(seed: pl.DataFrame, train: csr_array) -> dict[str, float]:
    from model.lists import list_metrics

    top = _lists(seed)
    return list_metrics(top, seed["user"].to_numpy(), train, top.shape[1])


def _lists(seed: pl.DataFrame) -> np.ndarray:
    """Items of every list, (U, K)."""
    return np.stack(seed["top"].to_list())
