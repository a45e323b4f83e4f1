# Talking to the partition. curl repeats what may pass by itself (no route, 5xx, 429 with Retry-After) with growing pauses and a limit.

ANSWER=/run/answer TROUBLE=/run/trouble

# ask METHOD PATH [FILE]: the body of the answer goes to $ANSWER, its HTTP status to $ANSWER.status. Fails where the partition says no or does not answer within the time.
ask() {
    method=$1 path=$2 file=${3:-}
    set -- --silent --show-error --fail-with-body --request "$method" --output "$ANSWER" --write-out '%{http_code}' --connect-timeout 10 --max-time 60
    set -- "$@" --retry "${TRIES:-12}" --retry-all-errors --retry-max-time "${PATIENCE:-300}"
    # In a file: what stands on a command line can be read by every program.
    [ -z "$TOKEN" ] || set -- "$@" --header @/run/authorization
    [ -z "$file" ] || set -- "$@" --header 'Content-Type: application/json' --data-binary "@$file"
    rm -f "$ANSWER"
    curl "$@" "$URL$path" >"$ANSWER.status" 2>"$TROUBLE"
}

prepare_http() {
    umask 077
    printf 'Authorization: Bearer %s\n' "$TOKEN" >/run/authorization
    umask 022
}

# Why the last `ask` or `fetch` failed, on one line: curl says each of its tries, and the last one counts.
trouble() {
    { awk '/^curl: / { last = "" } { last = last $0 "\n" } END { printf "%s", last }' "$TROUBLE"; jq -r '.detail // empty' "$ANSWER" 2>/dev/null; } | tr '\n' ' '
}

# signal STATUS STEP MESSAGE PERCENT. A heartbeat that is lost is no failure: the next one tells more.
signal() {
    out=/run/signal.$$.$1
    jq -n --arg status "$1" --arg step "$2" --arg message "$(printf '%s\n' "$3" | cut -c1-3900)" --argjson progress "$4" \
        '{$status, $step, $message, $progress}' >"$out"
    if [ "$1" = working ]; then TRIES=1 PATIENCE=5 ask POST /agent/signal "$out"; else ask POST /agent/signal "$out"; fi
}

# stand STEP MESSAGE PERCENT: where the work stands, for the heartbeat to tell.
stand() {
    printf '%s\n%s\n%s\n' "$1" "$2" "$3" >/run/stand.new
    mv /run/stand.new /run/stand
}

# Tells where the work stands, every so many seconds and when a step begins, until the file goes.
heartbeat() {
    while [ -e /run/stand ]; do
        { read -r step; read -r message; read -r percent; } </run/stand
        # Files of its own: the work asks meanwhile.
        (ANSWER=/run/beat TROUBLE=/run/beat.trouble; signal working "$step" "$message" "$percent")
        [ "$(cat /run/beat.status 2>/dev/null)" != 401 ] || leave_off
        # A step may be over before the next beat, and nobody would know of it.
        rested=0
        while [ $rested -lt "$1" ] && { read -r at </run/stand; } 2>/dev/null && [ "$at" = "$step" ]; do
            sleep 1
            rested=$((rested + 1))
        done
    done
}

# The run is over: somebody aborted it. What is at work here, a disk's erasure perhaps, ends with the power, and is not waited for.
leave_off() {
    say 'the partition says that this job is over: off'
    sync &
    sleep 2
    poweroff -f -n
}

start_heartbeat() {
    stand "$2" '' 0
    heartbeat "$1" &
    HEARTBEAT=$!
}

stop_heartbeat() {
    rm -f /run/stand
    kill "$HEARTBEAT" 2>/dev/null
    wait "$HEARTBEAT" 2>/dev/null
}
