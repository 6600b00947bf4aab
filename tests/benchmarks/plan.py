"""What the pipeline takes at 1, 10 and 100 million users: the tables and the picture of docs/growth.md.

    python tests/benchmarks/plan.py [FOLDER]

reads FOLDER/benchmarks/*.json and FOLDER/LOG.md (default: docs/), writes every table of FOLDER/growth.md anew between
its marks, and draws FOLDER/benchmarks/plan.png. A figure is a measured one times a law of growth; what could not be
measured here is one of ASSUMPTIONS, by name.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from model.config import TrainingConfig
from model.scale import ScaleConfig
from pipeline.settings import SimilaritySettings, SubspaceSettings
from tests.benchmarks.growth import ABOVE, USERS_PER_ITEM
from tests.benchmarks.made import BABY
from tests.benchmarks.report import number
from tests.benchmarks.results import Json

SIZES = (1_000_000, 10_000_000, 100_000_000)
DRAWN = tuple(int(size) for size in np.geomspace(1e4, 1e8, 25))
FLOAT = 4  # bytes
EDGE = 8  # bytes of an edge: two int32 in Parquet, a column and a value in memory
TRAINED = 0.8  # share of the interactions that a random split leaves for training, at most
FIGURE = "benchmarks/plan.png"
PAGE = "growth.md"
MARK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

ASSUMPTIONS: dict[str, tuple[float, str]] = {  # name -> value, what it is
    "prompt_rate": (20_000, "prompt tokens a GPU reads per second, a model of 3 B parameters"),
    "answer_rate": (4_000, "answer tokens a GPU writes per second, many prompts at a time"),
    "answer_words": (120, "words of an answer: the most that the prompts ask for, 80 of profile and 40 of reasoning"),
    "encoder_rate": (100_000, "tokens a GPU encodes per second, a BERT of base size"),
    "epochs": (100, "epochs of a training"),
    "machines": (16, "machines that share a training"),
    "network": (1.25e9, "bytes a machine receives per second (10 Gbit/s)"),
    "machine_memory": (256e9, "bytes of memory of a machine"),
    "sampled_users": (100_000, "users whose ranking judges an epoch, where not all are ranked"),
    "core_price": (0.04, "price of a core-hour, in dollars"),
    "gpu_price": (2.5, "price of a GPU-hour, in dollars"),
}


def assumed(name: str) -> float:
    return ASSUMPTIONS[name][0]


# --------------------------------------------------------------------------------------------------------------- laws


@dataclass(frozen=True)
class Law:
    """A sum of powers of a size, each with a factor of at least 0, fitted to measured points by relative error."""

    powers: tuple[float, ...]
    factors: tuple[float, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def fitted(cls, x: Sequence[float], y: Sequence[float], *powers: float) -> "Law":
        terms = np.array(x, float)[:, None] ** np.array(powers)  # (points, powers)
        scales = terms.max(0)
        factors, _ = nnls(terms / scales / np.array(y)[:, None], np.ones(len(y)))
        return cls(powers, tuple((factors / scales).tolist()), tuple(x), tuple(y))

    def __call__(self, size: float) -> float:
        return sum(factor * size**power for factor, power in zip(self.factors, self.powers, strict=True))

    def of(self, power: float) -> float:
        """The factor of one power."""
        return self.factors[self.powers.index(power)]

    @property
    def error(self) -> float:
        """Largest relative distance from a measured point."""
        return max(abs(self(x) / y - 1) for x, y in zip(self.x, self.y, strict=True))

    @property
    def exponent(self) -> float:
        """The power of growth between the two largest measured points."""
        (x, y), (larger, later) = sorted(zip(self.x, self.y, strict=True))[-2:]
        return math.log(later / y) / math.log(larger / x)


class Measured:
    """The constants, from the results of the benchmarks and the log.

    Parameters
    ----------
    results
        File name without `.json` -> its content.
    log
        Text of docs/LOG.md.
    """

    def __init__(self, results: Mapping[str, Json], log: str) -> None:
        self.results = results
        self.log = log

    def curve(self, file: str, name: str, figure: str) -> tuple[list[float], list[float]]:
        """Sizes and figures of a curve."""
        for curve in self.results[file]["curves"]:
            if curve["name"] == name:
                return curve["x"], curve[figure]
        raise KeyError(f"{file}.json has no curve {name!r}: run its benchmark again")

    def row(self, file: str, job: str) -> float:
        """Median of a row, or the mean that stands in its place."""
        for row in self.results[file]["rows"]:
            if row["job"] == job and row["median"] is not None:
                return float(row["median"])
        raise KeyError(f"{file}.json has no figure of {job!r}: run its benchmark again")

    def rate(self, stage: str, *powers: float, figure: str = "seconds") -> Law:
        """Law of one stage of rates.json, by users."""
        return Law.fitted(*self.curve("rates", stage, figure), *powers)

    def points(self, stage: str, figure: str, indexed: bool) -> tuple[list[float], list[float]]:
        """Points of growth.json within one set, users or items: found exactly, or by an index where that is used."""
        x, y = [], []
        for curve in self.results["growth"]["curves"]:
            name, _, how = curve["name"].partition(f" {stage} graph")
            if name in ("user", "item") and not how:  # smaller sets were searched by an index for comparison, too
                for size, recall, value in zip(curve["x"], curve["recall"], curve[figure], strict=True):
                    if (recall is not None) == indexed:
                        x.append(size)
                        y.append(value)
        return x, y

    def exact(self, stage: str) -> Law:
        """Processor seconds of an exact graph within one set."""
        return Law.fitted(*self.points(stage, "cpu_seconds", indexed=False), 1, 2)

    def indexed(self, stage: str) -> Law:
        """Processor seconds of a graph by index within one set."""
        return Law.fitted(*self.points(stage, "cpu_seconds", indexed=True), 1, 1.5)

    @cached_property
    def probes(self) -> float:
        """Clusters, of as many as the root of the candidates, that a query is compared with at the largest size."""
        x, share = self.points("subspace", "compared_share", indexed=True)
        largest = int(np.argmax(x))
        return float(share[largest] * x[largest] ** 0.5)

    def tokens(self, kind: str) -> tuple[float, float]:
        """Tokens of a prompt that are read for every row anew, and of an answer."""
        prompt = self.row("rates", f"prompt, {kind}") - self.row("rates", f"of it the same for every {kind}")
        return prompt, assumed("answer_words") * self.row("rates", f"a word of a profile, {kind}")


# --------------------------------------------------------------------------------------------------------- the stages

Figure = Callable[[float], float]  # users -> hours, or bytes


@dataclass(frozen=True)
class Stage:
    """What a stage takes, by number of users.

    Attributes
    ----------
    law
        In words.
    hours
        Core-hours, or GPU-hours where `gpu`.
    memory
        Bytes in one process that holds all of it; None where it works row by row.
    written
        Bytes that it writes into the store.
    """

    name: str
    law: str
    hours: Figure
    gpu: bool = False
    memory: Figure | None = None
    written: Figure | None = None


def items(users: float) -> float:
    return users / USERS_PER_ITEM


def nodes(users: float) -> float:
    return users + items(users)


def interactions(users: float) -> float:
    return users * BABY.interactions / BABY.users


def table_bytes(users: float) -> float:
    """One float for each node and dimension: the embedding table."""
    return nodes(users) * ScaleConfig().embedding_size * FLOAT


def semantic_edges(users: float) -> float:
    """At most: both graphs of users, of items, and of users with items in both directions."""
    degree = SubspaceSettings().sparsity + SimilaritySettings().neighbours
    return degree * (nodes(users) + 2 * users)


def steps(users: float) -> float:
    """Training steps of an epoch at the default batch size."""
    return TRAINED * interactions(users) / TrainingConfig().batch_size


def graph_seconds(users: float, measured: Measured, stage: str, exact: bool = False) -> float:
    """Processor seconds of the three graphs of a kind: of users, of items, of users among items."""
    total = 0.0
    for candidates, queries in ((users, users), (items(users), items(users) + users)):
        law = measured.exact(stage) if exact or candidates <= ABOVE else measured.indexed(stage)
        total += queries * law(candidates) / candidates
    return total


def stages(measured: Measured) -> list[Stage]:
    """Every stage in order."""
    reading = measured.rate("reading raw reviews", 1)
    splitting = measured.rate("interactions and split", 1)
    fusing = measured.rate("fusion", 1)
    step = measured.rate("a training step of SCALE", 0, 1)
    cores = measured.results["rates"]["machine"]["cores"]
    width = BABY.text * FLOAT

    def memory(stage: str) -> Figure:
        return lambda users: measured.rate(stage, 0, 1, figure="peak_gb")(users) * 1e9

    def profiles(kind: str, rows: Figure) -> Figure:
        prompt, answer = measured.tokens(kind)
        seconds = prompt / assumed("prompt_rate") + answer / assumed("answer_rate")
        return lambda users: rows(users) * seconds / 3600

    def encoding(users: float) -> float:
        profile = {kind: measured.row("rates", f"profile, {kind}") for kind in ("user", "item")}
        return (users * profile["user"] + items(users) * profile["item"]) / assumed("encoder_rate") / 3600

    def graphs(stage: str) -> Figure:
        return lambda users: graph_seconds(users, measured, stage) / 3600

    def graph_memory(stage: str) -> Figure:
        law = Law.fitted(*measured.points(stage, "peak_gb", indexed=True), 0, 1)
        return lambda users: law(users) * 1e9

    def epochs(users: float) -> float:
        return assumed("epochs") * steps(users) * step(users) * cores / 3600

    return [
        Stage(
            "raw reading", "reviews", lambda users: reading(users) / 3600, memory=memory("reading raw reviews"),
            written=lambda users: interactions(users) * measured.row("rates", "a raw review"),
        ),
        Stage(
            "interactions, split", "interactions", lambda users: splitting(users) * cores / 3600,
            memory=memory("interactions and split"), written=lambda users: interactions(users) * EDGE,
        ),
        Stage("item profiles", "items x tokens", profiles("item", items), gpu=True),
        Stage("user profiles", "users x tokens", profiles("user", lambda users: users), gpu=True),
        Stage(
            "embeddings", "(users + items) x tokens", encoding, gpu=True, memory=lambda users: nodes(users) * width,
            written=lambda users: nodes(users) * width,
        ),
        Stage(
            "similarity graphs, by index", "rows^1.5", graphs("similarity"), memory=graph_memory("similarity"),
            written=lambda users: SimilaritySettings().neighbours * EDGE * (nodes(users) + users),
        ),
        Stage(
            "subspace graphs, by index", "rows^1.5 + rows", graphs("subspace"), memory=graph_memory("subspace"),
            written=lambda users: SubspaceSettings().sparsity * EDGE * (nodes(users) + users),
        ),
        Stage(
            "fusion", "edges", lambda users: fusing(users) / 3600, memory=memory("fusion"),
            written=lambda users: semantic_edges(users) * EDGE,
        ),
        Stage(
            f"training, {assumed('epochs'):g} epochs as now", "steps x rows = rows^2", epochs,
            memory=memory("a training step of SCALE"), written=table_bytes,
        ),
        Stage(
            "one evaluation of everyone", "users x items",
            lambda users: measured.rate("evaluation of a split", 1, 2)(users) * cores / 3600, memory=table_bytes,
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def by_size(head: Sequence[str]) -> list[str]:
    return [*head, *(f"{size // 1_000_000} M users" for size in SIZES)]


def rounded(value: float) -> float:
    """Three figures."""
    return float(f"{value:.3g}")


def size_text(count: float) -> str:
    """Bytes in the unit that leaves at most three figures before the point."""
    for unit, scale in (("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if count < 1000 * scale:
            return number(rounded(count / scale), unit)
    return number(rounded(count / 1e15), "PB")


def shown(value: float) -> str:
    return "< 0.01" if 0 < value < 0.01 else number(rounded(value), "")


def assumptions_table(measured: Measured) -> str:
    return table(
        ["assumption", "value", "what it is"],
        [[f"`{name}`", number(value, ""), what] for name, (value, what) in ASSUMPTIONS.items()],
    )


def constants_table(measured: Measured) -> str:
    """What was measured, how it grew there, and how far the law lies from it."""
    laws = {
        "reading raw reviews, s": ("rates", measured.rate("reading raw reviews", 1), "users"),
        "interactions and split, s": ("rates", measured.rate("interactions and split", 1), "users"),
        "fusion, s": ("rates", measured.rate("fusion", 1), "users"),
        "a training step of SCALE, s": ("rates", measured.rate("a training step of SCALE", 0, 1), "1 + users"),
        "evaluation of a split, s": ("rates", measured.rate("evaluation of a split", 1, 2), "users + users^2"),
    }
    for stage in ("similarity", "subspace"):
        laws[f"{stage} graph, exact, processor s"] = ("growth", measured.exact(stage), "rows + rows^2")
        laws[f"{stage} graph, by index, processor s"] = ("growth", measured.indexed(stage), "rows + rows^1.5")
    lines = []
    for name, (file, law, words) in laws.items():
        x, y = max(zip(law.x, law.y, strict=True))
        farthest = f"{100 * law.error:.0f} %"
        lines.append([name, f"{shown(y)} at {x:,}", words, f"{law.exponent:.2f}", farthest, f"`{file}.json`"])
    head = ["measured", "largest point", "law", "measured exponent", "law off by at most", "file"]
    for name in ("a raw review", "prompt, item", "of it the same for every item", "prompt, user",
                 "of it the same for every user", "profile, item", "profile, user"):  # fmt: skip
        unit = "packed bytes" if name == "a raw review" else "tokens"
        lines.append([f"{name}, {unit}", shown(measured.row("rates", name)), "a row's own", "", "", "`rates.json`"])
    return table(head, lines)


def hours_table(measured: Measured) -> str:
    lines = [
        [stage.name, stage.law, "GPU" if stage.gpu else "core", *(shown(stage.hours(size)) for size in SIZES)]
        for stage in stages(measured)
    ]
    return table(by_size(["stage", "grows with", "hours of a"]), lines)


def memory_table(measured: Measured) -> str:
    lines = [
        [stage.name, *(size_text(stage.memory(size)) for size in SIZES)]
        for stage in stages(measured)
        if stage.memory is not None
    ]
    return table(by_size(["stage"]), lines)


def bytes_table(measured: Measured) -> str:
    found = [(stage.name, stage.written) for stage in stages(measured) if stage.written is not None]
    lines = [[name, *(size_text(written(size)) for size in SIZES)] for name, written in found]
    total = [size_text(sum(written(size) for _, written in found)) for size in SIZES]
    return table(by_size(["stage"]), [*lines, ["**all**", *total]])


def cost_table(measured: Measured) -> str:
    lines, totals = [], [0.0] * len(SIZES)
    for stage in stages(measured):
        price = assumed("gpu_price" if stage.gpu else "core_price")
        costs = [stage.hours(size) * price for size in SIZES]
        totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
        lines.append([stage.name, *map(shown, costs)])
    return table(by_size(["stage, dollars"]), [*lines, ["**all**", *map(shown, totals)]])


def tokens_table(measured: Measured) -> str:
    lines = []
    for kind, rows in (("item", items), ("user", lambda users: users)):
        prompt, answer = measured.tokens(kind)
        lines.append([f"{kind}: tokens read", shown(prompt), *(shown(rows(size) * prompt / 1e9) for size in SIZES)])
        lines.append([f"{kind}: tokens written", shown(answer), *(shown(rows(size) * answer / 1e9) for size in SIZES)])
    return table(["profiles", "a row", *(f"{name}, 10^9" for name in by_size([]))], lines)


def index_table(measured: Measured) -> str:
    """Where exact gives way to an index."""
    lines = []
    for stage in ("similarity", "subspace"):
        x, recall = measured.points(stage, "recall", indexed=True)
        _, share = measured.points(stage, "compared_share", indexed=True)
        largest = int(np.argmax(x))
        exact, index = ([graph_seconds(size, measured, stage, how) / 3600 for size in SIZES] for how in (True, False))
        lines.append([f"{stage} graphs, exact", "1", "100 %", *map(shown, exact)])
        found = [f"{recall[largest]:.3f} at {x[largest]:,}", f"{100 * share[largest]:.2f} % at {x[largest]:,}"]
        lines.append([f"{stage} graphs, by index", *found, *map(shown, index)])
    return table(by_size(["core-hours", "recall", "pairs compared"]), lines)


def shards_table(measured: Measured) -> str:
    """What the search for neighbours moves, by how its candidates are laid out."""
    width, machines = BABY.text * FLOAT, assumed("machines")
    layouts: dict[str, Figure] = {
        "every machine holds all candidates: memory of each": lambda users: users * width,
        "every machine holds all candidates: bytes received, in all": lambda users: users * width * machines,
        "a part of the clusters on each: memory of each": lambda users: users * width / machines,
        "a part of the clusters on each: bytes received, in all": lambda users: measured.probes * users * width,
    }
    lines = [[name, *(size_text(found(size)) for size in SIZES)] for name, found in layouts.items()]
    return table(by_size([f"{machines:g} machines, user graph"]), lines)


def check_table(measured: Measured) -> str:
    """The law beside the run of 1,000,000 users that the log tells of."""
    lines = []
    for kind, stage in ((kind, stage) for kind in ("user", "item") for stage in ("similarity", "subspace")):
        told = re.search(rf"^\| {kind} {stage} \| ([\d,]+) \|", measured.log, re.MULTILINE)
        assert told is not None, f"LOG.md tells nothing of the {kind} {stage} graph at 1,000,000 users"
        seconds = float(told[1].replace(",", ""))
        rows = 1e6 if kind == "user" else items(1e6)
        law = measured.indexed(stage)(rows)
        lines.append([f"{kind} {stage} graph", f"{rows:,.0f}", shown(law), shown(seconds), f"{law / seconds:.2f}"])
    return table(["graph", "rows", "law, processor s", "log, processor s", "ratio"], lines)


def training_table(measured: Measured) -> str:
    """An epoch in three ways; hours of one machine like the one measured."""
    step = measured.rate("a training step of SCALE", 0, 1)
    fixed, growing = step.of(0), step.of(1)
    usual = steps(BABY.users)
    ways: dict[str, Figure] = {
        "as now: batches of 2,048, every step reads and writes every row": lambda users: steps(users) * step(users),
        f"{usual:.0f} steps an epoch whatever the size, batches grow": lambda users: (
            steps(users) * fixed + usual * growing * users
        ),
        "batches of 2,048, a step touches its own rows alone (at least)": lambda users: steps(users) * fixed,
    }
    lines = [[name, *(shown(seconds(size) / 3600) for size in SIZES)] for name, seconds in ways.items()]
    return table(by_size(["an epoch, hours"]), lines)


def sharing_table(measured: Measured) -> str:
    """Memory and network of a training that several machines share."""
    machines, config = assumed("machines"), ScaleConfig()
    batch, others = TrainingConfig().batch_size, (machines - 1) / machines
    copies = 5  # weights, gradient, two moments of Adam, and the best weights

    def graph_bytes(users: float) -> float:
        return (semantic_edges(users) + 2 * TRAINED * interactions(users)) * 2 * EDGE  # and transposed

    # Whole layers, forward and backward; the last layer of each graph is asked for the batch's rows alone.
    layers = 2 * (config.interaction_layers - 1 + config.semantic_layers - 1)
    contrast = 2 * 2 * batch**2 * FLOAT  # logits of users and of items; an all-reduce sends them twice

    def by_rows(users: float) -> float:
        degree = (semantic_edges(users) + 2 * TRAINED * interactions(users)) / nodes(users)
        last = 2 * 3 * batch * degree * config.embedding_size * FLOAT  # neighbours of the batch's rows, there and back
        return others * (layers * table_bytes(users) + last)

    def by_dimensions(users: float) -> float:
        return others * contrast

    figures: dict[str, Figure] = {
        "one machine: table, gradient, Adam, best weights": lambda users: copies * table_bytes(users),
        "one machine: graphs and their transposes": graph_bytes,
        "rows on different machines: memory of each": lambda users: (
            (copies * table_bytes(users) + graph_bytes(users)) / machines + table_bytes(users)
        ),
        "rows on different machines: bytes received in a step": by_rows,
        "dimensions on different machines: memory of each": lambda users: (
            copies * table_bytes(users) / machines + graph_bytes(users)
        ),
        "dimensions on different machines: bytes received in a step": by_dimensions,
    }
    lines = [[name, *(size_text(found(size)) for size in SIZES)] for name, found in figures.items()]
    for name, moved in (("rows", by_rows), ("dimensions", by_dimensions)):
        waits = [shown(moved(size) / assumed("network")) for size in SIZES]
        lines.append([f"{name} on different machines: seconds a step waits for the network", *waits])
    return table(by_size([f"{machines:g} machines"]), lines)


def evaluation_table(measured: Measured) -> str:
    """Everyone, or a sample, and how sure the sample is."""
    law = measured.rate("evaluation of a split", 1, 2)
    cores, users = measured.results["rates"]["machine"]["cores"], assumed("sampled_users")
    recall = float(re.findall(r"recall@20 ([\d.]+)", measured.results["evaluation"]["notes"][0])[0])
    error = (recall * (1 - recall) / users) ** 0.5
    lines = [
        ["everyone", "0", *(shown(law(size) * cores / 3600) for size in SIZES)],
        [
            f"{users:,.0f} users",
            f"{error:.4f} at a recall of {recall:.2f}, at most",
            *(shown(law(size) * cores / 3600 * min(1, users / size)) for size in SIZES),
        ],
    ]
    return table(by_size(["core-hours of an evaluation", "standard error of Recall@20"]), lines)


def edges_table(measured: Measured) -> str:
    return table(
        by_size(["10^9 edges"]), [["semantic graph, at most", *(shown(semantic_edges(n) / 1e9) for n in SIZES)]]
    )


def edit_table(measured: Measured) -> str:
    """Share of the rows that an edit of a part of the users reaches."""
    lines = []
    for share in ("0.1%", "1.0%", "10.0%"):
        cells = []
        for stage in ("subspace", "similarity"):
            for row in measured.results["graph_refresh"]["rows"]:
                if row["job"] == f"{stage} graph, user, {share}" and row["measure"] == "rows computed":
                    cells.append(f"{100 * row['median'] / BABY.users:.1f} %")
        lines.append([share.replace("%", " %").replace(".0", ""), *cells])
    return table(["users changed", "pursuits computed", "neighbour lists computed"], lines)


def serving_table(measured: Measured) -> str:
    job = measured.results["serving"]["jobs"]["a known user, as fast as it goes"]
    law = measured.rate("evaluation of a split", 1, 2)
    cores = measured.results["rates"]["machine"]["cores"]
    pair = law.of(2) * USERS_PER_ITEM * cores  # processor seconds of one user and one item
    measured_rate = job["requests per second"]["median"]
    rest = max(0.0, 1 / measured_rate - pair * BABY.items)
    figures: dict[str, Callable[[float], str]] = {
        "embeddings": lambda users: size_text(table_bytes(users)),
        "items' text vectors, for texts of new users": lambda users: size_text(items(users) * BABY.text * FLOAT),
        "histories and semantic graph": lambda users: size_text(
            EDGE * (interactions(users) + 2 * semantic_edges(users))
        ),
        "a request that scores every item, ms of a core": lambda users: shown(1000 * (rest + pair * items(users))),
        "requests a second and core": lambda users: shown(1 / (rest + pair * items(users))),
    }
    lines = [[name, *(figure(size) for size in SIZES)] for name, figure in figures.items()]
    return table(by_size([f"measured: {shown(measured_rate)} a second among {BABY.items:,} items"]), lines)


TABLES: dict[str, Callable[[Measured], str]] = {
    "assumptions": assumptions_table,
    "constants": constants_table,
    "hours": hours_table,
    "memory": memory_table,
    "bytes": bytes_table,
    "cost": cost_table,
    "tokens": tokens_table,
    "index": index_table,
    "shards": shards_table,
    "check": check_table,
    "edges": edges_table,
    "training": training_table,
    "sharing": sharing_table,
    "evaluation": evaluation_table,
    "edits": edit_table,
    "serving": serving_table,
}


def filled(text: str, measured: Measured) -> str:
    """The page with every table made anew.

    Raises
    ------
    ValueError
        If a mark names no table, or a table has no mark.
    """
    marks = [name for _, name, _ in MARK.findall(text)]
    if sorted(marks) != sorted(TABLES):
        raise ValueError(f"{PAGE} marks the tables {sorted(marks)}, there are {sorted(TABLES)}")
    return MARK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](measured)}\n{found[3]}", text)


def draw(measured: Measured, path: Path) -> None:
    """Hours and memory of every stage by users."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(12, 5.5), layout="constrained")
    hours, memory = picture.subplots(1, 2)
    for stage in stages(measured):
        style = "--" if stage.gpu else "-"
        (line,) = hours.plot(DRAWN, [stage.hours(size) for size in DRAWN], style, label=stage.name)
        if stage.memory is not None:
            memory.plot(DRAWN, [stage.memory(size) / 1e9 for size in DRAWN], color=line.get_color())
    memory.axhline(assumed("machine_memory") / 1e9, color="black", linewidth=1, linestyle=":")
    hours.set(xscale="log", yscale="log", xlabel="users", ylabel="hours of a core (dashed: of a GPU)")
    memory.set(xscale="log", yscale="log", xlabel="users (dotted: one machine)", ylabel="GB in one process")
    for axes in (hours, memory):
        axes.grid(which="both", alpha=0.2)
    picture.legend(*hours.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    picture.savefig(path, dpi=110, metadata={"Software": None})


def read(folder: Path) -> Measured:
    """What `folder` holds of results and log."""
    contents = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "benchmarks").glob("*.json")
    }
    return Measured(contents, (folder / "LOG.md").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    folder = parser.parse_args().folder
    measured = read(folder)
    page = folder / PAGE
    page.write_text(filled(page.read_text(encoding="utf-8"), measured), encoding="utf-8")
    draw(measured, folder / FIGURE)
    print(f"{page}: {len(TABLES)} tables")


if __name__ == "__main__":
    main()
