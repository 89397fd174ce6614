#!/bin/sh
# Asks at every address of $KNOCK_AT who is there, again and again, and says who answered.
while :; do
    for address in $KNOCK_AT; do
        busybox wget -q -T 2 -O - "http://$address:7000/" 2>/dev/null | sed 's/^/heard /' &
    done
    wait
    echo round
    sleep 1
done
