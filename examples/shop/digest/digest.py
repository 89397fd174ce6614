"""The digest: a cron job. Once a minute it sums up what was sold and leaves the line for the storefront to show."""

import json
import os
import sys
import time

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

queue = redis.Redis.from_url(
    os.environ["QUEUE_URL"],
    decode_responses=True,
    socket_timeout=5,
    retry=Retry(ExponentialBackoff(cap=3, base=0.2), 8),
    retry_on_error=[redis.ConnectionError, redis.TimeoutError],
)


def main():
    sold = [json.loads(order) for order in queue.hvals("sold")]
    pieces = sum(order["quantity"] for order in sold)
    euros = sum(order["cents"] for order in sold) / 100
    runs = queue.incr("digest:runs")
    line = f"{len(sold)} orders, {pieces} pieces, {euros:.2f} €"
    queue.set("digest:latest", json.dumps({"line": line, "run": runs, "at": time.strftime("%H:%M:%S", time.gmtime())}))
    print(f"digest {runs}: {line}")


if __name__ == "__main__":
    try:
        main()
    except redis.RedisError as error:
        sys.exit(f"digest: the queue did not answer: {error}")
