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

# Sets outcome and samples.
erase_disk() {
    outcome='' samples=0
    # Not all disks read as zero what was discarded: only what is seen counts.
    if blkdiscard "/dev/$disk" 2>/run/discard; then
        if samples=$(read_samples); then outcome=discarded; else samples=0; fi
    fi
    if [ "$how" = full ]; then
        overwrite 0 "$bytes"
        samples=$(read_samples) || fail erase "/dev/$disk does not read as zero after it was overwritten: $samples"
        outcome=overwritten
    elif [ -z "$outcome" ]; then
        edge=$((16 * 1024 * 1024))
        [ "$bytes" -gt $((2 * edge)) ] || edge=$((bytes / 2))
        overwrite 0 "$edge"
        overwrite $((bytes - edge)) "$edge"
        outcome=tables
    fi
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

# Reads 64 KiB at 64 places over the whole disk, past the cache. Says how many there are, or where one is not zero, and fails.
read_samples() {
    echo 3 >/proc/sys/vm/drop_caches
    count=64 index=0
    while [ $index -lt $count ]; do
        block=$(((bytes / 65536) * index / count))
        if [ "$(dd if="/dev/$disk" bs=65536 skip=$block count=1 2>/dev/null | tr -d '\0' | wc -c)" != 0 ]; then
            echo "the 64 KiB at $((block * 65536)) hold something"
            return 1
        fi
        index=$((index + 1))
    done
    echo $count
}
