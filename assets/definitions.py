"""Everything Dagster knows: the stages, and what brings them up to date."""

import dagster as dg

from assets.automation import refresh_job, refresh_sensor
from assets.observation import edits_sensor
from assets.progress import Progress
from assets.stages import stages

defs = dg.Definitions.merge(
    stages(Progress()), dg.Definitions(jobs=[refresh_job], sensors=[refresh_sensor, edits_sensor])
)
