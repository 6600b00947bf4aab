"""The `scale` command: a thin face over the same assets that the Dagster UI shows."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

STOPPED = 130  # typer's exit status after a KeyboardInterrupt

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""SCALE: from raw reviews to semantic graphs to a trained recommender.

    Start with `scale run --dataset demo`, look at the results with `scale compare --dataset demo`, open both UIs
    with `scale ui`. Everything generated lives under `SCALE_HOME` (default: `var/` in the project folder).""",
)

DatasetOption = Annotated[str, typer.Option("--dataset", "-d", help="Name of a dataset; `scale datasets` lists them.")]
OptionalDatasetOption = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Name of a dataset; default: every one that has been made.")
]
ModelsOption = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="Model to train; repeat for several. Default: scale.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a setting for this run: `training.epochs=50`, `models.scale.relation_weight=0`."
    ),
]
TunedOption = Annotated[bool, typer.Option("--tuned", help="Take the settings that `scale sweep` found.")]


@app.command()
def run(
    dataset: DatasetOption,
    model: ModelsOption = None,
    set_: SetOption = None,
    tuned: TunedOption = False,
) -> None:
    """Bring a dataset and its models up to date: run the stages that are missing or stale, and no other.

    A run that was stopped goes on where it was. What a stage needs is settled by its dataset's YAML file, the
    `--set` overrides, the two prompt files and the code.
    """
    import dagster as dg

    from assets import home, terminal
    from assets.bars import TerminalProgress, bars
    from assets.refresh import Refresh
    from assets.results import latest_runs
    from assets.settings import dataset as load_dataset

    models = list(dict.fromkeys(model or ["scale"]))
    overrides = _overrides(dataset, models, set_, tuned)
    settings = load_dataset(dataset, overrides)
    home.dagster_home()
    with dg.DagsterInstance.get() as instance, bars:
        refresh = Refresh(instance, dataset, overrides, models, TerminalProgress())
        report = refresh.run(terminal.show_wave, terminal.note)
        rows = latest_runs(instance, dataset, models)
    terminal.show_report(report)
    terminal.console.print(terminal.results_table(rows, settings.published, f"Test metrics on {dataset}"))
    _show_examples(dataset, models[0])
    terminal.console.print(
        f"\nAll runs side by side: [bold]scale compare -d {dataset}[/]   One user: [bold]scale recommend -d {dataset} "
        "-u RAW_ID[/]   Dagster and MLflow in the browser: [bold]scale ui[/]"
    )


@app.command()
def sweep(dataset: DatasetOption, model: ModelsOption = None, set_: SetOption = None) -> None:
    """Search for the settings of models: trainings that differ in what `sweep.spaces` names, judged on validation.

    Makes what the models read first. Goes on where a sweep was stopped, and adds trials when `sweep.trials` grew. The
    trials are nested runs in MLflow's experiment `DATASET sweeps`; `scale run --tuned` trains with what was found.
    """
    import dagster as dg

    from assets import home, terminal
    from assets.bars import TerminalProgress, bars, trial_bar
    from assets.lock import dataset_lock
    from assets.refresh import Refresh
    from assets.sweep import sweep as search

    models = list(dict.fromkeys(model or ["scale"]))
    overrides = _overrides(dataset, models, set_)
    home.dagster_home()
    with dg.DagsterInstance.get() as instance, bars:
        refresh = Refresh(instance, dataset, overrides, models, TerminalProgress(), targets="inputs")
        terminal.show_report(refresh.run(terminal.show_wave, terminal.note))
        for name in models:
            with dataset_lock(f"{dataset}-{name}-sweep", terminal.note):
                found = search(instance, dataset, name, overrides, trial_bar(name))
            terminal.console.print(terminal.trials_table(name, found))
            terminal.console.print(
                f"kept in {found.file}; train with it: [bold]scale run -d {dataset} -m {name} --tuned[/]\n"
            )


@app.command()
def report(
    dataset: DatasetOption,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model to compare; repeat for several. Default: all."),
    ] = None,
    set_: SetOption = None,
    tuned: TunedOption = False,
) -> None:
    """Put the evidence together: models over several seeds, studies of SCALE, one page with all tables and figures.

    Trains each model `evidence.seeds` times, and with SCALE among them its ablations, audits and sensitivity. What was
    trained before with the same data, settings and code is not trained again; a stopped report goes on where it was.
    """
    import dagster as dg

    from assets import home, terminal
    from assets.bars import TerminalProgress, bars
    from assets.refresh import Refresh
    from assets.results import comparison
    from model.registry import MODELS

    models = list(dict.fromkeys(model or MODELS))
    overrides = _overrides(dataset, models, set_, tuned)
    home.dagster_home()
    with dg.DagsterInstance.get() as instance, bars:
        refresh = Refresh(instance, dataset, overrides, models, TerminalProgress(), targets="evidence")
        terminal.show_report(refresh.run(terminal.show_wave, terminal.note))
    terminal.console.print(terminal.comparison_table(dataset, comparison(dataset)))
    terminal.console.print(f"\nThe whole report: [bold]{home.report_folder(dataset) / 'report.html'}[/]")


@app.command()
def status(dataset: OptionalDatasetOption = None, set_: SetOption = None) -> None:
    """Show every stage as fresh, stale or missing, why, and what a refresh would run. Changes nothing.

    Without `--dataset`: every dataset of which something has been made.
    """
    _look(dataset, set_, show_stages=True)


@app.command()
def refresh(
    dataset: OptionalDatasetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, and why.")] = False,
    set_: SetOption = None,
) -> None:
    """Run what is stale of everything that has been made: after an edit of a prompt, a setting, a file or the code.

    Goes in waves: a stage whose result comes out unchanged stops there. Without `--dataset`: every dataset of which
    something has been made. `scale run` makes a dataset or a model for the first time.
    """
    import dagster as dg

    from assets import home, terminal
    from assets.bars import TerminalProgress, bars
    from assets.refresh import Refresh

    if dry_run:
        _look(dataset, set_, show_stages=False)
        return
    overrides = _parsed(set_)
    home.dagster_home()
    with dg.DagsterInstance.get() as instance, bars:
        for name in _made(instance, dataset):
            terminal.console.print(f"[bold]{name}[/]")
            refresh = Refresh(instance, name, overrides, None, TerminalProgress())
            terminal.show_report(refresh.run(terminal.show_wave, terminal.note))


@app.command()
def cache(
    dataset: OptionalDatasetOption = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete rows that no newest result uses, older than `--older-than`.")
    ] = False,
    older_than: Annotated[int, typer.Option(help="Days that an unused row is kept.", min=0)] = 30,
) -> None:
    """Show the row caches of model answers, text vectors and graphs: size, rows in use, hit rate of the last run."""
    from datetime import timedelta

    import dagster as dg

    from assets import home, terminal
    from assets.results import caches
    from assets.results import prune as delete_unused

    home.dagster_home()
    with dg.DagsterInstance.get() as instance:
        found = caches(instance, dataset)
    if not found:
        where = f"for {dataset} " if dataset else ""
        fail(f"no row cache {where}under {home.home() / 'cache'} yet; every run makes some")
    if prune:
        for each in found:
            dropped = delete_unused(each, timedelta(days=older_than))
            terminal.note(f"{each.dataset} {each.kind}: {dropped:,} unused rows older than {older_than} days deleted")
        with dg.DagsterInstance.get() as instance:
            found = caches(instance, dataset)
    terminal.console.print(terminal.caches_table(found))


@app.command()
def compare(
    dataset: DatasetOption, limit: Annotated[int, typer.Option(help="Newest runs to show.", min=1)] = 20
) -> None:
    """Show a dataset's finished MLflow runs side by side: the best marked, published numbers below."""
    from assets import terminal
    from assets.settings import dataset as load_dataset
    from assets.tracking import finished_runs

    settings = load_dataset(dataset)
    rows = finished_runs(dataset, limit)
    if not rows:
        fail(f"no finished run on {dataset} yet; start one with: scale run --dataset {dataset}")
    terminal.console.print(terminal.results_table(rows, settings.published, f"Test metrics on {dataset}, newest first"))


@app.command()
def significance(
    dataset: DatasetOption,
    model: Annotated[str, typer.Option("--model", "-m", help="The model that is held against the others.")] = "scale",
    metric: Annotated[str, typer.Option(help="Test metric of each user.")] = "recall_at_20",
) -> None:
    """Say whether a model differs from the others trained on a dataset by more than noise over users.

    Paired t-test and Wilcoxon's test on each user's metric, p-values after Holm's correction, on the newest training of
    each model. One training each: what another seed would change is not in it.
    """
    from assets import terminal
    from assets.results import significance as tests
    from assets.settings import dataset as load_dataset

    load_dataset(dataset)
    terminal.console.print(terminal.significance_table(model, metric, tests(dataset, model, metric)))


@app.command()
def recommend(
    dataset: DatasetOption,
    user: Annotated[str, typer.Option("--user", "-u", help="Raw id of a user, as in the source data.")],
    k: Annotated[int, typer.Option("-k", help="How many items.", min=1, max=20)] = 10,
    model: Annotated[str, typer.Option("--model", "-m", help="Which model's recommendations.")] = "scale",
) -> None:
    """Show what a trained model recommends to one user, and why."""
    from assets import terminal
    from assets.results import recommendations

    history, table = recommendations(dataset, model, user)
    terminal.console.print(terminal.recommendations_table(user, history, table.head(k)))


@app.command()
def serve(
    dataset: DatasetOption,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model to serve; repeat for several, the default first. Default: all."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; `0.0.0.0` for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for any that is free.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a bearer token that every request has to carry. Default: SCALE_SERVE_TOKEN."),
    ] = None,
) -> None:
    """Serve trained models over HTTP until Ctrl-C: recommendations with reasons, and a page to look at a user.

    Users of the dataset, new ones by a few items or by a text, similar items, metrics for Prometheus; the interface is
    described at `/v1/openapi.json`. What is trained later is served after a restart.
    """
    import importlib.util

    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(
                f"{package} is not installed; install it with: pip install -e '.[serve]' -c constraints.txt"
            )
    from assets.serving.server import serve

    serve(dataset, model, host, port, token_file)


@app.command()
def datasets() -> None:
    """List every dataset: the built-in ones and those in the folders named by `SCALE_DATASETS`."""
    from rich.table import Table

    from assets import terminal
    from assets.results import size
    from assets.settings import dataset as load_dataset
    from pipeline.settings import DATASETS_FOLDER, SettingsError, dataset_files

    table = Table(header_style="bold")
    for name in ("dataset", "title", "kind", "users x items, pairs", "settings"):
        table.add_column(name, overflow="fold")
    for name, path in dataset_files().items():
        place = "built in" if path.parent == DATASETS_FOLDER else str(path)
        try:
            settings = load_dataset(name)
            table.add_row(name, settings.title, settings.source.kind, size(name), place)
        except SettingsError as error:
            table.add_row(name, f"[red]{error}[/]", "", "", place)
    terminal.console.print(table)


@app.command()
def ui(
    dagster_port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow UI.")] = 5000,
) -> None:
    """Serve the Dagster and MLflow UIs on this machine (loopback only) until Ctrl-C."""
    from assets.servers import serve

    serve(dagster_port, mlflow_port)


def _look(dataset: str | None, set_: list[str] | None, show_stages: bool) -> None:
    """Show how datasets stand and what a refresh would run."""
    import dagster as dg

    from assets import home, terminal
    from assets.progress import Progress
    from assets.refresh import Refresh

    overrides = _parsed(set_)
    home.dagster_home()
    with dg.DagsterInstance.get() as instance:
        for name in _made(instance, dataset):
            plan = Refresh(instance, name, overrides, None, Progress()).plan()
            if show_stages:
                terminal.console.print(terminal.status_table(name, plan))
            terminal.show_plan(name, plan)


def _made(instance: Any, dataset: str | None) -> list[str]:
    """The dataset asked for, or every one of which something has been made."""
    from assets.settings import dataset as load_dataset
    from assets.staleness import made_datasets

    if dataset is not None:
        load_dataset(dataset)
    made = made_datasets(instance)
    if dataset is not None and dataset not in made:
        fail(f"nothing of {dataset} has been made yet; start with: scale run --dataset {dataset}")
    if not made:
        fail("nothing has been made yet; start with: scale run --dataset demo")
    return [dataset] if dataset is not None else made


def _parsed(set_: list[str] | None) -> dict[str, Any]:
    from pipeline.settings import parse_override

    return dict(parse_override(text) for text in set_ or [])


def _overrides(dataset: str, models: list[str], set_: list[str] | None, tuned: bool = False) -> dict[str, Any]:
    """Settings on top of the dataset's; unknown models and wrong settings are refused before anything runs."""
    from assets.settings import dataset as load_dataset
    from assets.settings import model_config, training_config

    overrides = _parsed(set_)
    if tuned:
        from assets import sweep

        overrides = {key: value for name in models for key, value in sweep.tuned(dataset, name).items()} | overrides
    settings = load_dataset(dataset, overrides)
    for name in [*models, *settings.models]:
        model_config(name, settings)
        training_config(name, settings)
    return overrides


def _show_examples(dataset: str, model: str) -> None:
    from assets import terminal
    from assets.results import examples, recommendations

    for user in examples(dataset, model):
        history, table = recommendations(dataset, model, user)
        terminal.console.print()
        terminal.console.print(terminal.recommendations_table(user, history, table.head(5)))


def fail(message: str) -> None:
    """Say what went wrong, and leave."""
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(1)


def main() -> None:
    """Entry point: every mistake of the user's ends in one readable message."""
    import gc
    import signal
    import warnings

    # `kill` ends a command as Ctrl-C does. A script that starts one in the background has it ignore Ctrl-C, and that
    # would go for both: Dagster gives SIGTERM whatever handler SIGINT has.
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def stop(number: int, _: object) -> None:
        if number == signal.SIGTERM or not deaf:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)

    # What is imported stays: fewer looks for garbage in it spare a short command a tenth of its time.
    gc.set_threshold(50_000, 20, 20)

    # Dagster marks partitioned checks and a few other calls as "preview"; nothing for a user to act on.
    warnings.filterwarnings("ignore", module="dagster")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(standalone_mode=True)
    except SystemExit as ended:
        if ended.code == STOPPED:
            print("stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        raise
    except Exception as error:
        from assets import home

        messages = [str(error)] if isinstance(error, ValueError | RuntimeError | OSError) else []
        if home.is_full(error):  # Dagster's and MLflow's databases raise errors of their own then
            messages.append(
                f"the disk that holds {home.home()} is full: make room, and run the command again; it goes on where it "
                "was. SCALE_HOME names another place, scale cache --prune deletes what no result uses any more"
            )
        if os.environ.get("SCALE_DEBUG") or not messages:
            raise
        fail("\n".join(messages))
