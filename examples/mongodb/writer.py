"""Writes an entry every ten seconds."""

import datetime
import time

from pymongo.errors import PyMongoError

from database import ENTRIES

while True:
    try:
        ENTRIES.insert_one({"at": datetime.datetime.now(datetime.timezone.utc), "text": "nothing happened"})
        time.sleep(10)
    except PyMongoError as error:
        print("mongodb is not ready:", error)
        time.sleep(2)
