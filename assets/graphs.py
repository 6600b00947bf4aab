"""Graphs: subspaces by OMP (Algorithm 1), nearest neighbours (eqs. 4, 5), and their fusion (eq. 6)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
from scipy.sparse import csr_array

from assets import home
from assets.nodes import GPU
from assets.plots import degree_histogram
from assets.progress import Progress
from assets.settings import VARIANT_TAG, partition_of, settings_of
from assets.stage import Check, Result, stage
from pipeline.compute import cluster

if TYPE_CHECKING:
    from pipeline.graphs.execution import Execution
    from pipeline.graphs.reuse import Built, Memory

CHECKS = {
    "not_over_dense": "At most a tenth of all possible edges.",
    "few_isolated_nodes": "At most 5 % of the nodes have no edge.",
}
SEARCH_CHECKS = CHECKS | {
    "neighbours_found": "A sample of rows finds at least the share `index.recall` of its true neighbours."
}
DENSITY_LIMIT, ISOLATED_LIMIT = 0.1, 0.05


@stage(
    group="graphs", code=["pipeline.graphs.subspaces"], settings=["subspace", "index"], checks=SEARCH_CHECKS, pool=GPU
)
def user_subspace_graph(
    context: dg.AssetExecutionContext, user_text_embeddings: np.ndarray, progress: Progress
) -> Result:
    """C^U: the users that sparsely reconstruct each user."""
    return _subspace(context, progress, user_text_embeddings, None, settings_of(context).subspace.user_sparsity)


@stage(
    group="graphs", code=["pipeline.graphs.subspaces"], settings=["subspace", "index"], checks=SEARCH_CHECKS, pool=GPU
)
def item_subspace_graph(
    context: dg.AssetExecutionContext, item_text_embeddings: np.ndarray, progress: Progress
) -> Result:
    """C^I: the items that sparsely reconstruct each item."""
    return _subspace(context, progress, item_text_embeddings, None, settings_of(context).subspace.item_sparsity)


@stage(
    group="graphs", code=["pipeline.graphs.subspaces"], settings=["subspace", "index"], checks=SEARCH_CHECKS, pool=GPU
)
def user_item_subspace_graph(
    context: dg.AssetExecutionContext,
    user_text_embeddings: np.ndarray,
    item_text_embeddings: np.ndarray,
    progress: Progress,
) -> Result:
    """C^UI: the items that sparsely reconstruct each user."""
    return _subspace(
        context, progress, user_text_embeddings, item_text_embeddings, settings_of(context).subspace.user_item_sparsity
    )


@stage(group="graphs", code=["pipeline.graphs.reuse"], settings=["similarity", "index"], checks=SEARCH_CHECKS, pool=GPU)
def user_similarity_graph(
    context: dg.AssetExecutionContext, user_text_embeddings: np.ndarray, progress: Progress
) -> Result:
    """G_U: each user's nearest users by text."""
    return _similarity(context, progress, user_text_embeddings, None)


@stage(group="graphs", code=["pipeline.graphs.reuse"], settings=["similarity", "index"], checks=SEARCH_CHECKS, pool=GPU)
def item_text_similarity_graph(
    context: dg.AssetExecutionContext, item_text_embeddings: np.ndarray, progress: Progress
) -> Result:
    """G_I^t: each item's nearest items by text."""
    return _similarity(context, progress, item_text_embeddings, None)


@stage(group="graphs", code=["pipeline.graphs.reuse"], settings=["similarity", "index"], checks=SEARCH_CHECKS, pool=GPU)
def item_visual_similarity_graph(
    context: dg.AssetExecutionContext, item_visual_embeddings: np.ndarray, progress: Progress
) -> Result:
    """G_I^v: each item's nearest items by image; (0, 0) where the dataset has no images."""
    if item_visual_embeddings.shape[0] == 0:
        return Result(
            csr_array((0, 0), dtype=np.float32), {"visual modality": "none"}, dict.fromkeys(SEARCH_CHECKS, Check(True))
        )
    return _similarity(context, progress, item_visual_embeddings, None)


@stage(group="graphs", code=["pipeline.graphs.reuse"], settings=["similarity", "index"], checks=SEARCH_CHECKS, pool=GPU)
def user_item_similarity_graph(
    context: dg.AssetExecutionContext,
    user_text_embeddings: np.ndarray,
    item_text_embeddings: np.ndarray,
    progress: Progress,
) -> Result:
    """G_UI: each user's nearest items by text."""
    return _similarity(context, progress, user_text_embeddings, item_text_embeddings)


@stage(group="graphs", code=["pipeline.graphs.fusion"], settings=["fusion"], checks=CHECKS)
def semantic_graph(
    context: dg.AssetExecutionContext,
    user_subspace_graph: csr_array,
    item_subspace_graph: csr_array,
    user_item_subspace_graph: csr_array,
    user_similarity_graph: csr_array,
    item_text_similarity_graph: csr_array,
    item_visual_similarity_graph: csr_array,
    user_item_similarity_graph: csr_array,
) -> Result:
    """Ĝ: subspace and similarity graphs fused into one over users and items (eq. 6)."""
    from pipeline.graphs.fusion import fuse

    graph = fuse(
        user_subspace_graph,
        item_subspace_graph,
        user_item_subspace_graph,
        user_similarity_graph,
        item_text_similarity_graph,
        item_visual_similarity_graph,
        user_item_similarity_graph,
        settings_of(context).fusion,
    )
    return _result(context, graph, user_item_subspace_graph.shape)


def _subspace(
    context: dg.AssetExecutionContext,
    progress: Progress,
    targets: np.ndarray,
    candidates: np.ndarray | None,
    sparsity: int | None,
) -> Result:
    from pipeline.graphs.subspaces import subspace_graph

    settings = settings_of(context)
    found: dict[str, Any] = {}
    built = subspace_graph(
        targets,
        candidates,
        settings.subspace.dictionary_size,
        sparsity or settings.subspace.sparsity,
        _memory(context),
        _execution(context, progress.bar(context, "matching pursuit"), found, targets, candidates),
    )
    return _searched(context, built, found)


def _similarity(
    context: dg.AssetExecutionContext, progress: Progress, queries: np.ndarray, candidates: np.ndarray | None
) -> Result:
    from pipeline.graphs.reuse import similarity_graph

    settings = settings_of(context)
    found: dict[str, Any] = {}
    built = similarity_graph(
        queries,
        candidates,
        settings.similarity.neighbours,
        _memory(context),
        _execution(context, progress.bar(context, "nearest neighbours"), found, queries, candidates),
    )
    return _searched(context, built, found)


def _execution(
    context: dg.AssetExecutionContext,
    bar: Callable[..., None],
    found: dict[str, Any],
    *features: np.ndarray | None,
) -> "Execution":
    """How the dataset's settings want a graph to be made; figures of an index go into `found`."""
    from pipeline.graphs.execution import Execution

    settings = settings_of(context)
    return Execution(
        memory_gb=_memory_left(context, *features),
        threads=settings.resources.threads,
        device=settings.resources.device,
        index=settings.index,
        cluster=cluster(settings.compute),
        progress=bar,
        report=found.update,
    )


def _memory(context: dg.AssetExecutionContext) -> "Memory":
    """Where the graph's last build is kept, for the same code only; a variant's goes elsewhere."""
    from pipeline.graphs.reuse import Memory

    name = context.asset_key.to_user_string()
    code = context.assets_def.code_versions_by_key[context.asset_key]
    dataset = partition_of(context)["dataset"]
    varied = VARIANT_TAG in context.run.tags
    folder = home.variants_folder(dataset) / "builds" if varied else home.cache_folder("graphs", dataset)
    return Memory(folder / f"{name}.npz", str(code), context.log.warning)


def _memory_left(context: dg.AssetExecutionContext, *features: np.ndarray | None) -> float:
    """What the process, with the features that it has loaded, leaves of the budget, in 10^9 bytes."""
    from pipeline.graphs.products import memory_left

    size = sum(part.nbytes for part in features if part is not None)
    return memory_left(settings_of(context).resources.memory_gb, size, context.log.warning)


def _searched(context: dg.AssetExecutionContext, built: "Built", found: Mapping[str, Any]) -> Result:
    """The graph, how many of its rows were computed, and how neighbours were found: exactly, or with which recall."""
    result = _result(context, built.graph)
    shown = {**result.shown, "rows_computed": built.computed, "rows_reused": built.reused}
    check = Check(True, {"search": "exact"})
    if found:
        context.log.info(f"index of {found['clusters']:,} clusters: recall {found['recall']:.3f}")
        is_enough = found["recall"] >= found["recall_asked"]
        advice = {} if is_enough else {"advice": "raise index.recall, or index.above for an exact search"}
        check = Check(is_enough, {**found, **advice})
        shown |= {f"index_{name}": value for name, value in found.items()}
    return replace(result, shown=shown, checks={**result.checks, "neighbours_found": check})


def _result(context: dg.AssetExecutionContext, graph: csr_array, blocks: tuple[int, int] | None = None) -> Result:
    from pipeline.graphs.fusion import graph_summary

    if graph.nnz == 0:
        raise ValueError(
            f"{context.asset_key.to_user_string()} of {context.partition_key} has no edges: the profiles hold no text, "
            "or the fusion leaves nothing. Choose a model that reads interactions only (lightgcn, bpr), give the "
            "dataset texts, or look at its `fusion` settings."
        )
    summary = graph_summary(graph, blocks)
    checks = {
        "not_over_dense": Check(summary["density"] <= DENSITY_LIMIT, {"density": summary["density"]}),
        "few_isolated_nodes": Check(summary["isolated_share"] <= ISOLATED_LIMIT, {"isolated": summary["isolated"]}),
    }
    del summary["degrees"]  # shown as a picture
    shown: dict[str, Any] = {**summary, "degree_histogram": dg.MetadataValue.md(degree_histogram(graph))}
    return Result(graph, shown, checks)
