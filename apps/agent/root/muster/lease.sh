#!/bin/sh
# What udhcpc runs with a lease: $interface, $ip, $mask (bits), $router, $dns, $domain.
case $1 in
    deconfig) ip address flush dev "$interface" ;;
    bound | renew)
        # The same again: connections go on.
        [ -z "$(ip -4 -o address show dev "$interface" to "$ip/32")" ] || exit 0
        ip address flush dev "$interface"
        ip address add "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do ip route replace default via "$gateway" dev "$interface" && break; done
        : >/etc/resolv.conf
        [ -z "$domain" ] || echo "search $domain" >>/etc/resolv.conf
        for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
        ;;
esac
