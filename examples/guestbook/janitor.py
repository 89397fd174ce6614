"""Removes entries of the same name but the newest, every few seconds."""

import os
import time

import psycopg

while True:
    try:
        with psycopg.connect(os.environ["DATABASE_URL"], sslmode="require") as db:
            gone = db.execute("delete from entry a using entry b where a.name = b.name and a.id < b.id").rowcount
        if gone:
            print(f"removed {gone}")
    except psycopg.Error as error:
        # The database starts anew, or the table is not there yet.
        print(f"later: {error}")
    time.sleep(5)
