#!/bin/sh
# Runs once, when the data folder is empty: Dagster's own storage beside the warehouse, and a role that only reads.
set -eu
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1 \
    --set dagster="$DAGSTER_POSTGRES_DB" --set reader_password="$(cat /run/secrets/grafana_reader_password)" <<'SQL'
CREATE DATABASE :"dagster";
CREATE ROLE grafana_reader LOGIN PASSWORD :'reader_password';
GRANT pg_read_all_data TO grafana_reader;
SQL
