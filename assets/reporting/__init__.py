"""Pages, tables and figures of a report; knows neither Dagster nor MLflow."""
