"""The cron job: leaves the time in the store."""

import os
import sys
import time

from resp import Store, StoreError

try:
    with Store(os.environ["STORE_URL"]) as store:
        now = time.strftime("%H:%M:%S", time.gmtime())
        runs = store("INCR", "clock:runs")
        store("SET", "clock:latest", f"run {runs} at {now} UTC")
        print(f"run {runs} at {now} UTC")
except StoreError as error:
    sys.exit(f"clock: {error}")
