# Putting an image on a machine: fetched, its digest checked, written, and given the seed that its first boot reads. An image is a whole disk, or a root
# tarball for a layout (layout.sh, system.sh). Every step may be repeated: it begins with the fetch, and a disk that is half written is written again.

install() {
    jq -r '.image.url, .image.sha256, .image.sizeBytes, .os, (.image.form // "disk")' /run/job >/run/job.words
    { read -r image; read -r wanted; read -r size; read -r os; read -r form; } </run/job.words
    [ "$form" != disk ] || disk=$(target_disk) || fail disk 'the machine has no disk to write to'
    free=$(awk '/^MemAvailable:/ { printf "%d", $2 * 1024 }' /proc/meminfo)
    # In memory it is checked before the first byte of the disk is lost, and written three times as fast.
    if [ $((size * 2)) -lt "$free" ]; then fetch_then_write; else write_while_fetching; fi
    if [ "$form" = disk ]; then finish_disk; else finish_system; fi
    stop_heartbeat
    signal 'done' install "$os written to $place" 100 || say "the end was not heard: $(trouble)"
    end reboot installed
}

# What an image is put on: a whole disk, or the file systems of a layout, which are made first.
prepare_place() {
    rm -f /run/is-put
    if [ "$form" = disk ]; then place=$disk; else lay_out; place=$(cut -d' ' -f2 /run/plan.disks | tr '\n' ' ' | sed 's/ $//'); fi
    say "writing $os to $place"
}

# put_image FILE: unpacks the standard input, which is packed as FILE is, and puts it there. What comes after an error is read and lost, so that the
# digest of all of it is known, and whose error it was.
put_image() {
    { unpack "$1" 2>/run/unpack || echo "it ended with $?" >>/run/unpack; cat >/dev/null; } | if [ "$form" = disk ]; then put_disk; else put_tree; fi
}

put_disk() {
    dd of="/dev/$disk" bs=4M conv=fsync 2>/run/put && : >/run/is-put
    cat >/dev/null
}

# An image that should not be there: nothing boots from it.
spoil_place() {
    if [ "$form" = disk ]; then
        dd if=/dev/zero of="/dev/$disk" bs=1M count=1 conv=fsync 2>/dev/null
    else
        leave_layout
        for name in $(cut -d' ' -f2 /run/plan.disks); do blank_disk "$name"; done
    fi
}

finish_disk() {
    stand write 'waiting for the disk' 90
    sync
    reread_partitions
    stand seed 'writing the seed of the first boot' 95
    write_seed
    mark_disks
}

# Which disks a UEFI machine boots (disk-loader/grub.cfg): those of $place are marked in their EFI system partition, once for this machine alone, and a
# mark that a former system has on another disk goes.
mark_disks() {
    mkdir -p /run/efi
    for part in /sys/class/block/*; do
        [ -e "$part/partition" ] || continue
        name=${part##*/}
        [ "$(blkid -c /dev/null -o value -s TYPE "/dev/$name")" = vfat ] && mount -t vfat -o ro "/dev/$name" /run/efi 2>/dev/null || continue
        holder=$(basename "$(dirname "$(readlink -f "$part")")")
        case " $place " in
            *" $holder "*) [ ! -d /run/efi/EFI ] || write_marks 2>/run/tool || fail boot "mark the EFI system partition /dev/$name: $(tr '\n' ' ' </run/tool)" ;;
            *) remove_marks 2>/run/tool || say "the mark of a former system on /dev/$name stays: $(tr '\n' ' ' </run/tool)" ;;
        esac
        umount /run/efi || fail boot "the EFI system partition /dev/$name could not be unmounted"
    done
}

write_marks() {
    machine=$(tr '[:upper:]' '[:lower:]' 2>/dev/null </sys/class/dmi/id/product_uuid)
    mount -o remount,rw /run/efi && mkdir -p /run/efi/muster && rm -f /run/efi/muster/installed* || return 1
    for mark in installed ${machine:+"installed-$machine"}; do echo "$os" >"/run/efi/muster/$mark" || return 1; done
    sync -f /run/efi
}

remove_marks() {
    for mark in /run/efi/muster/installed*; do [ ! -e "$mark" ] || { mount -o remount,rw /run/efi && rm "$mark"; } || return 1; done
}

# The first disk that is no removable medium, by name, an eMMC or SD card last: what the firmware boots from where nobody chose otherwise.
target_disk() {
    disks | jq -rs 'sort_by(.name | startswith("mmcblk"), .)[0].name // empty' | grep .
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
        # busybox's own comes before any in the path, and knows less.
        xz) /usr/bin/xz -dc ;;
        raw) cat ;;
    esac
}

fetch_then_write() {
    stand download '' 0
    fetch_image "$image" 60 >/run/image || fail download "the image was not fetched: $(trouble)"
    check_digest "$(wc -c </run/image)" "$(sha256sum </run/image | cut -d' ' -f1)"
    [ "$form" != disk ] || check_room "$(unpacked_size /run/image)"
    prepare_place
    stand write '' 60
    put_image /run/image </run/image
    written || fail write "write to $place: $(cat /run/unpack /run/put | tr '\n' ' ')"
    rm -f /run/image
}

# The size that an archive says it unpacks to; nothing where it does not say.
unpacked_size() {
    case $(packing "$1") in
        raw) wc -c <"$1" ;;
        zstd) zstd -lv "$1" 2>/dev/null | sed -n 's/^Decompressed Size:.*(\([0-9]*\) B)$/\1/p' ;;
        xz) /usr/bin/xz --robot -l "$1" 2>/dev/null | awk '$1 == "totals" { print $5 }' ;;
    esac
}

check_room() {
    room=$(($(cat "/sys/block/$disk/size") * 512))
    [ -z "$1" ] || [ "$1" -le "$room" ] || fail write "the image has $1 bytes, /dev/$disk only $room"
}

# tar's or dd's word, and no complaint before it.
written() { [ ! -s /run/unpack ] && [ -e /run/is-put ]; }

# An image that does not fit into memory: the digest is known only at the end, so a wrong one leaves a disk that does not boot.
write_while_fetching() {
    stand download '' 0
    fetch_head "$image" >/run/head
    [ -s /run/head ] || fail download "the image was not fetched: $(trouble)"
    # What is packed says how large it is only when all of it is there.
    [ "$form" != disk ] || [ "$(packing /run/head)" != raw ] || check_room "$size"
    prepare_place
    stand download '' 0
    mkfifo /run/to-digest
    sha256sum </run/to-digest >/run/digest &
    hasher=$!
    rm -f /run/broken
    { fetch_image "$image" 85 || trouble >/run/broken; } | tee /run/to-digest | put_image /run/head
    wait $hasher
    digest=$(cut -d' ' -f1 /run/digest)
    if [ "$digest" != "$wanted" ]; then
        spoil_place
        [ ! -e /run/broken ] || fail download "the image was not fetched: $(cat /run/broken)"
        check_digest "$size" "$digest"
    fi
    written || fail write "write to $place: $(cat /run/unpack /run/put | tr '\n' ' ')"
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
        type=$(blkid -c /dev/null -o value -s TYPE "/dev/$device")
        case $type in ext2 | ext3 | ext4) type=ext4 ;; xfs | btrfs) modprobe -q "$type" ;; *) continue ;; esac
        mount -t "$type" "/dev/$device" /run/target 2>/run/mount || { say "/dev/$device ($type): $(cat /run/mount)"; continue; }
        tree=$(tree_in "$type")
        [ -z "$tree" ] || seed_into "$tree/etc"
        umount /run/target || fail seed "the file system on /dev/$device could not be unmounted"
        [ -z "$tree" ] || return 0
    done
    fail seed "no partition of /dev/$disk holds a root file system that this agent can read (ext4, xfs, btrfs): $(partitions | tr '\n' ' ')"
}

# Where in what is mounted the root is: at its root, or in one of the subvolumes that installers of btrfs make. Nothing where there is none.
tree_in() {
    if [ -d /run/target/etc ]; then
        echo /run/target
    elif [ "$1" = btrfs ]; then
        for name in @ root @rootfs; do [ ! -d "/run/target/$name/etc" ] || { echo "/run/target/$name"; return; }; done
    fi
}

partitions() {
    for part in "/sys/block/$disk/$disk"*; do [ ! -e "$part/partition" ] || echo "${part##*/}"; done
    echo "$disk"
}

# cloud-init's own configuration: which data source, and the network, which some versions do not read from a seed.
seed_into() {
    seed=$(jq -r .seedUrl /run/job)
    fetch --output /run/network-config "${seed}network-config" || fail seed "the network configuration was not fetched: $(trouble)"
    refuse_network "${1%/etc}" /run/network-config
    # A file system that is full or broken lets an empty file be made; what was written is known when it is on the disk.
    { write_configuration "$1" && sync -f "$1"; } 2>/run/tool || fail seed "write the seed to ${1#/run/target}: $(tr '\n' ' ' </run/tool)"
}

# write_configuration ETC: all of it, or it fails.
write_configuration() {
    config=$1/cloud/cloud.cfg.d
    mkdir -p "$config" || return 1
    # Its generator (ds-identify, in shell) looks for this one line before anything of cloud-init runs. What follows is JSON, which is YAML.
    jq -r '"datasource_list: [" + (if .dataSource == "maas" then "MAAS" else "NoCloud" end) + ", None]",
        "datasource: " + (if .dataSource == "maas" then {MAAS: {metadata_url: .metadata.url, consumer_key: .metadata.consumerKey, consumer_secret: "",
            token_key: .metadata.tokenKey, token_secret: .metadata.tokenSecret}} else {NoCloud: {seedfrom: .seedUrl}} end | tojson)' /run/job >"$config/90-muster.cfg" &&
        { echo 'network:' && sed 's/^/  /' /run/network-config; } >"$config/91-muster-network.cfg" &&
        chmod 600 "$config/90-muster.cfg" "$config/91-muster-network.cfg" &&
        jq -r .hostname /run/job >"$1/hostname" &&
        # A first boot: whatever an earlier one left behind in the image is not this machine's.
        rm -rf "${1%/etc}/var/lib/cloud" &&
        printf '' >"$1/machine-id"
}

# refuse_network TREE CONFIGURATION: what nothing in the image would set up, which nobody would be told. cloud-init writes VLANs, bonds and bridges for netplan,
# ifupdown and NetworkManager; for systemd-networkd, which it takes where none of these is there, it leaves them out without a word (22.4: its networkd.py
# makes no .netdev).
refuse_network() {
    wanted=$(sed -n 's/^\(bonds\|bridges\|vlans\):.*/\1/p' "$2" | tr '\n' ' ' | sed 's/ $//')
    [ -n "$wanted" ] || return 0
    for tool in usr/sbin/netplan sbin/netplan usr/sbin/ifup sbin/ifup usr/bin/nmcli; do [ ! -e "$1/$tool" ] || return 0; done
    for renderer in "$1"/usr/lib/python3*/*-packages/cloudinit/net/networkd.py; do
        [ -e "$renderer" ] && ! grep -qi netdev "$renderer" || continue
        fail seed "the network has $wanted, and the image's cloud-init can write only ports for systemd-networkd: it wants netplan, ifupdown or NetworkManager in the image"
    done
}
