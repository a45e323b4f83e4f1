# The way to the partition from the interface $PART: whether there is a link and how fast, how many of $requests connections came about, and how long
# they took. An interface that has no address of its own yet asks for one, and gives it up afterwards.
ip link set "$PART" up 2>/dev/null
for second in 0 1 2 3 4; do
    link=$(cat "/sys/class/net/$PART/carrier" 2>/dev/null)
    [ "$link" != 1 ] || break
    sleep 1
done
if [ "$link" != 1 ]; then
    echo 'there is no link'
    exit 77
fi
speed=$(cat "/sys/class/net/$PART/speed" 2>/dev/null)
case $speed in '' | -*) speed=0 ;; esac

has_address() { [ -n "$(ip -4 -o address show dev "$PART")" ]; }
borrowed=''
if ! has_address; then
    borrowed=yes
    # Beside the route that the agent itself uses, never instead of it.
    cat >"$SCRATCH/lease" <<'LEASE'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/${mask:-24}" dev "$interface"
for gateway in $router; do ip route add default via "$gateway" dev "$interface" metric 1000 && break; done
LEASE
    chmod +x "$SCRATCH/lease"
    udhcpc -i "$PART" -s "$SCRATCH/lease" -t 5 -T 2 -n -q 2>&1
fi

: >"$SCRATCH/times"
asked=0
if has_address; then
    while [ $asked -lt "$requests" ]; do
        # Whatever the answer is, somebody answered.
        curl --silent --output /dev/null --noproxy '*' --interface "if!$PART" --connect-timeout 2 --max-time 5 --write-out '%{time_connect}\n' "$URL/healthz" \
            >"$SCRATCH/time" 2>/dev/null && cat "$SCRATCH/time" >>"$SCRATCH/times"
        asked=$((asked + 1))
        # One that never answers needs not be asked a thousand times.
        [ $asked -lt 5 ] || [ -s "$SCRATCH/times" ] || break
    done
fi
[ -z "$borrowed" ] || ip address flush dev "$PART"

answered=$(wc -l <"$SCRATCH/times")
sort -n "$SCRATCH/times" | jq -s --argjson speed "$speed" --argjson asked $asked --argjson answered "$answered" '
    {speedMbps: $speed, reached: ($answered > 0)}
    + if $answered == 0 then {} else {
        lossPercent: (100 * ($asked - $answered) / $asked), latencyMs: (.[length / 2 | floor] * 1000), latencyMaxMs: (.[-1] * 1000)
    } end' >"$RESULT"
jq -r 'to_entries[] | "\(.key): \(.value)"' "$RESULT"
if [ "$answered" = 0 ]; then
    echo "the partition is not reached from here ($URL)"
    # A network for storage leads nowhere near it, and that is no fault.
    [ -z "$borrowed" ] || [ "$everywhere" = true ] || exit 77
    exit 1
fi
if [ "$speed" -gt 0 ] && [ "$speed" -lt "$leastMbps" ]; then
    echo "the link has $speed Mbit/s, less than $leastMbps"
    exit 1
fi
loss=$(jq .lossPercent "$RESULT")
if jq -e --argjson most "$lossPercentMax" '.lossPercent > $most' "$RESULT" >/dev/null; then
    echo "$loss % of $asked connections did not come about, more than $lossPercentMax %"
    exit 1
fi
echo "$asked connections, $loss % lost, $(jq '.latencyMs * 100 | floor / 100' "$RESULT") ms"
