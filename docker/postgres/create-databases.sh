#!/bin/sh
# Dagster's own storage beside the warehouse, and a role that only reads, for Grafana. May be run again: what is
# there stays, and the role's password becomes that of the file.
set -eu

password() {
    if [ -z "$(cat "$2")" ]; then
        echo "error: $1=$2: is not there or empty; write the password into docker/secrets/${2##*/}" >&2
        exit 1
    fi
    cat "$2"
}

PGPASSWORD=$(password POSTGRES_PASSWORD_FILE "$POSTGRES_PASSWORD_FILE")
reader=$(password GRAFANA_READER_PASSWORD_FILE "$GRAFANA_READER_PASSWORD_FILE")
export PGPASSWORD

# The password goes in through the environment: an argument would be seen in the list of processes.
READER_PASSWORD=$reader psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set dagster="$DAGSTER_POSTGRES_DB" <<'SQL'
\getenv reader_password READER_PASSWORD
SELECT format('CREATE DATABASE %I', :'dagster')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'dagster') \gexec
SELECT 'CREATE ROLE grafana_reader LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana_reader') \gexec
ALTER ROLE grafana_reader LOGIN PASSWORD :'reader_password';
GRANT pg_read_all_data TO grafana_reader;
SQL
echo "database $DAGSTER_POSTGRES_DB and role grafana_reader are there"
