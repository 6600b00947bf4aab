"""The refresh as a Dagster job, and a sensor that starts it when a prompt or a settings file is saved."""

import json
from collections.abc import Mapping

import dagster as dg

from assets.nodes import GPU, Node
from assets.observation import LOOK_SECONDS
from assets.partitions import DATASETS
from assets.progress import Progress
from assets.refresh import Refresh
from assets.settings import OVERRIDES_TAG, dataset
from assets.staleness import made_datasets
from assets.versions import SETTINGS, settings_content
from pipeline import fingerprint
from pipeline.profiles.prompts import TemplateError
from pipeline.settings import SettingsError


@dg.op(out=dg.Out(dg.Nothing), description="Run what is stale of one dataset, in waves, until nothing is.", pool=GPU)
def refresh_dataset(context: dg.OpExecutionContext) -> None:
    """Every wave is a run of its own, listed under Runs with the tag `scale/refresh`."""
    overrides = json.loads(context.run.tags.get(OVERRIDES_TAG, "{}"))
    tags = {"scale/refresh": context.run.run_id}
    refresh = Refresh(context.instance, context.partition_key, overrides, None, Progress(), tags)
    if not refresh.nodes:
        raise dg.Failure(
            f"nothing of {context.partition_key} has been made yet; launch the job `data` for it, then a training job"
        )

    def announce(wave: Mapping[Node, str]) -> None:
        for node, why in wave.items():
            context.log.info(f"running {node.name}: {why}")

    report = refresh.run(announce, context.log.info)
    for node, above in report.cut_off.items():
        context.log.info(f"cut off {node.name}: unchanged above it: {', '.join(each.name for each in above)}")
    context.log.info(
        f"ran {len(report.ran)} of {len(refresh.nodes)} stages in {report.seconds:.0f} s; "
        f"{report.rows('rows_computed'):,} rows computed, {report.rows('rows_reused'):,} reused; "
        f"{report.seconds_saved:.0f} s saved"
    )


@dg.job(
    name="refresh",
    partitions_def=DATASETS,
    executor_def=dg.in_process_executor,
    description="Bring everything that has been made of one dataset up to date: only what is stale runs.",
)
def refresh_job() -> None:
    """One op; see `refresh_dataset`."""
    refresh_dataset()


@dg.sensor(
    name="refresh_on_edit",
    job=refresh_job,
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Starts `refresh` when a prompt, a settings file or a raw file of a dataset changes.",
)
def refresh_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Compare every made dataset's settings with those of the last look; at the first, look whether all is fresh."""
    before: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
    now: dict[str, str] = {}
    problems: list[str] = []
    for name in made_datasets(context.instance):
        try:
            settings = dataset(name)
            contents = {group: settings_content(group, settings) for group in SETTINGS}
            training = [settings.training.model_dump(mode="json"), settings.models]
            now[name] = fingerprint.settings_version(contents, training)
        except (SettingsError, TemplateError) as error:  # being edited: look again later
            problems.append(str(error))
            now |= {name: before[name]} if name in before else {}
    changed = [
        name
        for name, version in now.items()
        if (
            before[name] != version
            if name in before
            else Refresh(context.instance, name, {}, None, Progress()).plan().surely
        )
    ]
    reason = "; ".join(problems) or "no prompt or setting changed since the last look"
    return dg.SensorResult(
        run_requests=[dg.RunRequest(partition_key=name) for name in changed],
        skip_reason=None if changed else dg.SkipReason(reason),
        cursor=json.dumps(now, sort_keys=True),
    )
