"""Studies on a dataset: ablations of SCALE, audits of the leak and of eq. 6, sensitivity, splits, modalities, a map.

Each trains variants of a model; one that two studies share is trained once (see `trials`).
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from assets.model_groups import group_of
from assets.nodes import GPU
from assets.progress import Progress
from assets.replicates import REPLICATES, drawn, frame, spread, stored_replicates
from assets.reporting import sections
from assets.settings import SUBJECT, overrides_of, partition_of, settings_of
from assets.stage import Result, stage
from assets.store import stored_path
from assets.training import inputs_of
from assets.trials import Outcome, Trial, run, seeds_of, trial_items
from assets.variants import varied
from model.registry import MODELS
from pipeline import parquet

MULTIMODAL = [dg.AssetKey(name) for name in inputs_of(group_of("freedom"))]
READS = [group_of(SUBJECT).settings_key, *(dg.AssetKey(name) for name in inputs_of(group_of(SUBJECT)))]

# The variants of Fig. 4a. Without SAG the relation alignment still draws from the pursuits' supports.
ABLATIONS: dict[str, dict[str, Any]] = {
    "SCALE": {},
    "w/o LLM": {"profiles.backend": "metadata"},
    "w/o L_align_s": {"models.scale.semantic_weight": 0.0},
    "w/o L_align_r": {"models.scale.relation_weight": 0.0},
    "w/o SAG": {"fusion.graphs": "similarity"},
    "w/o FSG": {"fusion.graphs": "subspace"},
    "w/o inter": {"fusion.blocks": "intra"},
    "w/o intra": {"fusion.blocks": "inter"},
}
FUSIONS: dict[str, dict[str, Any]] = {
    "intersection (eq. 6 as printed)": {"fusion.operator": "intersection", "fusion.modality_operator": "intersection"},
    "intersection, union of modalities": {"fusion.operator": "intersection", "fusion.modality_operator": "union"},
    "union": {"fusion.operator": "union", "fusion.modality_operator": "union"},
}
HISTORIES: dict[str, dict[str, Any]] = {name: {"profiles.history": name} for name in ("train", "all")}

VARIANTS = {
    "variant": pl.String, "metric": pl.String, "mean": pl.Float64, "sd": pl.Float64, "seeds": pl.Int64,
    "difference": pl.Float64, "effect_size": pl.Float64, "t_test": pl.Float64, "wilcoxon": pl.Float64,
}  # fmt: skip
EDGES = ("edges_uu", "edges_ui", "edges_ii")
FUSION_AUDIT = {
    "variant": pl.String, **dict.fromkeys(EDGES, pl.Int64), "isolated_nodes": pl.Int64, "metric": pl.String,
    "mean": pl.Float64, "sd": pl.Float64, "seeds": pl.Int64,
}  # fmt: skip
SENSITIVITY = {
    "panel": pl.String, "setting": pl.String, "value": pl.Float64, "setting_2": pl.String, "value_2": pl.Float64,
    "metric": pl.String, "mean": pl.Float64, "sd": pl.Float64, "seeds": pl.Int64,
}  # fmt: skip
OTHER = "lightgcn"  # a model without texts, beside SCALE on other splits
SPLITS = ("random", "user_time", "global_time")
SPLIT_STUDY = {
    "split": pl.String, "model": pl.String, "title": pl.String, "metric": pl.String, "mean": pl.Float64,
    "sd": pl.Float64, "seeds": pl.Int64,
}  # fmt: skip
MODALITIES: dict[str, list[str] | None] = {"text": ["text"], "images": ["visual"], "both": None}
MODALITY_STUDY = {
    "model": pl.String, "title": pl.String, "modalities": pl.String, "metric": pl.String, "mean": pl.Float64,
    "sd": pl.Float64, "seeds": pl.Int64,
}  # fmt: skip
MAPPED = ("scale", "lightgcn", "freedom")  # the paper's Figs. 1, 3 and 4
MAP_ITEMS, MAP_CATEGORIES, NEIGHBOURS = 2_000, 8, 10
ITEM_MAP = {
    "system": pl.String, "item": pl.Int32, "title": pl.String, "category": pl.String, "x": pl.Float32, "y": pl.Float32,
}  # fmt: skip
PURITY = {"system": pl.String, "purity": pl.Float64, "silhouette": pl.Float64}


@stage(group="evidence", code=["model.significance"], settings=["evidence"], reads=READS, pool=GPU)
def ablations(context: dg.AssetExecutionContext, progress: Progress) -> Result:
    """SCALE without each of its parts in turn (Fig. 4a), over all seeds."""
    found = _variants(context, progress, "ablations", ABLATIONS, settings_of(context).evidence.seeds)
    table = frame(_against(found["SCALE"], found), VARIANTS)
    return Result(table, drawn(context, sections.ablations(table)))


@stage(group="evidence", code=["model.significance"], settings=["evidence"], reads=READS, pool=GPU)
def leak_audit(context: dg.AssetExecutionContext, progress: Progress) -> Result:
    """What it is worth to SCALE if profiles are written from held-out interactions, too; empty where they are given."""
    if settings_of(context).profiles.backend == "given":
        reason = (
            "not possible: profiles come with the dataset (profiles.backend: given), whatever profiles.history says"
        )
        return Result(frame([], VARIANTS).rename({"variant": "history"}), {"leak audit": reason})
    found = _variants(context, progress, "leak audit", HISTORIES, settings_of(context).evidence.seeds)
    table = frame(_against(found["train"], found), VARIANTS).rename({"variant": "history"})
    return Result(table, drawn(context, sections.leak_audit(table)))


@stage(group="evidence", code=["pipeline.graphs.fusion"], settings=["evidence"], reads=READS, pool=GPU)
def fusion_audit(context: dg.AssetExecutionContext, progress: Progress) -> Result:
    """Eq. 6 as an intersection and as a union: edges, isolated nodes, metrics."""
    from pipeline.graphs.fusion import graph_summary

    rows: list[dict[str, Any]] = []
    found = _variants(context, progress, "fusion audit", FUSIONS, settings_of(context).evidence.seeds)
    for name, variant in found.items():
        inputs = variant.outcomes[0].trial.inputs
        blocks = parquet.read_graph(inputs["user_item_subspace_graph"].path).shape
        summary = graph_summary(parquet.read_graph(inputs["semantic_graph"].path), blocks)
        about = {"isolated_nodes": summary["isolated"], **{edges: summary[edges] for edges in EDGES}}
        rows += [{"variant": name, **about, **row} for row in variant.means()]
    table = frame(rows, FUSION_AUDIT)
    return Result(table, drawn(context, sections.fusion_audit(table)))


@stage(group="evidence", code=[], settings=["sensitivity"], reads=READS, pool=GPU)
def sensitivity(context: dg.AssetExecutionContext, progress: Progress) -> Result:
    """How SCALE answers to its settings (Fig. 5): weights, negatives, sparsity of each graph, layers."""
    settings = settings_of(context).evidence
    points = [
        (" x ".join(key.rpartition(".")[2] for key in panel), dict(zip(panel, values, strict=True)))
        for panel in settings.sensitivity
        for values in itertools.product(*panel.values())
    ]
    names = [", ".join(f"{key}={value}" for key, value in changes.items()) for _, changes in points]
    plan = {name: changes for name, (_, changes) in zip(names, points, strict=True)}
    found = _variants(context, progress, "sensitivity", plan, settings.sensitivity_seeds)
    rows = []
    for name, (panel, changes) in zip(names, points, strict=True):
        (setting, value), *second = changes.items()
        setting_2, value_2 = second[0] if second else (None, None)
        about = {"panel": panel, "setting": setting, "value": value, "setting_2": setting_2, "value_2": value_2}
        rows += [{**about, **row} for row in found[name].means()]
    table = frame(rows, SENSITIVITY)
    return Result(table, drawn(context, sections.sensitivity(table)))


@stage(group="evidence", code=[], settings=["sensitivity"], reads=READS, pool=GPU)
def split_study(context: dg.AssetExecutionContext, progress: Progress) -> Result:
    """SCALE and LightGCN on splits by chance and by time; empty where interactions have no times."""
    name, seeds = partition_of(context)["dataset"], settings_of(context).evidence.sensitivity_seeds
    rows: list[dict[str, Any]] = []
    times = pl.scan_parquet(stored_path(dg.AssetKey("interactions"), name)).select(pl.col("timestamp").is_null().any())
    if times.collect().item():
        return Result(frame(rows, SPLIT_STUDY), {"split by time": "not possible: interactions have no times"})
    plan = {f"on a {split} split": {"interactions.split": split} for split in SPLITS}
    for model in (SUBJECT, OTHER):
        found = _variants(context, progress, f"splits of {MODELS[model].title}", plan, seeds, model)
        for split, variant in zip(SPLITS, found.values(), strict=True):
            rows += [{"split": split, "model": model, "title": MODELS[model].title, **row} for row in variant.means()]
    table = frame(rows, SPLIT_STUDY)
    return Result(table, drawn(context, sections.split_study(table)))


@stage(
    group="evidence",
    code=[],
    settings=["sensitivity"],
    reads=[*REPLICATES, *MULTIMODAL],
    whatever_there_is=True,
    pool=GPU,
)
def modality_study(context: dg.AssetExecutionContext, progress: Progress) -> Result:
    """Every multimodal model that has replicates, with texts, with images, with both; empty where one is missing."""
    name, seeds = partition_of(context)["dataset"], settings_of(context).evidence.sensitivity_seeds
    rows: list[dict[str, Any]] = []
    for asset, others in (("item_visual_embeddings", "texts"), ("item_text_embeddings", "images")):
        path = stored_path(dg.AssetKey(asset), name)
        if not path.exists() or not parquet.read_array(path).any():
            return Result(frame(rows, MODALITY_STUDY), {"modalities": f"{others} alone"})
    for model in (model for model in stored_replicates(name) if "modalities" in MODELS[model].needs):
        plan = {
            f"of {modalities}": {f"models.{model}.modalities": chosen} if chosen else {}
            for modalities, chosen in MODALITIES.items()
        }
        found = _variants(context, progress, f"modalities of {MODELS[model].title}", plan, seeds, model)
        for modalities, variant in zip(MODALITIES, found.values(), strict=True):
            about = {"model": model, "title": MODELS[model].title, "modalities": modalities}
            rows += [{**about, **row} for row in variant.means()]
    table = frame(rows, MODALITY_STUDY)
    return Result(table, drawn(context, sections.modality_study(table)) if rows else {})


@stage(
    group="evidence",
    code=[],
    tables={
        "item_map": "t-SNE of item representations by category: SCALE, the same without L_align_r, LightGCN, FREEDOM.",
        "item_map_purity": "How well the representations themselves keep categories together: k-NN purity, silhouette.",
    },
    reads=[*REPLICATES, dg.AssetKey("item_metadata")],
    whatever_there_is=True,
)
def item_maps(context: dg.AssetExecutionContext, progress: Progress) -> dict[str, Result]:
    """Where the items of the commonest categories lie (Figs. 1, 3, 4); empty where items have no categories."""
    name = partition_of(context)["dataset"]
    runs = stored_replicates(name, "replicate_runs")
    items = with_category(parquet.read_table(stored_path(dg.AssetKey("item_metadata"), name)))
    systems: dict[str, np.ndarray] = {}
    if items.height:
        systems = {MODELS[model].title: trial_items(name, runs[model]["trial"][0]) for model in MAPPED if model in runs}
        if SUBJECT in runs:
            without = "w/o L_align_r"
            variant = _variants(context, progress, "item map", {without: ABLATIONS[without]}, 1)[without]
            systems |= {outcome.trial.label: outcome.items for outcome in variant.outcomes}
    own = {system: vectors[items["item"].to_numpy()] for system, vectors in systems.items()}
    purities = [
        {"system": system, **cohesion(vectors, items["category"].to_numpy())} for system, vectors in own.items()
    ]
    places = [_places(system, vectors, items) for system, vectors in own.items()]
    table, purity = pl.concat([pl.DataFrame(schema=ITEM_MAP), *places]), frame(purities, PURITY)
    shown = drawn(context, sections.item_map(table, purity)) if table.height else {}
    return {"item_map": Result(table, shown), "item_map_purity": Result(purity)}


# ----------------------------------------------------------------------------------------------------- variants


@dataclass(frozen=True)
class _Variant:
    """Trainings of a model with some settings changed, one a seed."""

    outcomes: list[Outcome]

    def means(self) -> list[dict[str, Any]]:
        """One row a metric: mean and sd over seeds."""
        records = [outcome.record["test"] for outcome in self.outcomes]
        return [{"metric": name, **spread([record[name] for record in records])} for name in records[0]]


def _variants(
    context: dg.AssetExecutionContext,
    progress: Progress,
    label: str,
    plan: Mapping[str, Mapping[str, Any]],
    seeds: int,
    model: str = SUBJECT,
) -> dict[str, _Variant]:
    """Train every variant of a plan (name -> settings by dotted key) with `seeds` seeds, all of them together."""
    name, base, settings = partition_of(context)["dataset"], overrides_of(context), settings_of(context)
    trials: dict[str, list[Trial]] = {}
    for variant, changes in plan.items():
        inputs = varied(context.instance, name, base, changes, inputs_of(group_of(model)))
        title = f"{MODELS[model].title} {variant}" if changes else MODELS[model].title
        trials[variant] = seeds_of(name, model, title, {**base, **changes}, inputs, seeds)
    together = [trial for each in trials.values() for trial in each]
    outcomes = iter(run(together, settings.evidence.parallel, progress.bar(context, label)))
    return {variant: _Variant(list(itertools.islice(outcomes, len(each)))) for variant, each in trials.items()}


def _against(reference: _Variant, variants: Mapping[str, _Variant]) -> list[dict[str, Any]]:
    """Rows of every variant: means, and the paired tests against the reference, p-values after Holm over the others."""
    from model.significance import compare_seeds, holm

    base = [outcome.evaluation for outcome in reference.outcomes]
    tests = {
        name: compare_seeds(base, [outcome.evaluation for outcome in variant.outcomes])
        for name, variant in variants.items()
        if variant is not reference
    }
    rows = []
    for name, variant in variants.items():
        for row in variant.means():
            single = {other: test[row["metric"]] for other, test in tests.items()}
            t_test = holm({other: test.t_test for other, test in single.items()})
            wilcoxon = holm({other: test.wilcoxon for other, test in single.items()})
            found = {}
            if name in single:
                found = {"difference": single[name].difference, "effect_size": single[name].effect_size}
                found |= {"t_test": t_test[name], "wilcoxon": wilcoxon[name]}
            rows.append({"variant": name, **row, **found})
    return rows


# --------------------------------------------------------------------------------------------------- a map of items


def with_category(items: pl.DataFrame) -> pl.DataFrame:
    """At most 2,000 items, spread evenly over the ids, of the eight commonest categories: item, title, category.

    A category that more than half of the items have tells nothing apart. An item of several gets its commonest one.
    """
    exploded = items.select("item", "title", category="categories").explode("category").drop_nulls("category")
    sizes = exploded.group_by("category").agg(size=pl.col("item").n_unique()).filter(pl.col("size") * 2 <= items.height)
    common = sizes.sort("size", "category", descending=[True, False]).head(MAP_CATEGORIES)
    chosen = (
        exploded.join(common, on="category")
        .sort("size", "category", descending=[True, False], maintain_order=True)
        .unique("item", keep="first", maintain_order=True)
        .sort("item")
    )
    return chosen.gather_every(max(1, -(-chosen.height // MAP_ITEMS))).select("item", "title", "category")


def cohesion(vectors: np.ndarray, categories: np.ndarray) -> dict[str, float]:
    """How well categories stay together among vectors (n, d), by cosine.

    Returns
    -------
    `purity`: mean share of an item's ten nearest that are of its category. `silhouette`: Rousseeuw (1987).
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(vectors) - 1), metric="cosine").fit(vectors)
    found = nearest.kneighbors(return_distance=False)  # an item is no neighbour of its own
    return {
        "purity": float((categories[found] == categories[:, None]).mean()),
        "silhouette": float(silhouette_score(vectors, categories, metric="cosine")),
    }


def _places(system: str, vectors: np.ndarray, items: pl.DataFrame) -> pl.DataFrame:
    """Items with their places by t-SNE (van der Maaten & Hinton 2008) on cosine distances."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    found = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0).fit_transform(vectors)
    return items.select(
        pl.lit(system).alias("system"), "item", "title", "category", x=pl.Series(found[:, 0]), y=pl.Series(found[:, 1])
    )
