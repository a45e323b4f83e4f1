# Making the disks as a plan of the partition says (libs/shared/src/storage-plan.ts): one step a line, in order. Every step may be repeated after the power
# went: it begins by taking off the disks whatever was on them.

# The plan's tools look for udev, which is not here.
export MDADM_NO_UDEV=1 DM_DISABLE_UDEV=1

lay_out() {
    jq -r '.storage[]' /run/job >/run/plan || fail layout 'the job has no layout for its tarball'
    find_disks
    for module in md_mod raid1 dm_mod $(planned format | cut -d' ' -f2 | sort -u); do modprobe -q "$module" 2>/dev/null; done
    for id in $(planned disk | cut -d' ' -f1); do
        stand layout "the partition table of /dev/$(disk_called "$id")" 0
        blank_disk "$(disk_called "$id")"
        write_table "$id"
    done
    while read -r what rest <&3; do
        # Words by the space between them.
        set -- $rest
        case $what in
            mirror) make_mirror "$@" ;;
            group) make_group "$@" ;;
            volume) stored "make volume $2 of $1" lvm lvcreate -y -Wy -l "$3" -n "$2" --config "$(lvm_filter)" "$1" ;;
            format) make_file_system "$(device "$1")" "$2" ;;
            mount) mount_part "$(device "$1")" "$2" "$3" ;;
            boot) make_file_system "$(device "part:$1:2")" vfat ;;
        esac
    done 3</run/plan
    # Else the system would be unpacked into memory.
    grep -q ' /run/target ' /proc/mounts || fail layout 'the layout has nothing at /'
}

# planned WHAT: the rest of each line of the plan that does this.
planned() { sed -n "s/^$1 //p" /run/plan; }

# A file system on very large disks that are told first that they hold nothing.
TOOL_SECONDS=${TOOL_SECONDS:-900}

# stored WHAT COMMAND…: the job fails in the tool's own words.
stored() {
    doing=$1
    shift
    timeout -k 10 "$TOOL_SECONDS" "$@" </dev/null >/run/tool 2>&1
    case $? in
        0) ;;
        # As it was told to end.
        143 | 137) fail layout "$doing: $1 took longer than $TOOL_SECONDS s; it wrote last: $(tail -n 4 /run/tool | tr '\n' ' ')" ;;
        *) fail layout "$doing: $(tail -n 4 /run/tool | tr '\n' ' ')" ;;
    esac
}

# By its serial number where the plan has one: names change from boot to boot. Of two with the same number the one with the same name.
find_disks() {
    disks >/run/disks
    : >/run/plan.disks
    while read -r what id name bytes serial <&3; do
        [ "$what" = disk ] || continue
        found=$(jq -rs --arg name "$name" --arg serial "$serial" --argjson bytes "$bytes" '
            map(select(.sizeBytes == $bytes and (if $serial == "" then .name == $name else .serial == $serial end)))
            | (map(select(.name == $name)) + .)[0].name // empty' /run/disks)
        [ -n "$found" ] || fail layout "the disk $name${serial:+ with serial number $serial} of $bytes bytes is not there: $(jq -r '"\(.name) \(.serial) \(.sizeBytes)"' /run/disks | tr '\n' ';')"
        echo "$id $found" >>/run/plan.disks
    done 3</run/plan
}

disk_called() { sed -n "s/^$1 //p" /run/plan.disks; }

# device REFERENCE: part:DISK:NUMBER, md:NAME or lv:GROUP:NAME, as a path.
device() {
    reference=${1#*:}
    case $1 in
        part:*)
            base=$(disk_called "${reference%:*}")
            case $base in *[0-9]) base=${base}p ;; esac
            echo "/dev/$base${reference#*:}"
            ;;
        md:*) echo "/dev/md$(planned mirror | cut -d' ' -f1 | grep -nx "$reference" | cut -d: -f1)" ;;
        lv:*) echo "/dev/mapper/${reference%:*}-${reference#*:}" ;;
    esac
}

# blank_disk NAME: no table, no file system, no member of anything is recognized on it any more.
blank_disk() {
    for part in "/sys/block/$1/$1"*; do [ ! -e "$part/partition" ] || wipefs --all --quiet "/dev/${part##*/}" 2>/dev/null; done
    stored "wipe /dev/$1" wipefs --all --force --quiet "/dev/$1"
}

# write_table ID: and what an earlier system had where its partitions are goes too.
write_table() {
    target=$(disk_called "$1")
    {
        echo 'label: gpt'
        planned partition | while read -r id number start size use; do
            [ "$id" != "$1" ] || echo "start=${start}MiB, size=${size}MiB, type=$(partition_type "$use")"
        done
    } >/run/table
    # While something still looks at the disk the kernel does not read its table, for a moment. It shows the partitions of the last one meanwhile.
    try=0
    until sfdisk --quiet --wipe always --wipe-partitions always "/dev/$target" </run/table >/run/tool 2>&1; do
        try=$((try + 1))
        [ $try -lt 5 ] || fail layout "the partition table of /dev/$target: $(tail -n 4 /run/tool | tr '\n' ' ')"
        sleep 1
    done
    for number in $(planned partition | sed -n "s/^$1 \([0-9]*\) .*/\1/p"); do
        part=$(device "part:$1:$number")
        for try in 1 2 3 4 5 6 7 8 9 10; do [ -b "$part" ] && break || sleep 0.5; done
        [ -b "$part" ] || fail layout "the partition table of /dev/$target: $part does not appear: $(tail -n 4 /run/tool | tr '\n' ' ')"
        stored "wipe $part" wipefs --all --force --quiet "$part"
    done
}

# As sfdisk knows them by a letter, but GRUB's.
partition_type() {
    case $1 in
        bios) echo 21686148-6449-6E6F-744E-656564454649 ;;
        efi) echo U ;;
        raid) echo R ;;
        lvm) echo V ;;
        swap) echo S ;;
        *) echo L ;;
    esac
}

# make_mirror NAME MEMBER…: both halves are made equal by the installed system. Here that would only take the disks from what is being written, to both
# halves anyhow; "frozen" is in no superblock, and the next start of the mirror begins with it. They are not called equal (--assume-clean): they hold
# whatever was there. The offset is what the plan reckons with.
make_mirror() {
    mirror=$1
    shift
    members=''
    for member; do members="$members $(device "$member")"; done
    stored "make mirror $mirror" mdadm --create "$(device "md:$mirror")" --run --level=1 --metadata=1.2 --data-offset=1M --bitmap=internal \
        --homehost="$(jq -r .hostname /run/job)" --name="$mirror" --raid-devices=$# $members
    path=$(device "md:$mirror")
    echo frozen >"/sys/block/${path#/dev/}/md/sync_action" || say "$path is made equal meanwhile, which takes longer"
}

# make_group NAME MEMBER…
make_group() {
    group=$1
    shift
    members=''
    for member; do members="$members $(device "$member")"; done
    stored "prepare$members for the group $group" lvm pvcreate -ff -y --dataalignment 1m --config "$(lvm_filter)" $members
    stored "make group $group" lvm vgcreate -y --physicalextentsize 4m --config "$(lvm_filter)" "$group" $members
}

# LVM looks at nothing but what the plan gives it: another disk may hold a group of the same name.
lvm_filter() {
    printf 'devices { filter = ['
    for member in $(planned group | cut -d' ' -f2-); do printf ' "a|^%s$|",' "$(device "$member")"; done
    printf ' "r|.*|" ] }'
}

# make_file_system PATH TYPE. By their paths: busybox's shell prefers what busybox has itself.
make_file_system() {
    case $2 in
        ext4) stored "make $2 on $1" /sbin/mke2fs -q -F -t ext4 "$1" ;;
        xfs) stored "make $2 on $1" mkfs.xfs -q -f "$1" ;;
        btrfs) stored "make $2 on $1" mkfs.btrfs -q -f "$1" ;;
        vfat) stored "make $2 on $1" mkfs.fat -F 32 "$1" ;;
        swap) stored "make $2 on $1" /sbin/mkswap "$1" ;;
    esac
}

# mount_part DEVICE TYPE PATH: below /run/target. Its options are for the installed system.
mount_part() {
    mkdir -p "/run/target$3"
    stored "mount $1 ($2) at $3" mount -t "$2" "$1" "/run/target$3"
}

# Everything of the plan is let go of, the last mounted first.
leave_layout() {
    planned mount | cut -d' ' -f3 | tac >/run/mounts
    while read -r path; do umount "/run/target$path" 2>/run/tool || return 1; done </run/mounts
    # All is written; one that does not let go is looked through once more by the installed system.
    for group in $(planned group | cut -d' ' -f1); do lvm vgchange -an --config "$(lvm_filter)" "$group" >/run/tool 2>&1 || say "group $group: $(tail -n 1 /run/tool)"; done
    for mirror in $(planned mirror | cut -d' ' -f1); do mdadm --stop "$(device "md:$mirror")" >/run/tool 2>&1 || say "mirror $mirror: $(tail -n 1 /run/tool)"; done
    return 0
}
