#!/bin/sh
# From the first moment of a boot on: who answers a process of this machine, and a neighbour that sends everything to it.
# A line for each answer: seconds since the kernel began, who asked, who answered.
log=/var/log/early-$(cut -c1-8 /proc/sys/kernel/random/boot_id)
knock() {
    while :; do
        for address in $(cat /etc/knock-at); do
            busybox wget -q -T 2 -O - "http://$address:7000/" 2>/dev/null | sed "s/^/$(cut -d' ' -f1 /proc/uptime) $1 heard /" >>"$log" &
        done
        busybox wget -q -T 2 -O - --header 'Host: page.localhost' "http://192.0.2.77:8080/" 2>/dev/null |
            sed "s/^/$(cut -d' ' -f1 /proc/uptime) $1 heard public /" >>"$log" &
        wait
        echo "$(cut -d' ' -f1 /proc/uptime) $1 round" >>"$log"
        sleep 1
    done
}
if [ "${1:-}" ]; then knock "$1"; fi
# The neighbour, and the internet behind it.
modprobe veth
ip netns add outside
ip link add lan0 type veth peer name eth0 netns outside
ip addr add 192.0.2.77/24 dev lan0
ip link set lan0 up
ip route add default via 192.0.2.1
ip -n outside link set lo up
ip -n outside addr add 192.0.2.1/24 dev eth0
ip -n outside addr add 203.0.113.9/32 dev lo
ip -n outside link set eth0 up
ip -n outside route add 10.0.0.0/8 via 192.0.2.77
mkdir -p /run/internet && echo internet >/run/internet/index.html
ip netns exec outside busybox httpd -p 203.0.113.9:80 -h /run/internet
ip netns exec outside "$0" neighbour &
knock host
