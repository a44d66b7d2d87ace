#!/bin/bash
# The database of the guides: made at the first start as the variables POSTGRES_USER, POSTGRES_PASSWORD and
# POSTGRES_DB say, then served.
set -euo pipefail

as_postgres() {
    setpriv --reuid=postgres --regid=postgres --clear-groups "$@"
}

if [ "$1" = postgres ]; then
    : "${POSTGRES_PASSWORD:?is not set, and a database without a password is not made}"
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    mkdir -p "$PGDATA" /var/run/postgresql
    chown -R postgres:postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        # The password comes through a pipe that is the database's own.
        POSTGRES_USER=$user as_postgres bash -c 'initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") \
            --auth-host=scram-sha-256 --auth-local=trust'
        echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
        as_postgres pg_ctl --wait --options="-c listen_addresses=''" start
        if [ "$database" != postgres ]; then
            as_postgres createdb --username="$user" "$database"
        fi
        as_postgres pg_ctl --wait --mode=fast stop
    fi
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$@" -c listen_addresses='*'
fi
exec "$@"
