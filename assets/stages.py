"""Every stage as an asset, their storage, and how runs execute."""

import dagster as dg
from upath import UPath

from assets import comparisons, embeddings, graphs, home, interactions, profiles, publication, raw, studies
from assets.model_groups import model_groups
from assets.observation import settings_on_record
from assets.progress import Progress
from assets.recommendations import recommendations_asset
from assets.replicates import replicates_asset
from assets.storage import ParquetIOManager
from assets.training import training_asset
from assets.versions import SETTINGS, settings_key, settings_spec

GROUPS = model_groups()

DATA_ASSETS = dg.load_assets_from_modules([raw, interactions, profiles, embeddings, graphs])
EVIDENCE_ASSETS = [*map(replicates_asset, GROUPS), *dg.load_assets_from_modules([comparisons, studies, publication])]
MODEL_ASSETS = [asset for group in GROUPS for asset in (training_asset(group), recommendations_asset(group))]
SETTINGS_ASSETS = [
    *(settings_spec(settings_key(name)) for name in SETTINGS),
    *(settings_spec(group.settings_key, group.partitions) for group in GROUPS),
]

# What the UI lists under Jobs, so that no selection in the asset graph is needed: one launch for a dataset, one for
# a model of it. They are apart because a job has one set of partitions.
JOBS = [
    dg.define_asset_job(
        "data",
        dg.AssetSelection.groups("raw", "interactions", "profiles", "embeddings", "graphs"),
        description="Every stage before training, of one dataset.",
    ),
    *(
        dg.define_asset_job(
            f"train_on_{group.name}",
            dg.AssetSelection.assets(
                *(group.key(name) for name in ("trained_model", "user_metrics", "recommendations"))
            ),
            description=f"Train one of {', '.join(group.models)} on one dataset, and recommend. Run `data` first.",
        )
        for group in GROUPS
    ),
    *(
        dg.define_asset_job(
            f"replicate_{group.name}",
            dg.AssetSelection.assets(*(group.key(name) for name in ("replicates", "replicate_runs"))),
            description=f"Train one of {', '.join(group.models)} on one dataset with several seeds. Run `data` first.",
        )
        for group in GROUPS
    ),
    dg.define_asset_job(
        "evidence",
        dg.AssetSelection.groups("evidence"),
        description="Studies of SCALE, and of the replicates that there are comparisons and the report.",
    ),
]


# Every stage stores its result, so every run puts its settings on record first.
@dg.io_manager(required_resource_keys={"settings_on_record"}, description="Parquet files: `<asset>/<partition>`.")
def io_manager() -> ParquetIOManager:
    """The store under the home folder."""
    return ParquetIOManager(UPath(home.store()))


def stages(progress: Progress, manager: dg.IOManager | dg.IOManagerDefinition = io_manager) -> dg.Definitions:
    """Every stage, with long ones reporting to `progress`, and results kept by `manager`."""
    return dg.Definitions(
        assets=[*DATA_ASSETS, *MODEL_ASSETS, *EVIDENCE_ASSETS, *SETTINGS_ASSETS],
        jobs=JOBS,
        resources={"io_manager": manager, "settings_on_record": settings_on_record, "progress": progress},
        # In one process: a step of its own costs seconds of start-up, and a stage uses every core by itself.
        executor=dg.in_process_executor,
    )
