#!/bin/sh
# Says its name to whoever asks by HTTP.
mkdir -p /tmp/www
echo "$1" >/tmp/www/index.html
exec busybox httpd -f -p "$PORT" -h /tmp/www
