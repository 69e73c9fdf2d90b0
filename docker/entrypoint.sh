#!/bin/sh
# What a container starts with: secrets come as files (POSTGRES_PASSWORD_FILE), programs read the environment.
set -eu

if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    if [ ! -r "$POSTGRES_PASSWORD_FILE" ]; then
        echo "error: POSTGRES_PASSWORD_FILE=$POSTGRES_PASSWORD_FILE: not there or not readable;" \
            "write the password into docker/secrets/postgres_password" >&2
        exit 1
    fi
    POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    if [ -z "$POSTGRES_PASSWORD" ]; then
        echo "error: POSTGRES_PASSWORD_FILE=$POSTGRES_PASSWORD_FILE: is empty;" \
            "write the password into docker/secrets/postgres_password" >&2
        exit 1
    fi
    export POSTGRES_PASSWORD
fi

exec "$@"
