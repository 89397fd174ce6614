"""ClickHouse over HTTP: one query, one answer."""

import os
import urllib.error
import urllib.request

URL = "http://" + os.environ["CLICKHOUSE"] + "/"
HEADERS = {"X-ClickHouse-User": os.environ["CLICKHOUSE_USER"], "X-ClickHouse-Key": os.environ["CLICKHOUSE_PASSWORD"]}


def query(text):
    request = urllib.request.Request(URL, text.encode(), HEADERS)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        raise OSError(error.read().decode(errors="replace").strip()) from error
