#!/bin/sh
# Runs RabbitMQ as its own user; a cookie that is given becomes the node's.
set -eu
if [ "${1#-}" != "$1" ]; then set -- rabbitmq-server "$@"; fi
if [ "$(id -u)" = 0 ] && [ "${1#rabbitmq}" != "$1" ]; then
    if [ "$1" = rabbitmq-server ]; then
        find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq:rabbitmq {} +
    fi
    exec gosu rabbitmq "$0" "$@"
fi
if [ -n "${RABBITMQ_ERLANG_COOKIE:-}" ]; then
    printf '%s' "$RABBITMQ_ERLANG_COOKIE" >"$HOME/.erlang.cookie.new"
    chmod 600 "$HOME/.erlang.cookie.new"
    mv "$HOME/.erlang.cookie.new" "$HOME/.erlang.cookie"
fi
exec "$@"
