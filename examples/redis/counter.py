"""Takes votes from the list and adds them up. A vote leaves the list of what is in work only when it is counted."""

import time

import redis

from stores import votes

WORK = "in-work"

while True:
    try:
        # What an earlier process left unfinished comes first.
        vote = votes.lindex(WORK, 0) or votes.blmove("votes", WORK, timeout=5)
        if vote is not None:
            with votes.pipeline() as together:
                together.hincrby("counted", vote, 1)
                together.lrem(WORK, 1, vote)
                together.execute()
    except redis.RedisError as error:
        print("redis is not ready:", error)
        time.sleep(2)
