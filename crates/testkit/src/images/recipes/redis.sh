#!/bin/sh
# Runs Redis as its own user, open to its network: who may reach it is another's decision.
set -eu
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then set -- redis-server "$@"; fi
if [ "$1" = redis-server ]; then
    if [ "$(id -u)" = 0 ]; then
        find . \! -user redis -exec chown redis:redis {} +
        exec gosu redis "$0" "$@"
    fi
    set -- "$@" --protected-mode no
fi
exec "$@"
