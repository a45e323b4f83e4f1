# From the kernel to the network: drivers by what the buses show, the arguments of the boot script, and an address by DHCP.

# A controller's driver makes the devices behind it appear, some of them a second or two later: passes until two in a row find nothing new.
load_drivers() {
    : >/run/aliases
    quiet=0
    for pass in 1 2 3 4 5 6 7 8 9 10; do
        find /sys/devices -name modalias -exec cat {} + 2>/dev/null | sort -u >/run/aliases.now
        if cmp -s /run/aliases /run/aliases.now; then quiet=$((quiet + 1)); else quiet=0; fi
        [ $quiet -lt 2 ] || break
        # All in one: each modprobe reads the names of every module. Those that were there a pass ago have had their turn.
        sort /run/aliases /run/aliases.now | uniq -u | tr '\n' '\0' | xargs -0 -r modprobe -a -q -b 2>/dev/null
        mv /run/aliases.now /run/aliases
        sleep 0.5
    done
    modprobe -a -q sd_mod af_packet ext4 vfat nls_ascii nls_iso8859-1 ipmi_devintf ipmi_si ipmi_ssif 2>/dev/null
}

# muster.url, muster.token and muster.mode become URL, TOKEN and MODE; BOOTIF becomes BOOT_MAC.
read_arguments() {
    URL='' TOKEN='' MODE='' BOOT_MAC=''
    # Words as they are, whatever files they would match.
    set -f
    for word in $(cat /proc/cmdline); do
        case $word in
            muster.url=*) URL=${word#*=} ;;
            muster.token=*) TOKEN=${word#*=} ;;
            muster.mode=*) MODE=${word#*=} ;;
            BOOTIF=*) BOOT_MAC=$(echo "${word#BOOTIF=??-}" | tr 'A-Z-' 'a-z:') ;;
        esac
    done
    set +f
    URL=${URL%/}
    [ -n "$URL" ] || end off 'the kernel was given no muster.url'
}

# Network ports that are hardware, the one the machine booted from first.
ports() {
    for port in /sys/class/net/*; do
        [ -e "$port/device" ] || continue
        if [ "$(cat "$port/address")" = "$BOOT_MAC" ]; then echo "0 ${port##*/}"; else echo "1 ${port##*/}"; fi
    done | sort | cut -d' ' -f2
}

# The ports with a carrier, in their order, as soon as the first of them has one and the others have had two seconds more: links of copper take some. All
# ports where in ten seconds none has.
ports_with_carrier() {
    waited=0 more=0
    while [ $waited -lt 20 ] && [ $more -lt 4 ]; do
        sleep 0.5
        waited=$((waited + 1)) linked='' unlinked=''
        for port in $(ports); do
            # A port that is down refuses to say.
            if [ "$(cat "/sys/class/net/$port/carrier" 2>/dev/null)" = 1 ]; then linked="$linked $port"; else unlinked=1; fi
        done
        if [ -n "$linked" ]; then more=$((more + 1)); fi
        [ -n "$unlinked" ] || break
    done
    echo ${linked:-$(ports)}
}

# A switch needs up to half a minute until it forwards (spanning tree), and a DHCP server may be restarting: some rounds, then up. Each round looks for
# carriers anew; a port without one would cost it 16 seconds.
bring_up_network() {
    ip link set lo up
    for round in 1 2 3; do
        # All at once, so that they wait for their links together.
        for port in $(ports); do ip link set "$port" up; done
        for port in $(ports_with_carrier); do
            say "asking for an address on $port"
            # With a lease it goes on behind us and renews it: an installation may take longer than the address is ours.
            if udhcpc -i "$port" -s /muster/lease.sh -t 8 -T 2 -n >/run/udhcpc.log 2>&1; then
                say "$port has $(ip -4 -o address show dev "$port" | sed 's/.*inet \([^ ]*\).*/\1/')"
                return
            fi
            say "no DHCP server answered on $port: $(tail -n 1 /run/udhcpc.log)"
        done
    done
    [ -n "$(ports)" ] || end off 'no network port was found: its driver is missing'
    end off 'no DHCP server answered on any port'
}
