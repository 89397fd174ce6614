"""Keeps a hundred keys in the cache."""

import time

import cache

while True:
    try:
        for number in range(100):
            cache.client().set(f"square:{number}", str(number * number), expire=60)
        time.sleep(20)
    except OSError as error:
        print("memcached is not ready:", error)
        time.sleep(2)
