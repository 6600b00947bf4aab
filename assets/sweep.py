"""Search for a model's settings on one dataset: Optuna draws them, validation judges them, MLflow keeps them.

A sweep has an experiment of its own, `<dataset> sweeps`: one run a sweep, one nested run a trial. Trials go on where a
stopped sweep left off, as long as the data, the code and the settings around the searched ones are the same. The test
split is never read here; `scale run --tuned` trains with what was found, and measures it once.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import yaml

from assets import home, tracking, workers
from assets.model_groups import group_of
from assets.settings import Dataset, Range, Space, dataset, search_space, training_config
from assets.training import build, inputs_of, stored_data
from assets.versions import latest, model_content
from model.registry import MODELS
from pipeline import fingerprint
from pipeline.files import atomic_path
from pipeline.settings import SettingsError

if TYPE_CHECKING:
    import optuna

    from model.base import RecData
    from model.training import EpochRecord

POLL_SECONDS = 0.5
NUMBER = "number"  # which of the sweep's jobs a trial belongs to
STARTING_TRIALS = 4  # no trial is stopped before so many have come to an end


@dataclass(frozen=True)
class Found:
    """What a sweep came to.

    Parameters
    ----------
    best
        Settings of the best trial, by dotted key.
    value
        Its validation metric, that of its best epoch.
    trials
        `trial`, `state`, `value` and the settings tried, by dotted key, of every trial that ended.
    file
        The best settings as YAML, to be taken into a dataset's file, or for `scale run --tuned`.
    budget
        How many trials were asked for and, where a grid has fewer combinations, that all of these were tried.
    """

    best: dict[str, Any]
    value: float
    trials: list[dict[str, Any]]
    file: Path
    budget: str


@dataclass(frozen=True)
class Job:
    """What a process needs for trials: names, overrides by dotted key, the journal of trials, MLflow's ids, threads."""

    dataset: str
    model: str
    overrides: tuple[tuple[str, Any], ...]
    journal: Path
    experiment_id: str
    run_id: str
    threads: int | None

    def settings(self, tried: Mapping[str, Any] | None = None) -> Dataset:
        """The dataset's settings, with those that a trial tries."""
        return dataset(self.dataset, {**dict(self.overrides), **(tried or {})})

    def study(self, sampler: "optuna.samplers.BaseSampler | None" = None) -> "optuna.Study":
        """The trials so far, and how to go on."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        search = self.settings().sweep
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.journal))),
            sampler=sampler,
            pruner=optuna.pruners.MedianPruner(STARTING_TRIALS, search.warm_up + 1)  # whose steps count from 0
            if search.prune
            else optuna.pruners.NopPruner(),
            study_name=f"{self.dataset} {self.model}",
            direction="maximize",
            load_if_exists=True,
        )


def tuned(dataset_name: str, model: str) -> dict[str, Any]:
    """The settings that the last sweep found, by dotted key.

    Raises
    ------
    SettingsError
        When there has been no sweep of this model on this dataset.
    """
    path = tuned_path(dataset_name, model)
    if not path.exists():
        raise SettingsError(
            f"{model} has not been tuned on {dataset_name}; start with: scale sweep -d {dataset_name} -m {model}"
        )
    return tracking.flatten(yaml.safe_load(path.read_text()))


def sweep(
    instance: dg.DagsterInstance,
    dataset_name: str,
    model: str,
    overrides: Mapping[str, Any],
    on_trial: Callable[[int, int, str], None],
) -> Found:
    """Run those trials of one model that have not been run yet; what the model reads has to be there.

    Parameters
    ----------
    on_trial
        Called with (trials done, trials in all, how far the best one got) now and then.

    Raises
    ------
    SettingsError
        When the space does not fit the model, or no trial came to an end.
    """
    import mlflow
    from optuna.trial import TrialState

    settings = dataset(dataset_name, overrides)
    space = search_space(model, settings)
    total = _trials(space, settings)
    identity = _identity(instance, dataset_name, model, settings, space)
    client, experiment = mlflow.MlflowClient, tracking.connect(f"{dataset_name} sweeps")
    budget = _budget(total, settings.sweep.trials)
    tags = {"dataset": dataset_name, "model": model, "sweep": identity, "budget": budget}
    run = client().create_run(experiment, run_name=f"{MODELS[model].title} sweep", tags=tags)
    journal = tuned_path(dataset_name, model).with_name(f"{model}-{identity[:12]}.log")
    threads = workers.threads(settings.sweep.parallel, settings.compute)
    journal.parent.mkdir(parents=True, exist_ok=True)
    job = Job(dataset_name, model, tuple(overrides.items()), journal, experiment, run.info.run_id, threads)
    study = job.study()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # a process was killed over it
        study.tell(trial.number, state=TrialState.FAIL)

    def report() -> None:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        values = [trial.value for trial in ended if trial.state == TrialState.COMPLETE and trial.value is not None]
        best = f"best validation {settings.training.selection_metric} {max(values):.4f}" if values else ""
        on_trial(len(ended), total, best)

    try:
        done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
        device = training_config(model, settings).device
        with (
            workers.pool(settings.sweep.parallel, settings.compute, device) as pool,
            workers.given_up_when_stopped(pool),
        ):
            waiting = {pool.submit(_run_trial, job, number) for number in range(done, total)}
            while waiting:
                report()
                finished, waiting = wait(waiting, timeout=POLL_SECONDS)
                for each in finished:
                    if each.exception() is not None:
                        pool.shutdown(cancel_futures=True)
                    each.result()
        report()
        found = _found(study, tuned_path(dataset_name, model), budget)
        _write(found, dataset_name, model, settings)
    except BaseException:
        client().set_terminated(job.run_id, status="FAILED")
        raise
    with mlflow.start_run(run_id=job.run_id):
        mlflow.log_metric(f"best_valid_{settings.training.selection_metric}", found.value)
        mlflow.log_params(found.best)
        mlflow.log_artifact(str(found.file))
    return found


def _identity(instance: dg.DagsterInstance, dataset_name: str, model: str, settings: Dataset, space: Space) -> str:
    """Names what a trial's result depends on, and the order in which they are drawn; not how many there are."""
    versions = {}
    for asset in inputs_of(group_of(model)):
        record = latest(instance, dg.AssetKey(asset), dataset_name)
        if record is None:
            raise SettingsError(f"{model} reads {asset}, which has not been made for {dataset_name} yet")
        versions[asset] = record.version
    tried = {key: value.model_dump() if isinstance(value, Range) else value for key, value in space.items()}
    drawn = settings.sweep.model_dump(mode="json", include={"sampler", "seed", "prune", "warm_up"})
    return fingerprint.settings_version([versions, model_content(model, settings), tried, drawn])


def _trials(space: Space, settings: Dataset) -> int:
    """How many trials there will be: all that are asked for, or every combination where there are fewer."""
    search = settings.sweep
    ranges = [key for key, choices in space.items() if isinstance(choices, Range)]
    if search.sampler != "grid":
        return search.trials
    if ranges:
        raise SettingsError(f"sweep.sampler grid takes lists of values, and {ranges[0]} is a range; take random or tpe")
    return min(search.trials, math.prod(len(choices) for choices in space.values() if isinstance(choices, list)))


def _budget(total: int, asked: int) -> str:
    """What a comparison of models that were tuned has to tell: the same number is the most that each of them gets."""
    if total < asked:
        return f"{total} combinations, all of them tried, of {asked} trials asked for"
    return f"{asked} trials asked for"


def _sampler(settings: Dataset, number: int) -> "optuna.samplers.BaseSampler":
    """What draws one trial: its seed is the trial's own, so that neither processes nor a stop change what is drawn."""
    from optuna import exceptions, samplers

    warnings.simplefilter("ignore", exceptions.ExperimentalWarning)  # of the sampler without repetitions
    search = settings.sweep
    seed = search.seed + 1_000_003 * number
    match search.sampler:
        case "grid":
            return samplers.BruteForceSampler(seed=seed)
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=search.parallel > 1)


@lru_cache(maxsize=1)
def _data(dataset_name: str, model: str, _journal: Path) -> "RecData":
    """What the trials of a journal read, once a process: those of a cluster outlive a sweep."""
    return stored_data(dataset_name, model)


def _run_trial(job: Job, number: int) -> None:
    """Draw one trial, train, tell the study and MLflow. What a lost process had drawn for it is trained again."""
    from optuna.trial import TrialState

    from model.training import TrainingError

    tracking.connect(f"{job.dataset} sweeps")
    settings = job.settings()
    trials = job.study()
    for lost in trials.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if lost.user_attrs.get(NUMBER) == number:
            trials.tell(lost.number, state=TrialState.FAIL)
            trials.enqueue_trial(lost.params)
    study = job.study(_sampler(settings, number))
    study.optimize(lambda trial: _train(job, trial, number), n_trials=1, catch=(TrainingError,))


def _train(job: Job, trial: "optuna.Trial", number: int) -> float:
    import optuna

    from model.training import best_validation

    trial.set_user_attr(NUMBER, number)
    space = search_space(job.model, job.settings())
    tried = {key: _draw(trial, key, choices) for key, choices in space.items()}
    settings = job.settings(tried)
    config = workers.share(training_config(job.model, settings), job.threads)
    tags = {"mlflow.parentRunId": job.run_id, "dataset": job.dataset, "model": job.model}
    with tracking.brief_run(job.experiment_id, f"trial {trial.number}", tried, tags) as run:

        def on_epoch(record: "EpochRecord") -> None:
            if record.validation is None:
                return
            run.log({f"valid_{name}": value for name, value in record.validation.items()}, record.epoch)
            trial.report(record.validation[config.selection_metric], record.epoch)
            if trial.should_prune():
                run.status = "KILLED"
                raise optuna.TrialPruned

        data = _data(job.dataset, job.model, job.journal)
        value = best_validation(build(job.model, data, settings), data, config, on_epoch)
        run.log({f"best_valid_{config.selection_metric}": value})
    return value


def _draw(trial: "optuna.Trial", key: str, choices: list[Any] | Range) -> Any:
    if isinstance(choices, list):
        return trial.suggest_categorical(key, choices)
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return trial.suggest_int(key, choices.low, choices.high, log=choices.log)
    return trial.suggest_float(key, choices.low, choices.high, log=choices.log)


def _found(study: "optuna.Study", file: Path, budget: str) -> Found:
    from optuna.trial import TrialState

    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if not any(trial.state == TrialState.COMPLETE for trial in ended):
        raise SettingsError("no trial came to an end: see the trials in MLflow for what went wrong")
    best = study.best_trial
    trials = [
        {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value, **trial.params}
        for trial in ended
    ]
    return Found(best.params, study.best_value, trials, file, budget)


def _write(found: Found, dataset_name: str, model: str, settings: Dataset) -> None:
    """Leave the best settings as the lines that a dataset's file would have."""
    nested: dict[str, Any] = {}
    for key, value in found.best.items():
        *groups, last = key.split(".")
        place = nested
        for part in groups:
            place = place.setdefault(part, {})
        place[last] = value
    note = (
        f"# The best of {len(found.trials)} trials of {model} on {dataset_name}: validation "
        f"{settings.training.selection_metric} {found.value:.4f}\n"
        f"# {found.budget}\n"
    )
    with atomic_path(found.file) as path:
        path.write_text(note + yaml.safe_dump(nested))


def tuned_path(dataset_name: str, model: str) -> Path:
    """Where a sweep leaves the settings that it found; the journals of trials lie beside."""
    return home.home() / "sweeps" / dataset_name / f"{model}.yaml"
