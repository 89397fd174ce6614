#!/bin/sh
# From the first moment of a boot on: who answers a process of this machine, and a neighbour that sends everything to it.
# A line for each answer: seconds since the kernel began, who asked, who answered.
log=/var/log/early-$(cut -c1-8 /proc/sys/kernel/random/boot_id)
now() { cut -d' ' -f1 /proc/uptime; }
# What a server's page says.
get() { printf 'GET / HTTP/1.0\r\nHost: %s\r\n\r\n' "${3:-$1}" | busybox nc -w 2 "$1" "$2" 2>/dev/null | tail -n1; }
knock() {
    while :; do
        for address in $(cat /etc/knock-at); do
            get "$address" 7000 | sed "s/^/$(now) $1 heard /" >>"$log" &
        done
        get 192.0.2.77 8080 page.localhost | sed "s/^/$(now) $1 heard public /" >>"$log" &
        wait
        echo "$(now) $1 round" >>"$log"
        sleep 2
    done
}
case ${1:-} in
'') ;;
get) get "$2" "$3" "${4:-}"; exit ;;
*) knock "$1" ;;
esac
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
