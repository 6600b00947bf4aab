"""Searches for settings: what is tried, what a stop leaves, what comes out."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from assets import terminal, tracking
from assets.settings import Range, dataset, search_space, training_config
from assets.sweep import Found, sweep, tuned, tuned_path
from pipeline.settings import SettingsError
from tests import killing

GRID = {"layers": [1, 2], "l2": [0.0, 0.1], "training.learning_rate": [0.005, 0.02]}


def run(pipeline, **search: Any) -> Found:
    overrides = {f"sweep.{key}": value for key, value in {"spaces": {"lightgcn": GRID}, **search}.items()}
    return sweep(pipeline.instance, "tiny", "lightgcn", overrides, lambda done, total, best: None)


def drawn(trial: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for key, value in trial.items() if key.startswith("models."))


@pytest.mark.slow
def test_a_sweep_keeps_the_best_goes_on_and_is_used(finished):
    import mlflow

    first = run(finished, trials=3, prune=False)
    assert [trial["trial"] for trial in first.trials] == [0, 1, 2]
    assert first.value == max(trial["value"] for trial in first.trials)
    assert tuned("tiny", "lightgcn") == first.best
    assert yaml.safe_load(first.file.read_text())["models"]["lightgcn"].keys() == {"layers", "l2", "training"}
    assert first.budget == "3 trials asked for"

    # More trials: those that ran stay, and no combination comes twice.
    whole = run(finished, trials=20, prune=False)
    assert whole.trials[:3] == first.trials
    tried = {drawn(trial) for trial in whole.trials}
    assert len(tried) == len(whole.trials) == 8
    fewer = "8 combinations, all of them tried, of 20 trials asked for"
    assert whole.budget == fewer
    assert f"# {fewer}\n" in whole.file.read_text()
    assert f"8 trials ({fewer}), 0 of them stopped early" in str(terminal.trials_table("lightgcn", whole).title)

    client = mlflow.MlflowClient()
    experiment = tracking.connect("tiny sweeps")
    parents = client.search_runs([experiment], "tags.model = 'lightgcn' AND attributes.run_name = 'LightGCN sweep'")
    assert {parent.data.tags["budget"] for parent in parents} == {first.budget, whole.budget}
    assert len(parents) == 2
    nested = [
        client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'") for parent in parents
    ]
    assert sorted(map(len, nested)) == [3, 5]
    for trial in [trial for trials in nested for trial in trials]:
        assert trial.info.status == "FINISHED"
        assert not [name for name in trial.data.metrics if "test" in name]
        assert "best_valid_recall_at_20" in trial.data.metrics

    settings = dataset("tiny", tuned("tiny", "lightgcn"))
    assert training_config("lightgcn", settings).learning_rate == whole.best["models.lightgcn.training.learning_rate"]
    assert training_config("scale", settings).learning_rate == 0.005  # the other models keep the dataset's


@pytest.mark.slow
def test_trials_below_the_median_are_stopped_and_the_best_is_none_of_them(finished):
    import mlflow

    steps = {"lightgcn": {"training.learning_rate": [1e-6, 0.005, 0.01, 0.02]}}
    found = run(finished, trials=12, prune=True, warm_up=1, sampler="random", spaces=steps)
    complete, pruned = (
        [trial for trial in found.trials if trial["state"] == state] for state in ("complete", "pruned")
    )
    assert len(complete) + len(pruned) == 12
    assert pruned
    assert found.trials[:4] == complete[:4]  # there is no median before
    assert found.value == max(trial["value"] for trial in complete)
    assert any(found.best.items() <= trial.items() for trial in complete)

    client = mlflow.MlflowClient()
    experiment = tracking.connect("tiny sweeps")
    newest = client.search_runs([experiment], "attributes.run_name = 'LightGCN sweep'", max_results=1)[0].info.run_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{newest}'")
    looks: dict[str, list[int]] = {"KILLED": [], "FINISHED": []}
    for trial in nested:
        history = client.get_metric_history(trial.info.run_id, "valid_recall_at_20")
        looks[trial.info.status].append(len(history))
    assert looks["FINISHED"] == [6] * len(complete)
    assert len(looks["KILLED"]) == len(pruned)
    assert min(looks["KILLED"]) >= 2  # after the epoch of warm-up
    assert min(looks["KILLED"]) < 6  # and before the end


@pytest.mark.slow
def test_tpe_learns_from_the_trials_before(finished):
    space = {"lightgcn": {"training.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}}
    rates = {}
    for sampler in ("random", "tpe"):
        found = run(finished, trials=14, prune=False, sampler=sampler, spaces=space)
        assert all(1e-6 <= rate <= 1e-2 for (rate,) in map(drawn, found.trials))
        assert found.value == max(trial["value"] for trial in found.trials)
        rates[sampler] = [rate for (rate,) in map(drawn, found.trials)]
    assert rates["tpe"][:10] == rates["random"][:10]  # by chance
    # Then where the best were: larger steps learn more in so few epochs.
    assert min(rates["tpe"][10:]) > sorted(rates["random"])[len(rates["random"]) // 2]


@pytest.mark.slow
def test_two_processes_try_what_one_tries(finished):
    space = {"lightgcn": {"l2": {"low": 1e-5, "high": 1e-1, "log": True}}}
    found = []
    for parallel in (1, 2):
        found.append(
            run(finished, trials=3, prune=False, sampler="random", spaces=space, parallel=parallel, seed=5).trials
        )
        for journal in tuned_path("tiny", "lightgcn").parent.glob("lightgcn-*.log"):
            journal.unlink()
    one, two = ({drawn(trial): trial["value"] for trial in trials} for trials in found)
    assert one == two
    assert len(one) == 3
    assert all(1e-5 <= l2 <= 1e-1 for (l2,) in one)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_sweep_that_is_killed_at_random_moments_finds_what_a_clean_one_finds(kills, built, tmp_path):
    rates = [0.001, 0.005, 0.02, 0.1]
    words = ["sweep", "-d", "tiny", "-m", "lightgcn", "--set", "sweep.prune=false", "--set", "sweep.parallel=2"]
    words += ["--set", f"sweep.spaces={{lightgcn: {{training.learning_rate: {rates}}}}}"]
    journals = "sweeps/tiny/lightgcn*"
    home, chance = Path(shutil.copytree(built, tmp_path / "home")), random.Random(0)

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in home.glob(f"{journals}.log"))

    killing.finish(home, *words)
    (clean,) = (path.read_text() for path in home.glob(f"{journals}.yaml"))
    whole = lines()
    for _ in range(kills):
        for path in home.glob(journals):
            path.unlink()
        written = chance.randrange(whole)
        killing.kill(home, *words, when=lambda written=written: lines() >= written, later=chance.uniform(0, 0.1))
    killing.finish(home, *words)
    (found,) = (path.read_text() for path in home.glob(f"{journals}.yaml"))
    assert found == clean
    assert not list(home.rglob("*.tmp"))


def test_a_space_that_does_not_fit_is_an_error(finished):
    with pytest.raises(SettingsError, match=r"models\.lightgcn: .*layer"):
        run(finished, spaces={"lightgcn": {"layer": [1, 2]}})
    with pytest.raises(SettingsError, match=r"grid takes lists of values, and models\.lightgcn\.l2 is a range"):
        run(finished, spaces={"lightgcn": {"l2": {"low": 0.0, "high": 1.0}}})
    with pytest.raises(SettingsError, match="bpr has not been tuned on tiny; start with: scale sweep -d tiny -m bpr"):
        tuned("tiny", "bpr")


def test_every_model_has_a_space_of_its_own_settings() -> None:
    from assets.settings import model_config
    from model.registry import MODELS

    settings = dataset("tiny")
    for name in MODELS:
        space = search_space(name, settings)
        for choices in zip(*map(list, space.values()), strict=False):
            tried = dataset("tiny", dict(zip(space, choices, strict=True)))
            model_config(name, tried)
            training_config(name, tried)


def test_a_range_has_to_grow() -> None:
    with pytest.raises(ValueError, match="low 2 has to be below high 1"):
        Range(low=2, high=1)
    with pytest.raises(ValueError, match="above 0 with `log`"):
        Range(low=0, high=1, log=True)
