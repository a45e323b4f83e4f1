# Putting an image on a disk: fetched, its digest checked, written, and given the seed that its first boot reads. Every step may be repeated: it begins
# with the fetch, and a disk that is half written is written again.

install() {
    image=$(jq -r .image.url /run/job) wanted=$(jq -r .image.sha256 /run/job) size=$(jq -r .image.sizeBytes /run/job)
    disk=$(target_disk) || fail disk 'the machine has no disk to write to'
    say "writing $(jq -r .os /run/job) to /dev/$disk"
    free=$(awk '/^MemAvailable:/ { printf "%d", $2 * 1024 }' /proc/meminfo)
    # In memory it is checked before the first byte of the disk is lost, and written three times as fast.
    if [ $((size * 2)) -lt "$free" ]; then fetch_then_write; else write_while_fetching; fi
    stand write 'waiting for the disk' 90
    sync
    reread_partitions
    stand seed 'writing the seed of the first boot' 95
    write_seed
    stop_heartbeat
    signal 'done' install "$(jq -r .os /run/job) written to $disk" 100 || say "the end was not heard: $(trouble)"
    end reboot installed
}

# The first disk that is no removable medium, by name: what the firmware boots from where nobody chose otherwise.
target_disk() {
    disks | jq -rs 'sort_by(.name)[0].name // empty' | grep .
}

# How the image is packed, by its first bytes.
packing() {
    case $(head -c 6 "$1" | od -An -tx1 | tr -d ' \n') in
        1f8b*) echo gzip ;;
        28b52ffd*) echo zstd ;;
        fd377a585a00) echo xz ;;
        *) echo raw ;;
    esac
}

# Unpacks the standard input as FILE is packed.
unpack() {
    case $(packing "$1") in
        gzip) gzip -dc ;;
        zstd) zstd -dcq ;;
        xz) xz -dc ;;
        raw) cat ;;
    esac
}

fetch_then_write() {
    stand download '' 0
    fetch_image "$image" 60 >/run/image || fail download "the image was not fetched: $(trouble)"
    check_digest "$(wc -c </run/image)" "$(sha256sum </run/image | cut -d' ' -f1)"
    stand write '' 60
    check_room "$(unpacked_size /run/image)"
    unpack /run/image </run/image 2>/run/unpack | dd of="/dev/$disk" bs=4M conv=fsync 2>/run/dd
    written || fail write "write to /dev/$disk: $(cat /run/unpack /run/dd | tr '\n' ' ')"
    rm -f /run/image
}

# The size that an archive says it unpacks to; nothing where it does not say.
unpacked_size() {
    case $(packing "$1") in
        raw) wc -c <"$1" ;;
        zstd) zstd -lv "$1" 2>/dev/null | sed -n 's/^Decompressed Size:.*(\([0-9]*\) B)$/\1/p' ;;
        xz) xz --robot -l "$1" 2>/dev/null | awk '$1 == "totals" { print $5 }' ;;
    esac
}

check_room() {
    room=$(($(cat "/sys/block/$disk/size") * 512))
    [ -z "$1" ] || [ "$1" -le "$room" ] || fail write "the image has $1 bytes, /dev/$disk only $room"
}

# dd's line of records, and no complaint before it.
written() { grep -q 'records out' /run/dd && ! grep -qiE 'error|no space|invalid' /run/dd && [ ! -s /run/unpack ]; }

# An image that does not fit into memory: the digest is known only at the end, so a wrong one leaves a disk that does not boot.
write_while_fetching() {
    stand download '' 0
    fetch_head "$image" >/run/head
    [ -s /run/head ] || fail download "the image was not fetched: $(trouble)"
    mkfifo /run/to-digest
    sha256sum </run/to-digest >/run/digest &
    hasher=$!
    rm -f /run/broken
    { fetch_image "$image" 85 || cp /run/trouble /run/broken; } | tee /run/to-digest | unpack /run/head 2>/run/unpack | dd of="/dev/$disk" bs=4M conv=fsync 2>/run/dd
    wait $hasher
    digest=$(cut -d' ' -f1 /run/digest)
    if [ "$digest" != "$wanted" ]; then
        dd if=/dev/zero of="/dev/$disk" bs=1M count=1 conv=fsync 2>/dev/null
        [ ! -e /run/broken ] || fail download "the image was not fetched: $(tr '\n' ' ' </run/broken)"
        check_digest "$size" "$digest"
    fi
    written || fail write "write to /dev/$disk: $(cat /run/unpack /run/dd /run/trouble | tr '\n' ' ')"
}

# check_digest BYTES DIGEST
check_digest() {
    [ "$1" = "$size" ] || fail download "image $image has $1 bytes, not $size"
    [ "$2" = "$wanted" ] || fail download "image $image has SHA-256 $2, not $wanted"
}

# The kernel is told of the new table; while something still holds the disk it says no, for a moment.
reread_partitions() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        blockdev --rereadpt "/dev/$disk" 2>/run/reread && break
        sleep 1
    done
    [ ! -s /run/reread ] || say "the partition table was not read again: $(cat /run/reread)"
    mdev -s 2>/dev/null
    sleep 1
}

# The root file system is the partition (or the whole disk) that has /etc.
write_seed() {
    mkdir -p /run/target
    for device in $(partitions); do
        mount "/dev/$device" /run/target 2>/dev/null || continue
        if [ -d /run/target/etc ]; then
            seed_into /run/target/etc
            umount /run/target || fail seed "the root file system on /dev/$device could not be unmounted"
            return
        fi
        umount /run/target
    done
    fail seed "no partition of /dev/$disk holds a root file system that this agent can read: $(partitions | tr '\n' ' ')"
}

partitions() {
    for part in "/sys/block/$disk/$disk"*; do [ ! -e "$part/partition" ] || echo "${part##*/}"; done
    echo "$disk"
}

# cloud-init's own configuration: which data source, and the network, which some versions do not read from a seed.
seed_into() {
    config=$1/cloud/cloud.cfg.d
    mkdir -p "$config" "$1/cloud"
    seed=$(jq -r .seedUrl /run/job)
    fetch --output /run/network-config "${seed}network-config" || fail seed "the network configuration was not fetched: $(trouble)"
    # Its generator (ds-identify, in shell) looks for this one line before anything of cloud-init runs. What follows is JSON, which is YAML.
    jq -r '"datasource_list: [" + (if .dataSource == "maas" then "MAAS" else "NoCloud" end) + ", None]",
        "datasource: " + (if .dataSource == "maas" then {MAAS: {metadata_url: .metadata.url, consumer_key: .metadata.consumerKey, consumer_secret: "",
            token_key: .metadata.tokenKey, token_secret: .metadata.tokenSecret}} else {NoCloud: {seedfrom: .seedUrl}} end | tojson)' /run/job >"$config/90-muster.cfg"
    { echo 'network:'; sed 's/^/  /' /run/network-config; } >"$config/91-muster-network.cfg"
    chmod 600 "$config/90-muster.cfg" "$config/91-muster-network.cfg"
    jq -r .hostname /run/job >"$1/hostname"
    # A first boot: whatever an earlier one left behind in the image is not this machine's.
    rm -rf "${1%/etc}/var/lib/cloud"
    : >"$1/machine-id"
}
