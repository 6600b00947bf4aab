import json
import subprocess
import sys

import dagster as dg
import yaml

from assets import home
from assets.definitions import defs
from assets.model_groups import model_groups
from assets.partitions import DATASETS
from model.registry import MODELS

GRAPH = defs.resolve_asset_graph()

GROUPS = ("interactions", "modalities", "semantic_graph", "text_user_text")
SEMANTIC = ["semantic_graph", "user_subspace_graph", "item_subspace_graph", "user_item_subspace_graph"]

# What each stage reads, settings aside. The whole pipeline at a glance; a changed arrow is a decision.
EXPECTED = {
    "raw_reviews": [],
    "raw_items": [],
    "raw_profiles": [],
    "raw_images": [],
    "quarantine": [],
    "users": ["raw_items", "raw_reviews"],
    "items": ["raw_items", "raw_reviews"],
    "item_metadata": ["raw_items", "raw_reviews"],
    "interactions": ["raw_items", "raw_reviews"],
    **dict.fromkeys(("item_profiles", "item_profile_failures"), ("item_metadata", "raw_profiles")),
    **dict.fromkeys(
        ("user_profiles", "user_profile_failures"),
        ("interactions", "item_metadata", "item_profiles", "raw_profiles", "raw_reviews", "users"),
    ),
    "item_text_embeddings": ["item_profiles"],
    "user_text_embeddings": ["item_profiles", "user_profiles"],
    "item_visual_embeddings": ["items", "raw_images"],
    "user_subspace_graph": ["user_text_embeddings"],
    "item_subspace_graph": ["item_text_embeddings"],
    "user_item_subspace_graph": ["item_text_embeddings", "user_text_embeddings"],
    "user_similarity_graph": ["user_text_embeddings"],
    "item_text_similarity_graph": ["item_text_embeddings"],
    "item_visual_similarity_graph": ["item_visual_embeddings"],
    "user_item_similarity_graph": ["item_text_embeddings", "user_text_embeddings"],
    "semantic_graph": [
        "item_subspace_graph",
        "item_text_similarity_graph",
        "item_visual_similarity_graph",
        "user_item_similarity_graph",
        "user_item_subspace_graph",
        "user_similarity_graph",
        "user_subspace_graph",
    ],
    "interactions/trained_model": ["interactions", "items", "users"],
    "interactions/user_metrics": ["interactions", "items", "users"],
    "modalities/trained_model": ["interactions", "item_text_embeddings", "item_visual_embeddings", "items", "users"],
    "modalities/user_metrics": ["interactions", "item_text_embeddings", "item_visual_embeddings", "items", "users"],
    "semantic_graph/trained_model": sorted(["interactions", "items", "users", *SEMANTIC]),
    "semantic_graph/user_metrics": sorted(["interactions", "items", "users", *SEMANTIC]),
    "text_user_text/trained_model": ["interactions", "item_text_embeddings", "items", "user_text_embeddings", "users"],
    "text_user_text/user_metrics": ["interactions", "item_text_embeddings", "items", "user_text_embeddings", "users"],
    **{
        f"{group}/recommendations": sorted(
            ["interactions", "item_metadata", "item_text_embeddings", "users", f"{group}/trained_model"]
        )
        for group in GROUPS
    },
}
# Replicates read what trainings read; evidence reads replicates, studies of SCALE what SCALE reads.
REPLICATES = [f"{group}/{name}" for group in GROUPS for name in ("replicates", "replicate_runs")]
EXPECTED |= {
    f"{group}/{name}": EXPECTED[f"{group}/trained_model"]
    for group in GROUPS
    for name in ("replicates", "replicate_runs")
}
EXPECTED |= dict.fromkeys(("comparison", "significance", "table_1", "table_2"), REPLICATES)
LISTED = [*REPLICATES, "interactions", "items", "users"]
MAPPED = [*REPLICATES, "item_metadata"]
EXPECTED["modality_study"] = [*REPLICATES, *EXPECTED["modalities/trained_model"]]
EXPECTED |= dict.fromkeys(("breakdown", "lists"), LISTED) | dict.fromkeys(("item_map", "item_map_purity"), MAPPED)
STUDIES = ("ablations", "leak_audit", "fusion_audit", "sensitivity", "split_study")
EXPECTED |= dict.fromkeys(STUDIES, EXPECTED["semantic_graph/trained_model"])
EVIDENCE = [name for name in EXPECTED if name in STUDIES or REPLICATES[0] in EXPECTED[name]]
EXPECTED["report"] = [*EVIDENCE, *REPLICATES, "interactions", "items", "users"]


def arrows() -> dict[str, list[str]]:
    names = {}
    for key in GRAPH.materializable_asset_keys:
        parents = [parent.to_user_string() for parent in GRAPH.get(key).parent_keys if parent.path[0] != "settings"]
        names[key.to_user_string()] = sorted(parents)
    return names


def test_every_stage_reads_what_it_should():
    assert arrows() == {name: sorted(above) for name, above in EXPECTED.items()}


def test_every_stage_shows_what_it_is_and_has_a_code_version():
    for key in GRAPH.materializable_asset_keys:
        assert GRAPH.get(key).description, key
        assert GRAPH.get(key).code_version, key
        assert GRAPH.get(key).partitions_def is not None, key


def test_every_model_is_a_partition_of_its_group():
    found = [model for group in model_groups() for model in group.models]
    assert sorted(found) == sorted(MODELS)
    for group in model_groups():
        partitions = GRAPH.get(group.key("trained_model")).partitions_def
        assert isinstance(partitions, dg.MultiPartitionsDefinition)
        assert all(f"demo|{model}" in partitions.get_partition_keys() for model in group.models)


def test_jobs_cover_every_stage_and_each_has_one_set_of_partitions():
    jobs = {job.name: job for job in map(defs.resolve_job_def, (job.name for job in defs.jobs))}
    of_models = [f"{job}_{group}" for job in ("replicate", "train_on") for group in GROUPS]
    assert sorted(jobs) == ["data", "evidence", "refresh", *of_models]
    assert jobs.pop("refresh").partitions_def == DATASETS
    covered = [key for job in jobs.values() for key in job.asset_layer.executable_asset_keys]
    assert sorted(covered) == sorted(GRAPH.materializable_asset_keys)
    assert "demo" in jobs["data"].partitions_def.get_partition_keys()
    assert "demo|scale" in jobs["train_on_semantic_graph"].partitions_def.get_partition_keys()


def test_one_run_at_a_time_takes_the_gpu():
    takes = {
        "item_profiles",
        "user_profiles",
        "item_text_embeddings",
        "user_text_embeddings",
        "modality_study",
        *STUDIES,
    }
    takes |= {name for name in EXPECTED if name.endswith(("subspace_graph", "similarity_graph", "/trained_model"))}
    takes |= {f"{group}/replicates" for group in GROUPS}
    pools = {key.to_user_string(): GRAPH.get(key).pools or set() for key in GRAPH.materializable_asset_keys}
    together = {"item_profile_failures", "user_profile_failures"}  # come with the profiles
    together |= {f"{group}/{name}" for group in GROUPS for name in ("user_metrics", "replicate_runs")}
    assert {name for name, found in pools.items() if found == {"gpu"}} == takes | together
    assert not any(found for name, found in pools.items() if name not in takes | together)
    settings = yaml.safe_load((home.PROJECT / "dagster.yaml").read_text())["concurrency"]
    assert settings["pools"] == {"granularity": "run", "default_limit": 1}


def test_import_loads_nothing_heavy():
    script = "import json, sys, assets.definitions; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", script], text=True))
    heavy = {
        "torch",
        "numba",
        "ray",
        "sklearn",
        "mlflow",
        "sentence_transformers",
        "transformers",
        "matplotlib",
        "plotly",
        "vllm",
        "fastapi",
        "uvicorn",
    }
    assert heavy.isdisjoint(loaded)
