"""The sections of a report, each from its table: what it says, shows and draws."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from assets.reporting import figures
from assets.reporting.charts import OWN, Chart, with_spread
from assets.reporting.figures import headline, metric_title
from assets.reporting.tables import SIGNIFICANT, Column, Table, wide

AS_PRINTED = "intersection (eq. 6 as printed)"  # the fusion audit's variant that comparisons show, too
DIFFERENCE = Column("difference", "difference", "signed")
TESTS = (
    Column("effect size (d_z)", "effect_size", "signed"),
    Column("p (t-test)", "t_test", "p"),
    Column("p (Wilcoxon)", "wilcoxon", "p"),
)
RISING = ("recall", "ndcg", "coverage")  # beginnings of the names of metrics of which more is better for sure


@dataclass(frozen=True)
class Section:
    """A part of a report: a title, a paragraph, tables and charts. `name` is unique in it."""

    name: str
    title: str
    text: str
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()


def comparison(table: pl.DataFrame, fusions: pl.DataFrame | None = None) -> Section:
    """Every model's test metrics, and from the fusion audit, if any, those of SCALE with eq. 6 as printed."""
    charts = tuple(figures.models(table, metric) for metric in headline(table))
    text = (
        f"Models trained and tested on one split: {table['model'].n_unique()}. Users with held-out items: "
        f"{_range(table['users'])}. Seeds of each: {_range(table['seeds'])}. {_standing(table)}"
    ).rstrip()
    rows = table.select("model", "title", "metric", "mean", "sd", "seeds")
    if fusions is not None and AS_PRINTED in fusions["variant"]:
        text += " The row of eq. 6 as printed is no model of its own, but a variant of SCALE from the fusion audit."
        named = {"model": pl.lit(None, pl.String), "title": pl.lit("SCALE (eq. 6 as printed), a variant")}
        printed = fusions.filter(variant=AS_PRINTED).with_columns(**named).select(rows.columns)
        rows = pl.concat([rows, printed], how="vertical_relaxed")
    shown = _metrics(rows, ("model", "title", "seeds"), (Column("model", "title", "text"),))
    return Section("comparison", "Models", text, (shown,), charts)


def significance(table: pl.DataFrame) -> Section:
    """Paired tests between models, one table a metric."""
    below = table.filter(pl.col("t_test") < SIGNIFICANT)
    text = (
        "Every model against SCALE, against LightGCN and against the best other one by validation, as far as they are "
        "there, on the same users, each user's value being the mean over seeds. A difference is the model's mean minus "
        "that of the one it is held against. p-values are of the paired t-test and of Wilcoxon's signed-rank test, "
        "after Holm's correction over all that are held against the same one; those below 0.05 are bold. "
        f"By the t-test {len(below)} of {len(table)} differences are significant."
    )
    columns = (
        Column("model", "title", "text"),
        Column("against", "against_title", "text"),
        DIFFERENCE,
        Column("95 % interval", "low", "interval", "high"),
        *TESTS,
    )
    shown = [
        Table(metric_title(part["metric"][0]), part.drop("model"), columns)
        for part in table.partition_by("metric", maintain_order=True)
    ]
    return Section("significance", "Significance", text, tuple(shown))


def published(table: pl.DataFrame, number: int) -> Section:
    """Table 1 or 2 of the paper beside the same systems here, and what stands behind the differences."""
    text = (
        f"Table {number} of the paper beside the same systems trained here. Published numbers come from other "
        "implementations, splits and features, so a difference is to be read with its explanation."
    )
    data = wide(table, ("system",), ("published", "ours", "sd", "difference"))
    reasons = table.group_by("system").agg(pl.col("why").drop_nulls().unique(maintain_order=True).str.join("; "))
    data = data.join(reasons, on="system", how="left")
    metrics = table["metric"].unique(maintain_order=True).to_list()
    system = Column("system", "system", "text")
    values: list[Column] = [system]
    for metric in metrics:
        title = metric_title(metric, short=True)
        values.append(Column(f"{title} published", f"published {metric}", best=True))
        values.append(Column(f"{title} here", f"ours {metric}", second=f"sd {metric}", best=True))
    gaps = [Column(metric_title(metric, short=True), f"difference {metric}", "signed") for metric in metrics]
    why = Column("what stands behind it", "why", "text")
    shown = (
        Table("Published and here, mean ± sd over seeds", data, tuple(values)),
        Table("Here minus published", data, (system, *gaps, why)),
    )
    return Section(f"table_{number}", f"Table {number} of the paper", text, shown)


def ablations(table: pl.DataFrame) -> Section:
    """The full model against itself without a part (Fig. 4a)."""
    text = "SCALE without one of its parts at a time (Fig. 4a of the paper), everything else unchanged."
    shown = _compared(table, "variant", "Variant minus the full model, by users paired; p-values after Holm")
    return Section("ablations", "Ablations", text, shown, (figures.ablations(table),))


def sensitivity(table: pl.DataFrame) -> Section:
    """Settings moved away from their defaults (Fig. 5)."""
    text = "SCALE with one setting, or a pair of them, moved away from its default (Fig. 5 of the paper)."
    first = [
        Column("panel", "panel", "text"),
        Column("setting", "setting", "text"),
        Column("value", "value", "setting"),
    ]
    if table["setting_2"].is_not_null().any():
        first += [Column("and", "setting_2", "text"), Column("value", "value_2", "setting")]
    index = ("panel", "setting", "value", "setting_2", "value_2", "seeds")
    charts = tuple(figures.sensitivity(table, metric) for metric in headline(table))
    return Section("sensitivity", "Sensitivity", text, (_metrics(table, index, first, best=False),), charts)


def leak_audit(table: pl.DataFrame) -> Section:
    """Profiles from training reviews alone against profiles from all reviews."""
    text = (
        "SCALE with profiles written from training interactions alone (train), and from all, held-out ones included "
        "(all). What the second gains is what a leak of the test split into the profiles is worth."
    )
    caption = "Test metrics by what the profiles were written from; an error bar is one standard deviation over seeds."
    chart = figures.audit(table, "history", "leak_audit", "What a leak into profiles is worth", caption)
    shown = _compared(table, "history", "All minus train, by users paired", best=False)
    return Section("leak_audit", "Leak audit", text, shown, (chart,))


def fusion_audit(table: pl.DataFrame) -> Section:
    """Ways to fuse the graphs, and what each leaves of them."""
    text = (
        "What each way to fuse the semantic graphs leaves of the edges between users (UU), users and items (UI) and "
        "items (II), and what SCALE reaches on it."
    )
    caption = "Test metrics by the way of fusion; an error bar is one standard deviation over seeds."
    chart = figures.audit(table, "variant", "fusion_audit", "Ways to fuse the graphs", caption)
    edges = ("edges_uu", "edges_ui", "edges_ii")
    names = ("UU edges", "UI edges", "II edges")
    first = [Column("fusion", "variant", "text")]
    first += [Column(heading, name, "count") for heading, name in zip(names, edges, strict=True)]
    first += [Column("isolated nodes", "isolated_nodes", "count")]
    shown = _metrics(table, ("variant", *edges, "isolated_nodes", "seeds"), first)
    return Section("fusion_audit", "Fusion audit", text, (shown,), (chart,))


def split_study(table: pl.DataFrame) -> Section:
    """SCALE and a model without texts on splits by chance and by time."""
    text = (
        "A random split holds out interactions of all times, user_time each user's latest, global_time all after a "
        "point in time. Users, held-out pairs and profiles differ from split to split: compare within one."
    )
    first = (Column("split", "split", "text"), Column("model", "title", "text"))
    shown = _metrics(table, ("split", "title", "seeds"), first, best=False)
    return Section("split_study", "Splits by time", text, (shown,), (figures.by_model(table, "split", "Splits"),))


def modality_study(table: pl.DataFrame) -> Section:
    """Multimodal models with texts, with images, with both."""
    text = "The models that read item features, with texts alone, with images alone, and with both."
    first = (Column("model", "title", "text"), Column("features", "modalities", "text"))
    shown = _metrics(table, ("title", "modalities", "seeds"), first)
    chart = figures.by_model(table, "modalities", "Modalities")
    return Section("modality_study", "Modalities", text, (shown,), (chart,))


def breakdown(table: pl.DataFrame) -> Section:
    """Metrics by users' activity and items' popularity."""
    text = (
        "The same test results by how many training interactions a user has, and by how popular the held-out items are."
    )
    shown = []
    for part in table.partition_by("metric", "axis", maintain_order=True):
        counts = part.select("bucket", "count").unique("bucket", maintain_order=True).iter_rows()
        columns = [Column("model", "title", "text")]
        columns += [
            Column(f"{bucket} ({count:,})", f"mean {bucket}", second=f"sd {bucket}", best=True)
            for bucket, count in counts
        ]
        data = wide(part, ("model", "title"), ("mean", "sd"), "bucket")
        caption = (
            f"{metric_title(part['metric'][0])} by {part['axis'][0]} (in brackets: how many), mean ± sd over seeds"
        )
        shown.append(Table(caption, data, tuple(columns)))
    charts = tuple(figures.breakdown(table, metric) for metric in headline(table))
    return Section("breakdown", "By activity and popularity", text, tuple(shown), charts)


def lists(table: pl.DataFrame) -> Section:
    """What the recommended lists are like beyond accuracy."""
    text = "What the recommended lists look like beyond accuracy: how much of the catalogue they show, and how evenly."
    data = wide(table, ("model", "title"), ("mean", "sd"), "measure")
    measures = table["measure"].unique(maintain_order=True)
    columns = (Column("model", "title", "text"), *_means(measures))
    return Section("lists", "Recommended lists", text, (Table("Mean ± sd over seeds", data, columns),))


def item_map(table: pl.DataFrame, purity: pl.DataFrame | None) -> Section:
    """Items in two dimensions, and how well categories hold together (Figs. 1 and 3)."""
    text = (
        "Whether items of a category lie together: kNN purity is the share of an item's nearest neighbours that are of "
        "its category, the silhouette compares distances within and between categories."
    )
    columns = (
        Column("system", "system", "text"),
        Column("kNN purity", "purity", best=True),
        Column("silhouette", "silhouette", best=True),
    )
    shown = () if purity is None else (Table("Measured on the representations, not on the map", purity, columns),)
    return Section("item_map", "Item map", text, shown, (figures.item_map(table, purity),))


def cost(table: pl.DataFrame) -> Section:
    """What trainings take."""
    text = "What one training takes until early stopping, against the metric that it reaches."
    columns = (
        Column("model", "title", "text"),
        Column("Recall@20", "recall_at_20", best=True),
        Column("seconds", "seconds", "decimal"),
        Column("seconds an epoch", "seconds_per_epoch"),
        Column("best epoch", "best_epoch", "count"),
        Column("epochs", "epochs", "count"),
        Column("peak memory (GB)", "peak_memory_gb", "decimal"),
    )
    return Section("cost", "Cost", text, (Table("One training", table, columns),), (figures.cost(table),))


def _metrics(table: pl.DataFrame, index: tuple[str, ...], first: Iterable[Column], best: bool = True) -> Table:
    """Mean ± sd of every metric, one row for each `index`."""
    columns = (*first, *_means(table["metric"].unique(maintain_order=True), best), Column("seeds", "seeds", "count"))
    return Table("Mean ± sd over seeds on the test split", wide(table, index, ("mean", "sd")), columns)


def _means(names: Iterable[str], best: bool = True) -> list[Column]:
    return [
        Column(
            metric_title(name, short=True), f"mean {name}", second=f"sd {name}", best=best and name.startswith(RISING)
        )
        for name in names
    ]


def _compared(table: pl.DataFrame, by: str, caption: str, best: bool = True) -> tuple[Table, ...]:
    """Means, and the differences from the row that has none itself: a row for each metric and kind of `by`."""
    named = Column(by, by, "text")
    means = _metrics(table, (by, "seeds"), (named,), best)
    gaps = table.drop_nulls("difference")
    if gaps.is_empty():
        return (means,)
    titles = {metric: metric_title(metric) for metric in gaps["metric"].unique()}
    gaps = pl.concat(gaps.partition_by("metric", maintain_order=True)).with_columns(
        pl.col("metric").replace_strict(titles)
    )
    return means, Table(caption, gaps, (Column("metric", "metric", "text"), named, DIFFERENCE, *TESTS))


def _standing(table: pl.DataFrame) -> str:
    """Where SCALE stands on the first metric, in a sentence."""
    metric = headline(table)[0]
    rows = (
        table.filter(pl.col("metric") == metric).drop_nulls("mean").sort("mean", descending=True, maintain_order=True)
    )
    if OWN not in rows["model"] or len(rows) == 1:
        return ""
    place = rows["model"].to_list().index(OWN)
    own, best = rows.row(place, named=True), rows.filter(pl.col("model") != OWN).row(0, named=True)
    return (
        f"By {metric_title(metric)} {own['title']} is number {place + 1} of {len(rows)} with "
        f"{with_spread(own['mean'], own['sd'])}; the best other model is {best['title']} with "
        f"{with_spread(best['mean'], best['sd'])}."
    )


def _range(values: pl.Series) -> str:
    low, *_, high = [*values.sort()] * 2
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
