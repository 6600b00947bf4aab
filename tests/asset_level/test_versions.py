from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets import versions
from assets.definitions import defs
from assets.settings import dataset
from assets.versions import SETTINGS, model_content, package, settings_content

GRAPH = defs.resolve_asset_graph()


def reached(monkeypatch: pytest.MonkeyPatch, *modules: str) -> set[str]:
    """Modules whose source counts in a code version."""
    seen: set[str] = set()
    monkeypatch.setattr(versions, "_module_version", lambda name: seen.add(name) or name)
    versions._modules(*modules)
    return seen


def test_code_version_follows_imports(monkeypatch: pytest.MonkeyPatch):
    assert {"pipeline.graphs.omp", "pipeline.graphs.kernels"} <= reached(monkeypatch, "pipeline.graphs.omp")
    assert "pipeline.graphs.omp" not in reached(monkeypatch, "pipeline.graphs.knn")
    assert {"model.layers", "model.losses", "model.base"} <= reached(monkeypatch, "model.scale")
    assert "model.baselines.lightgcn" not in reached(monkeypatch, "model.scale")
    assert {"pipeline.sources.amazon", "pipeline.sources.demo"} <= set(package("pipeline.sources"))
    with pytest.raises(ValueError, match="not a module"):
        versions._modules("pipeline.absent")


def test_a_look_at_a_module_is_kept_while_its_text_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCALE_HOME", str(tmp_path / "home"))
    kept, copy = tmp_path / "home/cache/code/assets.graphs.json", tmp_path / "graphs.py"
    copy.write_text(versions._source("assets.graphs").read_text())
    monkeypatch.setattr(versions, "_source", lambda module: copy)
    taken = []
    monkeypatch.setattr(versions, "_look", lambda *given, look=versions._look: taken.append(1) or look(*given))

    def look() -> versions._Module:
        return versions._looked_at.__wrapped__("assets.graphs")

    first = look()
    assert "item_subspace_graph" in first.definitions
    assert look() == first
    assert len(taken) == 1
    for damage in ("{", "[]", "{}"):
        kept.write_text(damage)
        assert look() == first
    assert len(taken) == 4
    copy.write_text(copy.read_text() + "\nEXTRA = 1\n")
    assert look().version != first.version
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("")  # a home where nothing can be kept
    assert look().version != first.version


def test_a_setting_changes_the_version_of_its_group_alone():
    before = dataset("tiny")
    after = dataset("tiny", {"subspace.sparsity": 3, "resources.threads": 1})
    changed = {name for name in SETTINGS if settings_content(name, before) != settings_content(name, after)}
    assert changed == {"subspace"}


def test_model_versions_are_their_own():
    before, after = dataset("tiny"), dataset("tiny", {"models.scale.relation_weight": 0.1, "training.device": "cpu"})
    assert model_content("scale", before) != model_content("scale", after)
    assert model_content("bpr", before) == model_content("bpr", after)
    seeded = dataset("tiny", {"training.seed": 1})
    assert model_content("bpr", before) != model_content("bpr", seeded)


def test_prompts_count_where_a_model_reads_them(tmp_path: Path):
    prompt = tmp_path / "user.md.j2"

    def version(text: str, backend: str, group: str = "user_profiles") -> dict[str, Any]:
        prompt.write_text(text)
        changes = {"profiles.backend": backend, "profiles.user_prompt": str(prompt)}
        return settings_content(group, dataset("tiny", changes))

    base = "Describe.\n{% for entry in history %}{{ entry.title }}\n{% endfor %}"
    assert version(base, "openai") == version("{# note #}" + base, "openai")
    assert version(base, "openai") != version("Please. " + base, "openai")
    assert version(base, "openai", "item_profiles") == version("Please. " + base, "openai", "item_profiles")
    assert version(base, "extractive") == version("Please. " + base, "extractive")


def test_profiles_count_what_an_answer_depends_on_and_not_how_it_is_fetched(tmp_path: Path):
    def version(group: str = "user_profiles", **changes: object) -> dict[str, Any]:
        named = {f"profiles.{key.replace('__', '.')}": value for key, value in changes.items()}
        return settings_content(group, dataset("tiny", named))

    for how in (
        {"openai__base_url": "http://elsewhere/v1", "openai__concurrency": 2, "openai__timeout_seconds": 9},
        {"model__attempts": 9, "vllm__dtype": "float32", "vllm__gpu_memory_utilization": 0.5, "prompt_tokens": 99},
    ):
        assert version(backend="openai", **how) == version(backend="openai")
    for what in ("model__seed", "model__temperature", "prompt_words"):
        assert version(backend="openai", **{what: 77}) != version(backend="openai")
    assert version(backend="vllm", prompt_tokens=99) != version(backend="vllm")
    assert version(backend="vllm", prompt_words=99) == version(backend="vllm")
    counted = {"backend": "openai", "model__tokenizer": "some/tokenizer"}
    assert version(**counted, prompt_tokens=99) != version(**counted)
    assert version(**counted, prompt_words=99) == version(**counted) != version(backend="openai")
    assert version(backend="extractive", prompt_words=99, model__seed=1) == version(backend="extractive")
    assert version(backend="metadata", prompt_words=99) != version(backend="metadata")
    assert version(backend="openai", history="all") != version(backend="openai")
    assert version("item_profiles", history="all") == version("item_profiles")


def test_the_files_of_a_local_model_count(tmp_path: Path):
    seen = []
    for content in ("{}", "[]"):
        (tmp_path / "config.json").write_text(content)
        for backend in ("openai", "vllm", "extractive"):
            changes = {"profiles.backend": backend, "profiles.model.name": str(tmp_path)}
            seen.append(settings_content("item_profiles", dataset("tiny", changes)))
    assert len({str(content) for content in seen}) == 5


def test_a_changed_raw_file_is_a_changed_version(tmp_path: Path):
    clicks = tmp_path / "clicks.csv"
    changes = {"source": {"kind": "tables", "interactions": {"path": str(clicks)}}}
    versions_seen = []
    for text in (None, "user,item\na,b\n", "user,item\na,c2\n"):
        if text is not None:
            clicks.write_text(text)
        versions_seen.append(settings_content("source", dataset("tiny", changes)))
    assert versions_seen[0] != versions_seen[1] != versions_seen[2]


def test_a_changed_file_of_a_local_encoder_is_a_changed_version(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    changes = {"embeddings": {"encoder": "sentence-transformers", "model": str(tmp_path)}}

    def version(**more: object) -> dict[str, Any]:
        return settings_content("embeddings", dataset("tiny", {"embeddings": {**changes["embeddings"], **more}}))

    before = version()
    assert version(batch_size=2, device="cpu", dimensions=64) == before
    assert version(max_tokens=9) != before
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert version() != before


def test_a_stages_code_is_its_function_and_what_that_uses():
    parts = {key: set(versions.code_parts(GRAPH.get(key).code_version)) for key in GRAPH.materializable_asset_keys}
    subspace = parts[dg.AssetKey("item_subspace_graph")]
    assert {"assets.graphs.item_subspace_graph", "pipeline.graphs.omp", "pipeline.graphs.kernels"} <= subspace
    assert not {"pipeline.graphs.fusion", "assets.stage.stage"} & subspace
    interactions = parts[dg.AssetKey("items")]
    assert {"assets.interactions.interaction_tables", "pipeline.interactions", "pipeline.splits"} <= interactions
    training = parts[dg.AssetKey(["interactions", "trained_model"])]
    assert {"assets.training._train", "assets.training.rec_data", "assets.training.interaction_matrix"} <= training
    assert {"model.training", "model.base", "model.metrics"} <= training
    assert not {"model.scale", "model.registry", "assets.tracking.TrainingRun"} & training
    recommendations = parts[dg.AssetKey(["interactions", "recommendations"])]
    assert {"assets.recommendations.TOP", "assets.training.pairs_of", "pipeline.reasons"} <= recommendations


def test_files_of_the_same_name_in_two_folders_both_count(tmp_path: Path):
    paths = {kind: tmp_path / kind / "data.csv" for kind in ("interactions", "items")}
    for path in paths.values():
        path.parent.mkdir()
        path.write_text("user,item\na,b\n")
    changes = {"source": {"kind": "tables"} | {kind: {"path": str(path)} for kind, path in paths.items()}}
    for path in paths.values():
        before = settings_content("source", dataset("tiny", changes))
        path.write_text("user,item\na,b\nc,d\n")
        assert settings_content("source", dataset("tiny", changes)) != before
