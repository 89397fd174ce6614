"""The jobs. A job is confirmed when it is done, so one that a worker took into its death is done again: jobs must bear that."""

import os

from celery import Celery

app = Celery("tasks", broker=os.environ["QUEUE_URL"], backend=os.environ["QUEUE_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
)


@app.task
def increment(number):
    return number + 1
