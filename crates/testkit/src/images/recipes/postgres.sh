#!/bin/sh
# Makes the cluster at the first start, then runs PostgreSQL as its own user.
set -eu
if [ "${1#-}" != "$1" ]; then set -- postgres "$@"; fi
if [ "$1" != postgres ]; then exec "$@"; fi
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chmod 700 "$PGDATA"
    chmod 3777 /run/postgresql
    chown postgres:postgres /run/postgresql
    find "$PGDATA" \! -user postgres -exec chown postgres:postgres {} +
    exec gosu postgres "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
        echo 'Error: Database is uninitialized and superuser password is not specified: set POSTGRES_PASSWORD' >&2
        exit 1
    fi
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    password=$(mktemp)
    printf '%s\n' "${POSTGRES_PASSWORD:-}" >"$password"
    given=${POSTGRES_INITDB_ARGS:-}
    if [ -s "$password" ] && [ -n "${POSTGRES_PASSWORD:-}" ]; then given="--pwfile=$password $given"; fi
    # Words of the variable are arguments of their own.
    # shellcheck disable=SC2086
    initdb --username="$user" $given
    rm "$password"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >>"$PGDATA/pg_hba.conf"
    # While it is made, the server is for this script alone.
    pg_ctl --wait --options="-c listen_addresses=''" start
    query() { psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$user" "$@"; }
    if [ "$database" != postgres ]; then
        printf 'CREATE DATABASE :"name";\n' | query --dbname postgres --set "name=$database"
    fi
    for file in /docker-entrypoint-initdb.d/*.sql; do
        if [ -f "$file" ]; then query --dbname "$database" --file "$file"; fi
    done
    pg_ctl --wait --mode=fast stop
fi
exec "$@"
