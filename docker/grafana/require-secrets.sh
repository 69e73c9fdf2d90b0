#!/bin/sh
# require-secrets FILE... -- PROGRAM ARGUMENT...: start a program that would put up with an empty password.
set -eu

while [ "$1" != -- ]; do
    if [ ! -r "$1" ] || [ -z "$(cat "$1")" ]; then
        echo "error: $1: is not there or empty; write the password into docker/secrets/${1##*/}" >&2
        exit 1
    fi
    shift
done
shift
exec "$@"
