# What disks say of their own health (SMART), also those behind a RAID controller: Linux sees only the logical disks that are made of them, and smartctl
# asks the controller for each. For the inventory (inventory.sh, which it needs), and for the script disk-health.

# smart WORD…: what smartctl says of a disk, as JSON. How it ends is a number made of bits, which its answer says better.
smart() {
    # With its plain text (o): not all versions tell otherwise how worn a SAS disk is.
    timeout 20 smartctl --json=o --info --health --attributes --log=ssd "$@" 2>/dev/null
    return 0
}

# For jq: what of that is worth keeping; {} where there is nothing.
SMART_FACTS='def smart_facts:
    (.nvme_smart_health_information_log // {}) as $nvme
    | def raw($id): [.ata_smart_attributes.table[]? | select(.id == $id) | .raw.value][0];
    {
        healthy: .smart_status.passed, temperatureC: .temperature.current, powerOnHours: .power_on_time.hours,
        # NVMe; ATA, in its device statistics (page 7); SAS.
        wearPercent: ($nvme.percentage_used
            // [.ata_device_statistics.pages[]? | select(.number == 7) | .table[]? | select(.offset == 8) | .value][0]
            // .scsi_percentage_used_endurance_indicator
            // [.smartctl.output[]? | capture("^Percentage used endurance indicator: *(?<percent>[0-9]+)") | .percent | tonumber][0]),
        criticalWarning: $nvme.critical_warning, mediaErrors: $nvme.media_errors,
        reallocatedSectors: raw(5), pendingSectors: raw(197), uncorrectableSectors: raw(198),
        grownDefects: .scsi_grown_defect_list
    } | with_entries(select(.value != null));'

# raid_members FOLDER: the members of RAID controllers, a JSON object a line (raidMember in libs/shared/src/agent.ts) with what each says of itself.
# `disks` are the logical disks of the same controller: where it has several nobody says which one a member belongs to. FOLDER is for what it writes down.
raid_members() {
    command -v smartctl >/dev/null || return 0
    scsi_disks >"$1/scsi-disks"
    { scanned_members; cciss_members <"$1/scsi-disks"; } >"$1/members"
    # Where a controller hangs, what is left after two minutes is told of and not asked.
    last=$(($(cut -d. -f1 /proc/uptime) + 120))
    while read -r device type host <&3; do
        : >"$1/said"
        [ "$(cut -d. -f1 /proc/uptime)" -ge $last ] || smart --device="$type" "$device" </dev/null >"$1/said"
        raid_member "$1" "$type" "$host"
    done 3<"$1/members"
}

# NAME HOST SERIAL a line, for each disk that Linux sees on a SCSI host. Its device is called HOST:CHANNEL:TARGET:LUN.
scsi_disks() {
    for name in $(disk_names | grep '^sd'); do
        place=$(basename "$(readlink "$ROOT/sys/block/$name/device")")
        echo "$name ${place%%:*} $(serial_of "$ROOT/sys/block/$name")"
    done
}

# DEVICE TYPE HOST a line, of what smartctl finds by itself: MegaRAID's. `/dev/bus/3` is the controller that is SCSI host 3; `-` is one that is not known.
scanned_members() {
    timeout 30 smartctl --scan-open --json 2>/dev/null | jq -r '
        .devices[]? | select(.type | strings | test("^([a-z]+\\+)?(megaraid|sssraid|aacraid|3ware|areca|cciss|hpt),"))
        | "\(.name) \(.type) \(.name | capture("^/dev/bus/(?<host>[0-9]+)$").host // "-")"' 2>/dev/null
}

# The same for Smart Array controllers, which smartctl can ask and does not look for: their disks are numbered from 0. Any logical disk leads to the
# controller. Enclosures have numbers too, and behind the last one is nothing.
cciss_members() {
    asked=' '
    while read -r name host serial; do
        case $(cat "$ROOT/sys/class/scsi_host/host$host/proc_name" 2>/dev/null) in hpsa | smartpqi) ;; *) continue ;; esac
        case $asked in *" $host "*) continue ;; esac
        asked="$asked$host "
        number=0 missed=0
        while [ $number -lt 128 ] && [ $missed -lt 3 ]; do
            if timeout 20 smartctl --json --info --device="cciss,$number" "/dev/$name" </dev/null 2>/dev/null | jq -e .serial_number >/dev/null 2>&1; then
                echo "/dev/$name cciss,$number $host"
                missed=0
            else
                missed=$((missed + 1))
            fi
            number=$((number + 1))
        done
    done
}

# raid_member FOLDER TYPE HOST: the member whose answer is in FOLDER/said. Nothing where Linux sees it itself (by its serial number), or where it is none:
# enclosures answer too.
raid_member() {
    driver=$(cat "$ROOT/sys/class/scsi_host/host$3/proc_name" 2>/dev/null)
    awk -v host="$3" '$2 == host' "$1/scsi-disks" | jq -Rnc --arg type "$2" --arg host "$3" --arg driver "$driver" --rawfile said "$1/said" "$SMART_FACTS"'
        def text: strings | .[:128];
        [inputs | capture("^(?<name>[^ ]+) [^ ]+ (?<serial>.*)$")] as $disks | ([$said | fromjson?][0] // {}) as $said
        | if ($said.device_type.scsi_value // 0) != 0 or any($disks[]; .serial != "" and .serial == $said.serial_number) then empty else
            {name: ($type | sub("^[a-z]+\\+"; "")), disks: [$disks[].name]}
            + (if $driver == "" then {} else {controller: $driver} end)
            + (if $host == "-" then {} else {host: ($host | tonumber)} end)
            + ({
                serial: [$said.serial_number | text][0], model: [$said | .model_name // .scsi_model_name | text][0],
                firmware: [$said | .firmware_version // .scsi_revision | text][0], sizeBytes: $said.user_capacity.bytes,
                kind: (if $said.device.protocol == "NVMe" then "nvme" elif $said.rotation_rate == 0 then "ssd" elif $said.rotation_rate then "hdd" else null end)
            } + ($said | smart_facts) | with_entries(select(.value != null)))
        end'
}
