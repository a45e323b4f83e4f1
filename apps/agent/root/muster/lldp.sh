# Which switch each port is plugged into, as the switch itself says (LLDP, IEEE 802.1AB): listened for while the rest of the inventory is read.

# Switches say it every 30 seconds where nobody set it otherwise.
LLDP_SECONDS=35

# A port of a virtual machine has no switch that says anything, and waiting for it would make each commissioning longer.
may_have_neighbour() {
    driver=$(basename "$(readlink "/sys/class/net/$1/device/driver")")
    case $driver in virtio_net | xen_netfront | vif | hv_netvsc | ena | gve) return 1 ;; esac
}

listen_lldp() {
    rm -f /run/lldp.*
    listeners=''
    for port in $(ports); do
        may_have_neighbour "$port" || continue
        ip link set "$port" up
        listen_on "$port" &
        listeners="$listeners $!"
    done
}

# Only where the link comes up, which takes some seconds.
listen_on() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        [ "$(cat "/sys/class/net/$1/carrier" 2>/dev/null)" = 1 ] && break
        [ $try -lt 10 ] || return
        sleep 1
    done
    timeout $LLDP_SECONDS tcpdump -Z root -i "$1" -Q in -c 1 -s 0 -nn -v 'ether proto 0x88cc' >"/run/lldp.$1" 2>/dev/null
}

# What was heard, a JSON object a line, when all have heard or the time is over.
neighbours() {
    [ -z "$listeners" ] || wait $listeners
    for heard in /run/lldp.*; do
        [ -s "$heard" ] || continue
        neighbour_in "$heard" | jq -Rnc --arg port "${heard#/run/lldp.}" '
            reduce inputs as $line ({$port}; ($line | capture("^(?<name>\\w+) (?<value>.+)$")) as $said | .[$said.name] //= $said.value[:200])'
    done
}

# neighbour_in FILE: `name value` lines from what tcpdump prints of a frame.
neighbour_in() {
    awk '
        /^\t[^ \t]/ { part = "" }
        /^\tChassis ID TLV/ { part = "chassis" }
        /^\tPort ID TLV/ { part = "portId" }
        part != "" && /^\t  Subtype / { sub(/^\t  Subtype [^:]*\([0-9]+\): /, ""); print part, $0; part = "" }
        /^\tSystem Name TLV/ { sub(/^[^:]*: /, ""); print "system", $0 }
        /^\tPort Description TLV/ { sub(/^[^:]*: /, ""); print "portDescription", $0 }
        /port vlan id \(PVID\): / { sub(/.*\(PVID\): /, ""); if ($0 != "0") print "vlan", $0 }
    ' "$1"
}
