"""The two servers: `votes` must not lose anything, `sessions` may."""

import os

import redis

votes = redis.Redis.from_url("redis://" + os.environ["REDIS"], decode_responses=True, socket_timeout=10, health_check_interval=30)
sessions = redis.Redis.from_url(os.environ["SESSIONS_URL"], decode_responses=True, socket_timeout=10, health_check_interval=30)
