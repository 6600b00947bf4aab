"""Everything Dagster knows: the assets of every stage, their storage, and how runs execute."""

import dagster as dg
from upath import UPath

from assets import embeddings, graphs, home, interactions, profiles, raw
from assets.progress import Progress
from assets.recommendations import recommendations_asset
from assets.storage import ParquetIOManager
from assets.training import model_groups, training_asset
from assets.versions import SETTINGS_SPECS, model_settings_spec

GROUPS = model_groups()

DATA_ASSETS = dg.load_assets_from_modules([raw, interactions, profiles, embeddings, graphs])
MODEL_ASSETS = [asset for group in GROUPS for asset in (training_asset(group), recommendations_asset(group))]
SETTINGS_ASSETS = [*SETTINGS_SPECS, *(model_settings_spec(group.settings_key, group.partitions) for group in GROUPS)]


def definitions(progress: Progress) -> dg.Definitions:
    """Everything, with long stages reporting to `progress`."""
    return dg.Definitions(
        assets=[*DATA_ASSETS, *MODEL_ASSETS, *SETTINGS_ASSETS],
        resources={"io_manager": ParquetIOManager(UPath(home.store())), "progress": progress},
        # In one process: a step of its own costs seconds of start-up, and a stage uses every core by itself.
        executor=dg.in_process_executor,
    )


defs = definitions(Progress())
