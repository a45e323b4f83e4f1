# Scripts of a commissioning: each that the job names, on each part of the machine that it concerns, within its time; what it wrote and found is told to
# the partition, which judges. docs/scripts.md says what a script is given.
RUN=${RUN:-/run}
SCRIPTS=${SCRIPTS:-/muster/scripts}
# Of what a script writes, the last so many bytes are kept; of what it found, so many are taken.
OUTPUT=65536
FOUND=16384

# Expects the job in $RUN/job and the inventory in $RUN/inventory. Sets total, and bad: how many did not end well.
run_scripts() {
    total=$(jq '.scripts // [] | length' "$RUN/job")
    number=0 bad=0
    while [ "$number" -lt "$total" ]; do
        # Else the last one would be run once more under its name.
        known=$(read_script "$number") || fail scripts "script $((number + 1)) of $total cannot be read"
        eval "$known"
        number=$((number + 1))
        run_script
    done
}

# read_script INDEX: what there is to know of it, as assignments. parts are what it runs on, one a line, an empty one for the machine itself; why says why
# it does not concern this machine, where it does not.
read_script() {
    jq -r --argjson index "$1" --slurpfile inventory "$RUN/inventory" '
        .scripts[$index] as $script | $inventory[0] as $machine | $script.only as $only
        | ($machine.facts.dmi.systemVendor // "somebody unknown") as $vendor
        | [if $script.on == "machine" then ""
           elif $script.on == "interface" then $machine.interfaces[].name
           else $machine.disks[] | select(.kind as $kind | $only.diskKinds == null or ($only.diskKinds | index($kind))) | .name end] as $parts
        | (if $only.vendor != null and ($vendor | ascii_downcase | contains($only.vendor | ascii_downcase) | not)
           then "the system is made by \($vendor), not \($only.vendor)"
           elif $parts == [] then "the machine has no such \($script.on)"
           else "" end) as $why
        | [$script.parameters | to_entries[] | "\(.key)=\(.value | tostring | @sh)"] as $parameters
        | @sh "script=\($script.name) kind=\($script.kind) limit=\($script.timeoutSeconds) own=\($script.text != null) count=\($parts | length)",
          @sh "why=\($why)", @sh "parts=\($parts | join("\n"))", @sh "parameters=\($parameters | join("\n"))"' "$RUN/job"
}

# The script that was read, on all its parts.
run_script() {
    if [ -n "$why" ]; then
        : >"$RUN/output"
        tell_result '' skipped null 0 "$why"
        return
    fi
    program=$SCRIPTS/$script.sh
    if [ "$own" = true ]; then
        program=$RUN/script.sh
        jq -j ".scripts[$((number - 1))].text" "$RUN/job" >"$program"
    fi
    printf "%s\n" "$parts" >"$RUN/parts"
    printf "%s\n" "$parameters" >"$RUN/parameters"
    index=0
    while IFS= read -r part <&3; do
        stand "$script" "$kind script $number of $total${part:+, on $part}" $((20 + (80 * (number - 1) + 80 * index / count) / total))
        say "running $script${part:+ on $part}"
        run_on_part
        index=$((index + 1))
    done 3<"$RUN/parts"
}

# Runs it on $part: in a session of its own, so that all it started ends with it.
run_on_part() {
    folder=$RUN/scratch began=$(uptime_seconds)
    rm -rf "$folder" "$RUN/found" "$RUN/late" "$RUN/pipe" && mkdir "$folder"
    if [ ! -r "$program" ]; then
        : >"$RUN/output"
        tell_result "$part" failed null 0 "this agent has no script $script: its image is older than the partition"
        return
    fi
    mkfifo "$RUN/pipe"
    # A pipe, because a script that never stops writing would fill the memory.
    tail -c $OUTPUT <"$RUN/pipe" >"$RUN/output" &
    keeper=$!
    (
        set -a
        . "$RUN/parameters"
        PART=$part URL=$URL SCRATCH=$folder RESULT=$RUN/found
        cd "$folder" && exec setsid sh "$program"
    ) </dev/null >"$RUN/pipe" 2>&1 3<&- &
    pid=$!
    later "$limit" ": >'$RUN/late'; kill -TERM -$pid; sleep 5; kill -KILL -$pid"
    # The shell would tell the console of each that was killed.
    wait $pid 2>/dev/null
    code=$?
    not_later
    kill -KILL -$pid 2>/dev/null
    # What left the session may still hold the pipe: it is sought and ended too, and in the end not waited for.
    later 1 "$(end_writers); sleep 5; kill $keeper"
    wait $keeper 2>/dev/null
    not_later
    took=$(($(uptime_seconds) - began))
    last=$(tr -d '\000' <"$RUN/output" | grep -v '^[[:space:]]*$' | tail -n 1)
    if [ -e "$RUN/late" ]; then
        tell_result "$part" timed-out null $took "it took longer than $limit s${last:+; it wrote last: $last}"
    else
        case $code in 0) status=passed ;; 77) status=skipped ;; *) status=failed ;; esac
        tell_result "$part" $status $code $took "$last"
    fi
    rm -rf "$folder"
}

# Commands that end whoever still writes to the pipe.
end_writers() {
    cat <<END
for fd in /proc/[0-9]*/fd/[12]; do
    [ "\$(readlink \$fd)" != "$RUN/pipe" ] || { fd=\${fd#/proc/}; kill -KILL \${fd%%/*}; }
done
END
}

uptime_seconds() { cut -d. -f1 /proc/uptime; }

# later SECONDS COMMANDS: done after that time, unless not_later.
later() {
    setsid sh -c "sleep $1; $2" </dev/null >/dev/null 2>&1 3<&- &
    guard=$!
}
# Its session, or itself where it has not come so far as to have one.
not_later() {
    kill -KILL -$guard 2>/dev/null || kill -KILL $guard 2>/dev/null
    wait $guard 2>/dev/null
}

# tell_result PART STATUS CODE SECONDS MESSAGE
tell_result() {
    case $2 in failed | timed-out) bad=$((bad + 1)) ;; esac
    say "$script${1:+ on $1}: $2${5:+ ($5)}"
    echo null >"$RUN/result"
    if [ -s "$RUN/found" ] && [ "$2" != skipped ]; then
        if [ "$(wc -c <"$RUN/found")" -gt $FOUND ] || ! jq -ce 'if type == "object" then . else empty end' "$RUN/found" >"$RUN/result" 2>/dev/null; then
            echo null >"$RUN/result"
            echo "muster: what it left in \$RESULT is no JSON object of at most $FOUND bytes" >>"$RUN/output"
        fi
    fi
    tail -c $OUTPUT "$RUN/output" | tr -d '\000' >"$RUN/output.text"
    jq -n --arg script "$script" --arg part "$1" --arg status "$2" --argjson exitCode "$3" --argjson seconds "$4" \
        --arg message "$(echo "$5" | cut -c1-900)" --rawfile output "$RUN/output.text" --slurpfile result "$RUN/result" \
        '{$script, $part, $status, $exitCode, $seconds, $message, $output, result: $result[0]}' >"$RUN/told"
    ask POST /agent/script-result "$RUN/told" || fail "$script" "its result was not taken: $(trouble)"
}
