"""Writes ten events a second, in one insert: ClickHouse likes few large ones."""

import random
import time

from clickhouse import query

TABLE = "CREATE TABLE IF NOT EXISTS events (at DateTime, kind String, value Float64) ENGINE = MergeTree ORDER BY (kind, at)"

while True:
    try:
        query(TABLE)
        while True:
            rows = ", ".join(f"(now(), '{random.choice(['view', 'click'])}', {random.random()})" for _ in range(10))
            query(f"INSERT INTO events VALUES {rows}")
            time.sleep(1)
    except OSError as error:
        print("clickhouse is not ready:", error)
        time.sleep(2)
