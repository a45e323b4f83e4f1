# Erasing what an owner leaves behind, disk by disk; the partition gets word of each, and signs it. Every step may be repeated: an erased disk is erased again.

erase() {
    how=$(jq -r .method /run/job)
    disks >/run/disks
    total=$(wc -l </run/disks)
    number=0
    while read -r line <&3; do
        number=$((number + 1))
        disk=$(echo "$line" | jq -r .name)
        bytes=$(echo "$line" | jq -r .sizeBytes)
        began=$(cut -d. -f1 /proc/uptime)
        place="disk $number of $total: /dev/$disk"
        stand erase "$place" $((100 * (number - 1) / total))
        say "erasing $place ($how)"
        erase_disk
        echo "$line" | jq -c --arg outcome "$outcome" --argjson samples "$samples" --argjson seconds $(($(cut -d. -f1 /proc/uptime) - began)) \
            '{disk: .name, serial, model, sizeBytes, $outcome, $samples, $seconds}' >/run/erasure
        ask POST /agent/erasure /run/erasure || fail erase "the erasure of /dev/$disk was not taken: $(trouble)"
    done 3</run/disks
    stop_heartbeat
    signal 'done' erase "$total disks erased" 100 || say "the end was not heard: $(trouble)"
    end off erased
}

# Sets outcome and samples. Not all disks read as zero what they were told to forget, and not all forget it: only what is seen counts, else the next way
# is gone. A disk's own erasure reaches what no address leads to any more (spare blocks), so it comes first.
erase_disk() {
    outcome='' samples=0
    if erase_by_itself; then
        # Some show noise afterwards, or nothing at all, until they are told that nobody wants it.
        blkdiscard "/dev/$disk" 2>/dev/null
        if samples=$(read_samples); then outcome=$way; return; fi
        say "/dev/$disk does not read as zero after it erased itself ($way): $samples"
        samples=0
    fi
    if [ "$how" = full ]; then
        overwrite 0 "$bytes"
        samples=$(read_samples) || fail erase "/dev/$disk does not read as zero after it was overwritten: $samples"
        outcome=overwritten
        return
    fi
    if blkdiscard "/dev/$disk" 2>/run/discard; then
        if samples=$(read_samples); then outcome=discarded; return; fi
        samples=0
    fi
    edge=$((16 * 1024 * 1024))
    [ "$bytes" -gt $((2 * edge)) ] || edge=$((bytes / 2))
    overwrite 0 "$edge"
    overwrite $((bytes - edge)) "$edge"
    outcome=tables
}

# Sets way where the disk has erased itself.
erase_by_itself() {
    case $disk in
        nvme*) erase_nvme ;;
        sd*) erase_ata ;;
        *) return 1 ;;
    esac
}

# Sanitize is for the whole controller and goes on by itself after a power loss; it may take hours, so a quick erasure formats. (NVM Express Base
# Specification: Identify Controller, Format NVM, Sanitize.)
erase_nvme() {
    controller=/dev/${disk%n*}
    nvme id-ctrl --output-format=json "$controller" >/run/nvme 2>/dev/null || return 1
    can() { [ "$(jq "((.$1 // 0) / $2 | floor) % 2" /run/nvme)" = 1 ]; }
    wait_for_sanitize
    if [ "$how" = full ]; then
        # Erasing blocks leaves zeros with most; forgetting the key leaves noise.
        action=''
        if can sanicap 2; then action=2; elif can sanicap 1; then action=4; fi
        if [ -n "$action" ] && nvme sanitize "$controller" --sanact=$action 2>/run/erase >&2 && wait_for_sanitize; then
            way=sanitized
            return
        fi
    fi
    can oacs 2 || return 1
    secure=1
    ! can fna 4 || [ "$how" = full ] || secure=2
    timeout 3600 nvme format "/dev/$disk" --ses=$secure --force --timeout=3600000 >/run/erase 2>&1 || { say "nvme format /dev/$disk: $(tail -n 1 /run/erase)"; return 1; }
    way=formatted
}

# Until a sanitize, this one's or one that a power loss interrupted, is over. Fails where it failed, and where there was none. A day at most.
wait_for_sanitize() {
    round=0
    while [ $round -lt 17280 ]; do
        # The log page: two bytes of progress, out of 65536, and two of status.
        nvme get-log "$controller" --log-id=0x81 --log-len=512 --raw-binary 2>/dev/null >/run/sanitize || return 1
        od -An -tu2 -N4 /run/sanitize >/run/sanitize.words
        read -r done_of status </run/sanitize.words
        case $((${status:-0} % 8)) in
            1 | 4) return 0 ;;
            2) stand erase "$place, sanitizing: $((${done_of:-0} * 100 / 65536)) %" $((100 * (number - 1) / total)) ;;
            *) return 1 ;;
        esac
        round=$((round + 1))
        sleep 5
    done
    return 1
}

# The password is only there because the command wants one, and it is always the same: a disk whose power went in the middle is locked with it, and the
# next try begins with the erasure. (ATA Command Set, Security feature set.)
erase_ata() {
    hdparm -I "/dev/$disk" 2>/dev/null | ata_security >/run/ata
    read -r state minutes kind </run/ata
    case $state in
        ready | enabled) ;;
        frozen) say "/dev/$disk can erase itself, but the firmware has frozen that"; return 1 ;;
        *) return 1 ;;
    esac
    # A quick erasure is one that a release may wait for. A disk that names no minutes (0) may take hours.
    [ "$how" = full ] || { [ "$minutes" -gt 0 ] && [ "$minutes" -le 5 ]; } || return 1
    stand erase "$place, erasing itself: it says $minutes minutes" $((100 * (number - 1) / total))
    # Twice as long as it says. Those that do not say, or cannot count beyond 508 minutes, write at least 50 MB a second.
    limit=$((minutes * 120)) slowest=$((bytes / 50000000))
    [ $limit -gt $slowest ] || limit=$slowest
    [ "$state" = enabled ] || hdparm --user-master u --security-set-pass muster "/dev/$disk" >/run/erase 2>&1 || return 1
    if timeout $((limit + 600)) hdparm --user-master u "--security-erase${kind:+-$kind}" muster "/dev/$disk" >/run/erase 2>&1; then
        way='secure-erased'
        return
    fi
    say "secure erase of /dev/$disk: $(tail -n 1 /run/erase)"
    hdparm --user-master u --security-disable muster "/dev/$disk" >/dev/null 2>&1
    return 1
}

# What `hdparm -I` says of it on the standard input: `none`, `frozen`, `enabled` (a password is set) or `ready`, and the minutes it takes (0 where it
# does not say); `enhanced` where there is that.
ata_security() {
    awk '
        /^Security:/ { within = 1; next }
        within && /^[^ \t]/ { within = 0 }
        !within { next }
        /^[ \t]*supported$/ { supported = 1 }
        /^[ \t]*frozen/ { frozen = 1 }
        /^[ \t]*enabled/ { enabled = 1 }
        /^[ \t]*supported: enhanced erase/ { enhanced = 1 }
        /min for SECURITY ERASE UNIT/ { plain = $0; sub(/min for SECURITY.*/, "", plain); sub(/.*[^0-9]/, "", plain) }
        /min for ENHANCED SECURITY ERASE UNIT/ { better = $0; sub(/min for ENHANCED.*/, "", better); sub(/.*[^0-9]/, "", better) }
        END {
            state = !supported ? "none" : frozen ? "frozen" : enabled ? "enabled" : "ready"
            print state, (enhanced && better != "" ? better : plain) + 0, (enhanced ? "enhanced" : "")
        }'
}

# overwrite FROM COUNT: bytes, multiples of 512. A GiB at a time, so that the heartbeat tells how far it is.
overwrite() {
    at=$1 left=$2
    while [ "$left" -gt 0 ]; do
        part=$((1024 * 1024 * 1024))
        [ "$left" -gt "$part" ] || part=$left
        # Large blocks, and then what is left of them.
        block=$((1024 * 1024))
        [ $((at % block)) = 0 ] && [ "$part" -ge "$block" ] || block=512
        part=$((part / block * block))
        dd if=/dev/zero of="/dev/$disk" bs=$block seek=$((at / block)) count=$((part / block)) conv=notrunc,fsync 2>/run/dd ||
            fail erase "write to /dev/$disk: $(tr '\n' ' ' </run/dd)"
        at=$((at + part)) left=$((left - part))
        [ "$how" != full ] || stand erase "$place" $(((100 * (number - 1) + 100 * (at / 1048576) / (bytes / 1048576 + 1)) / total))
    done
}

# Reads 64 KiB at 64 places (SAMPLES) from the first of the disk to its last, where a GPT has its copy, past the cache. Says how many there are, or where
# one is not zero or cannot be read, and fails.
read_samples() {
    echo 3 >/proc/sys/vm/drop_caches
    count=${SAMPLES:-64} index=0 length=65536
    # The last place ends with the disk: places are numbered in sectors.
    [ "$bytes" -ge $length ] || length=$bytes
    sectors=$(((bytes - length) / 512))
    while [ $index -lt $count ]; do
        sector=$((sectors * index / (count - 1)))
        where="the $((length / 1024)) KiB at $((sector * 512))"
        # What cannot be read is not zero, whatever is missing from it.
        if ! dd if="/dev/$disk" of=/run/sample bs=512 skip=$sector count=$((length / 512)) 2>/run/dd || [ "$(wc -c </run/sample)" != $length ]; then
            echo "$where cannot be read: $(tr '\n' ' ' </run/dd)"
            return 1
        elif [ "$(tr -d '\0' </run/sample | wc -c)" != 0 ]; then
            echo "$where hold something"
            return 1
        fi
        index=$((index + 1))
    done
    echo $count
}
