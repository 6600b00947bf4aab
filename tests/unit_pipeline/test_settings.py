from pathlib import Path

import pytest

from pipeline.settings import DatasetSettings, SettingsError, dataset_files, load_settings, parse_override

MINIMAL = "title: Mine\nsource: {kind: tables, interactions: {path: clicks.csv}}\n"


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path: Path):
    settings = load_settings(write(tmp_path, MINIMAL), DatasetSettings)
    assert (settings.similarity.neighbours, settings.subspace.dictionary_size, settings.subspace.sparsity) == (
        5,
        800,
        10,
    )
    assert settings.profiles.history == "train"
    assert settings.fusion.operator == "union"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "subspace: {sparsiti: 4}\n", r"subspace\.sparsiti: unknown setting; did you mean sparsity\?"),
        (MINIMAL + "subspaces: {}\n", "did you mean subspace"),
        ("title: x\nsource: {kind: demo, usrs: 3}\n", "did you mean users"),
        (MINIMAL + "interactions: {core: none}\n", r"interactions\.core: .*found 'none'"),
        ("title: x\nsource: {kind: amazn}\n", "source"),
        ("- a\n- b\n", "found list"),
        ("a: [", "cannot be read as YAML"),
        ("a: " + 2000 * "[" + 2000 * "]", "cannot be read as YAML: it is nested too deeply"),
        ("a: &a [1]\nb: *a\n", r"an alias \(`\*`\) is not read; write its value out"),
        ("a: 2024-13-01\n", "cannot be read as YAML: month must be in"),
        ("title: x\nsource: {kind: tables, interactions: {path: a, url: b}}\n", "exactly one of `path` and `url`"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(path, DatasetSettings)
    assert str(path) in str(caught.value)


def test_overrides_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_DATA", "/data")
    path = write(tmp_path, MINIMAL.replace("clicks.csv", "'${MY_DATA}/clicks.csv'"))
    key, value = parse_override("subspace.sparsity=3")
    settings = load_settings(path, DatasetSettings, {key: value})
    assert settings.subspace.sparsity == 3
    assert settings.source.interactions.path == "/data/clicks.csv"
    relative = load_settings(write(tmp_path, MINIMAL), DatasetSettings)
    assert relative.source.interactions.path == str(tmp_path / "clicks.csv")
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_override("subspace.sparsity")
    with pytest.raises(SettingsError, match="title holds a value"):
        load_settings(path, DatasetSettings, {"title.more": 1})


def test_a_users_folder_adds_and_hides_datasets(tmp_path: Path):
    write(tmp_path, MINIMAL)
    write(tmp_path, MINIMAL, "demo.yaml")
    files = dataset_files(str(tmp_path))
    assert files["mine"].parent == tmp_path
    assert files["demo"].parent == tmp_path
    assert list(files) == sorted(files)
    with pytest.raises(SettingsError, match="not a folder"):
        dataset_files(str(tmp_path / "absent"))


def test_a_hub_model_is_pinned(tmp_path: Path):
    def model(text: str):
        return load_settings(write(tmp_path, MINIMAL + f"profiles: {text}\n"), DatasetSettings).profiles.model

    commit = "0cb88a4f764b7a12671c53f0838cd831a0843b95"
    assert model("{backend: vllm}").revision == model("{backend: vllm, model: {seed: 1}}").revision == commit
    assert model("{backend: openai, model: {name: other/model}}").revision is None
    assert model("{backend: vllm, model: {name: other/model, revision: main}}").revision == "main"
    assert model(f"{{backend: vllm, model: {{name: {tmp_path}}}}}").revision is None
    assert model(f"{{backend: vllm, model: {{name: {tmp_path}}}}}").folder == tmp_path
    for mistake in ("name: other/model", "revision: null"):
        with pytest.raises(SettingsError, match=r"profiles\.model: .*: pin a commit of it, or write `revision: main`"):
            model(f"{{backend: vllm, model: {{{mistake}}}}}")
    with pytest.raises(SettingsError, match=r"profiles\.openai\.model: unknown setting"):
        model("{backend: openai, openai: {model: other/model}}")
