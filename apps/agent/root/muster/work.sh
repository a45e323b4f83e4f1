# What this boot is for. The kernel's argument only says whether there is a job; the job says what it is by now.

work() {
    prepare_http
    if [ "$MODE" = enlist ]; then enlist; fi
    get_job
    cp /run/answer /run/job
    jq -r '.kind, .machine, ((.heartbeatMs / 1000) | floor | if . < 1 then 1 else . end)' /run/job >/run/job.words
    { read -r kind; read -r machine; read -r beat; } </run/job.words
    say "job: $kind for $machine"
    start_heartbeat "$beat" "$kind"
    case $kind in
        commission) commission ;;
        install) install ;;
        erase) erase ;;
        rescue) rescue ;;
        *) fail "$kind" "this agent does not know the job $kind: its image is older than the partition" ;;
    esac
}

# For five minutes where nobody answers. A no is believed at once; a machine that is wanted for something that cannot be had says so, or it would only be
# seen going off.
get_job() {
    asked=$(uptime_seconds)
    until TRIES=1 PATIENCE=30 ask GET /agent/job; do
        case $(cat /run/answer.status) in
            409 | 422) fail job "$(trouble)" ;;
            401 | 403 | 404) end off "no job: $(trouble)" ;;
        esac
        [ $(($(uptime_seconds) - asked)) -lt 300 ] || end off "no job: $(trouble)"
        sleep 3
    done
}

# fail STEP WHY: the job ends here, and the machine is left on for whoever looks at its console; the partition switches it off.
fail() {
    stop_heartbeat
    say "failed in $1: $2"
    signal failed "$1" "$2" 0
    end off "failed in $1"
}

enlist() {
    say 'reading the inventory'
    inventory >/run/inventory
    name=$(name_of_machine)
    jq --arg name "$name" 'if $name == "" then . else . + {hostname: $name} end' /run/inventory >/run/enlistment
    ask POST /agent/enlist /run/enlistment || end off "not enlisted: $(trouble)"
    end off "enlisted as $(jq -r .id /run/answer) ($(jq -r .outcome /run/answer))"
}

# The serial number, where it makes a host name: two machines of one model differ in nothing else.
name_of_machine() {
    tr '[:upper:]' '[:lower:]' </sys/class/dmi/id/product_serial 2>/dev/null | grep -E '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
}

commission() {
    listen_lldp
    stand inventory 'reading the inventory' 5
    inventory >/run/inventory
    stand inventory 'sending the inventory' 15
    ask POST /agent/inventory /run/inventory || fail inventory "the inventory was not taken: $(trouble)"
    run_scripts
    stop_heartbeat
    signal 'done' commission "the inventory is sent, $total scripts ran, $bad ended badly" 100 || say "the end was not heard: $(trouble)"
    end off commissioned
}

rescue() {
    # mount tries the file systems that the kernel knows by then.
    for module in xfs btrfs dm_mod raid1; do modprobe -q "$module"; done
    mkdir -p /mnt
    address=$(ip -4 -o address show scope global | sed 's/.*inet \([^/ ]*\).*/\1/' | head -n 1)
    if [ "$(jq '.sshKeys | length' /run/job)" -gt 0 ] && serve_ssh; then
        stand rescue "waiting for you: ssh root@$address, host key $(cat /run/host-key)" 0
    else
        stand rescue "waiting for you on the console ($address)" 0
    fi
    say 'this is the rescue system; its disks are not mounted (mirrors: mdadm --assemble --scan; volumes: lvm vgchange --activate y; then blkid, mount)'
    # shellcheck disable=SC2046 # A word is a console.
    serve_consoles $(consoles)
}

# A shell on each. Through the pipe goes nothing: what a shell starts with `&` is deaf to Ctrl-C, and all that it starts.
serve_consoles() {
    [ $# -gt 0 ] || while :; do sleep 3600; done
    first=$1
    shift
    serve_console "$first" | serve_consoles "$@"
}

# A shell, its terminal's own: Ctrl-C is for what runs in it.
serve_console() {
    while :; do
        setsid -c sh -l <>"$1" >&0 2>&1
        sleep 1
    done
}

# Keys only; the host key is made anew each time, and its fingerprint told to the partition.
serve_ssh() {
    mkdir -p /root/.ssh /etc/dropbear
    chmod 700 /root /root/.ssh /etc/dropbear
    jq -r '.sshKeys[]' /run/job >/root/.ssh/authorized_keys
    dropbearkey -t ed25519 -f /etc/dropbear/host 2>/dev/null | sed -n 's/^Fingerprint: //p' >/run/host-key
    dropbear -s -r /etc/dropbear/host -P /run/dropbear.pid 2>/run/dropbear && return
    say "no login over the network: $(cat /run/dropbear)"
    return 1
}
