#!/bin/sh
# Run by the postgres image on an empty volume: each service gets a role and a database that no other role may enter.
set -eu

database() {
    [ -s "$2" ] || { echo "$2 is missing or empty: run make secrets" >&2; exit 1; }
    psql --quiet --set=ON_ERROR_STOP=1 --username=postgres --set=name="$1" --set=file="$2" <<'SQL'
\set password `cat :'file'`
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

database dagster "$DAGSTER_PASSWORD_FILE"
database mlflow "$MLFLOW_PASSWORD_FILE"
