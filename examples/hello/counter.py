"""The background worker: takes jobs from a list in the store, counts them and answers each."""

import os
import socket

from resp import StoreError, patient

WAIT_SECONDS = 5


def work(store):
    while True:
        taken = store("BLPOP", "jobs", WAIT_SECONDS)
        if taken is None:
            continue
        job = taken[1]
        number = store("INCR", "jobs:done")
        reply = f"reply:{job}"
        store("RPUSH", reply, f"job {number}, done by {socket.gethostname()}")
        store("EXPIRE", reply, 60)
        print(f"counted job {number}", flush=True)


if __name__ == "__main__":
    while True:
        with patient(os.environ["STORE_URL"], timeout=WAIT_SECONDS + 5) as store:
            try:
                work(store)
            except StoreError as error:
                print(f"starting over: {error}", flush=True)
