#!/bin/sh
# Runs ClickHouse as its own user; a user that is given takes the place of `default`.
set -eu
user=${CLICKHOUSE_USER:-default}
password=${CLICKHOUSE_PASSWORD:-}
if [ "$user" != default ] || [ -n "$password" ]; then
    remove=
    if [ "$user" != default ]; then remove='<default remove="remove"/>'; fi
    digest=$(printf '%s' "$password" | sha256sum | cut -d' ' -f1)
    cat >/etc/clickhouse-server/users.d/default-user.xml <<XML
<yandex>
  <users>
    $remove
    <$user replace="replace">
      <password_sha256_hex>$digest</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </$user>
  </users>
</yandex>
XML
fi
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then exec "$@"; fi
set -- clickhouse-server --config-file=/etc/clickhouse-server/config.xml "$@"
if [ "$(id -u)" = 0 ]; then
    find /var/lib/clickhouse /var/log/clickhouse-server \! -user clickhouse -exec chown clickhouse:clickhouse {} +
    exec gosu clickhouse "$@"
fi
exec "$@"
