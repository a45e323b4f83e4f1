# What the machine is made of, as the JSON of libs/shared/src/agent.ts. Everything comes from /sys and /proc below $ROOT, and from a few tools that
# are asked only where they are; what is not found is left out.
ROOT=${ROOT:-}

text_of() { [ -r "$1" ] && tr -d '\0' <"$1" | sed 's/^[[:space:]]*//;s/[[:space:]]*$//' | head -n 1; }

# objects NAME…: the lines of the standard input, fields with tabs between, as JSON objects, one a line; fields of a name with # are numbers. One jq for all
# of them: each takes forty milliseconds to start, and servers have hundreds of PCI devices.
objects() {
    jq -Rc '[$ARGS.positional, split("\t")] | transpose | map(if .[0] | endswith("#") then {(.[0][:-1]): (.[1] | tonumber)} else {(.[0]): .[1]} end) | add' --args "$@"
}

# row FIELD…: a line for `objects`.
row() {
    line=$1
    shift
    for field in "$@"; do line="$line	$(printf %s "$field" | tr '\t' ' ')"; done
    printf '%s\n' "$line"
}

# DMI's placeholders say nothing.
dmi() {
    value=$(text_of "$ROOT/sys/class/dmi/id/$1")
    case $value in '' | 'To Be Filled'* | 'Default string' | 'Not Specified' | 'None' | 'System Serial Number') ;; *) echo "$value" ;; esac
}

inventory() {
    interfaces >/run/interfaces
    disks >/run/disks
    facts >/run/facts
    jq -n --arg arch "$(architecture)" --argjson cpus "$(grep -c '^processor' "$ROOT/proc/cpuinfo")" --argjson memoryMib "$(memory_mib)" \
        --slurpfile interfaces /run/interfaces --slurpfile disks /run/disks --slurpfile facts /run/facts \
        '{$arch, $cpus, $memoryMib, $interfaces, disks: [$disks[] | {name, serial, model, sizeBytes, kind}], facts: $facts[0]}'
}

architecture() {
    case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac
}

# What the DIMMs hold, because the kernel keeps a part of it for itself; else what the kernel has.
memory_mib() {
    sum=0
    for size in $(dimms | jq -r '.sizeMib'); do sum=$((sum + size)); done
    [ "$sum" -gt 0 ] || sum=$(awk '/^MemTotal:/ { printf "%d", $2 / 1024 }' "$ROOT/proc/meminfo")
    echo "$sum"
}

# One JSON object a line, for each DIMM that is there (SMBIOS type 17, DSP0134 7.18).
dimms() {
    for entry in "$ROOT"/sys/firmware/dmi/entries/17-*; do
        [ -r "$entry/raw" ] || continue
        # Size at 0x0C: 0 is an empty slot, bit 15 means KiB, 0x7FFF that the size is at 0x1C.
        size=$(od -An -tu2 -j12 -N2 "$entry/raw" | tr -d ' ')
        case $size in '' | 0 | 65535) continue ;; 32767) size=$(od -An -tu4 -j28 -N4 "$entry/raw" | tr -d ' ') ;; esac
        [ "$size" -lt 32768 ] || [ "$size" -gt 65535 ] || size=$(((size - 32768) / 1024))
        speed=$(od -An -tu2 -j21 -N2 "$entry/raw" | tr -d ' ')
        row "$size" "${speed:-0}" "$(dmi_text "$entry/raw" 16)" "$(dmi_text "$entry/raw" 23)" "$(dmi_text "$entry/raw" 24)" "$(dmi_text "$entry/raw" 26)"
    done | objects sizeMib# speedMts# slot manufacturer serial partNumber
}

# dmi_text FILE OFFSET: the text whose number stands at that offset; texts follow the formatted part, whose length is the second byte.
dmi_text() {
    number=$(od -An -tu1 -j"$2" -N1 "$1" | tr -d ' ')
    length=$(od -An -tu1 -j1 -N1 "$1" | tr -d ' ')
    [ "${number:-0}" -gt 0 ] || return 0
    tail -c +$((length + 1)) "$1" | tr '\0' '\n' | sed -n "${number}p" | sed 's/[[:space:]]*$//'
}

interfaces() {
    for port in "$ROOT"/sys/class/net/*; do
        [ -e "$port/device" ] || continue
        speed=$(text_of "$port/speed")
        case $speed in '' | -*) speed=0 ;; esac
        row "$speed" "$(text_of "$port/address")" "${port##*/}"
    done | objects speedMbps# mac name
}

# Names of whole disks with a medium in them: neither loops, memory, floppies nor CD drives, nor what an eMMC has beside itself (mmcblk0boot0).
disk_names() {
    for block in "$ROOT"/sys/block/*; do
        name=${block##*/}
        case $name in loop* | ram* | zram* | sr* | fd* | dm-* | md* | nbd* | mmcblk*[!0-9]*) continue ;; esac
        sectors=$(text_of "$block/size")
        [ "${sectors:-0}" -gt 0 ] || continue
        [ "$(text_of "$block/removable")" != 1 ] || continue
        echo "$name"
    done
}

disks() {
    for name in $(disk_names); do
        block=$ROOT/sys/block/$name
        case $name in
            nvme*) kind=nvme ;;
            *) if [ "$(text_of "$block/queue/rotational")" = 1 ]; then kind=hdd; else kind=ssd; fi ;;
        esac
        jq -nc --arg name "$name" --arg serial "$(serial_of "$block")" --arg model "$(text_of "$block/device/model")" \
            --argjson sizeBytes $(($(text_of "$block/size") * 512)) --arg kind "$kind" --arg wwn "$(text_of "$block/wwid")" \
            --arg firmware "$(text_of "$block/device/firmware_rev")" --argjson wear "$(wear_of "$name")" \
            '{$name, $serial, $model, $sizeBytes, $kind, $wwn, $firmware} + $wear'
    done
}

serial_of() {
    for place in "$1/device/serial" "$1/serial"; do
        serial=$(text_of "$place")
        [ -z "$serial" ] || { echo "$serial"; return; }
    done
    # SCSI and SATA: the unit's serial number page, four bytes of head.
    [ ! -r "$1/device/vpd_pg80" ] || tail -c +5 "$1/device/vpd_pg80" | tr -d '\0' | sed 's/^[[:space:]]*//;s/[[:space:]]*$//'
}

# How worn a disk says it is, and whether it calls itself healthy; nothing where there is no tool or no answer.
wear_of() {
    [ -z "$ROOT" ] && command -v smartctl >/dev/null || { echo '{}'; return; }
    smart "/dev/$1" | jq -Rsc "$SMART_FACTS"'[fromjson?][0] // {} | smart_facts | {healthy, wearPercent} | with_entries(select(.value != null))'
}

pci() {
    for device in "$ROOT"/sys/bus/pci/devices/*; do
        [ -r "$device/vendor" ] || continue
        driver=''
        if [ -e "$device/driver" ]; then
            driver=$(readlink "$device/driver")
            driver=${driver##*/}
        fi
        read -r class <"$device/class"
        read -r vendor <"$device/vendor"
        read -r model <"$device/device"
        printf '%s\t%s\t%s\t%s\t%s\n' "${device##*/}" "$class" "$vendor" "$model" "$driver"
    done | objects address class vendor device driver
}

# Of PCI devices, one JSON object a line: displays (class 0x03) and accelerators (0x12). Not what a BMC draws its console with (ASPEED; Matrox G200; XGI;
# Huawei's Hi171x), and not what a hypervisor does (Bochs, Cirrus, QXL, virtio): nobody can compute on those.
gpus() {
    jq -c 'select(
        (.class | startswith("0x12"))
        or ((.class | startswith("0x03"))
            and ([.vendor] | inside(["0x1a03", "0x102b", "0x18ca", "0x1234", "0x1013"]) | not)
            and (["\(.vendor):\(.device)"] | inside(["0x19e5:0x1711", "0x1b36:0x0100", "0x1af4:0x1050"]) | not)))'
}

numa() {
    for node in "$ROOT"/sys/devices/system/node/node[0-9]*; do
        [ -r "$node/cpulist" ] || continue
        memory=$(awk '/MemTotal:/ { printf "%d", $4 / 1024 }' "$node/meminfo")
        row "${node##*node}" "${memory:-0}" "$(text_of "$node/cpulist")"
    done | objects node# memoryMib# cpus
}

# Where the machine's own BMC is in the network, and what it says that it is. Its passwords cannot be read, and what else it says (its SNMP community)
# is nobody's business. Boards with several LAN channels have an address on one of them; ipmitool's own choice is tried first.
bmc() {
    [ -z "$ROOT" ] && command -v ipmitool >/dev/null && [ -e /dev/ipmi0 ] || { echo null; return; }
    for channel in '' 1 2 3 4 5 6 7 8; do
        # shellcheck disable=SC2086 # No channel is no word.
        timeout 60 ipmitool lan print $channel 2>/dev/null >/run/bmc.lan
        # One that does not answer is not asked for its other channels.
        [ $? -lt 124 ] || break
        [ "$(bmc_lan </run/bmc.lan)" = '{}' ] || break
    done
    timeout 20 ipmitool mc info 2>/dev/null >/run/bmc.info
    bmc_info </run/bmc.info | jq -c --argjson lan "$(bmc_lan </run/bmc.lan)" '$lan + . | if . == {} then null else . end'
}

# What `ipmitool lan print` says on the standard input; {} where it is no LAN, or has no address.
bmc_lan() {
    jq -Rnc '[inputs | capture("^(?<key>[^:]*[^: ]) *: (?<value>.*[^ ])")] | reverse | from_entries
        | if (.["IP Address"] // "0.0.0.0") == "0.0.0.0" then {} else {
            address: .["IP Address"], mac: .["MAC Address"], source: .["IP Address Source"], netmask: .["Subnet Mask"],
            gateway: .["Default Gateway IP"], vlan: .["802.1q VLAN ID"]
        } | with_entries(select(.value != null and .value != "0.0.0.0" and .value != "Disabled")) end'
}

# What `ipmitool mc info` says on the standard input.
bmc_info() {
    jq -Rnc '[inputs | capture("^(?<key>[^:]*[^: ]) *: (?<value>.*[^ ])")] | reverse | from_entries
        | {ipmi: .["IPMI Version"], firmware: .["Firmware Revision"], manufacturerId: .["Manufacturer ID"], productId: .["Product ID"]}
        | with_entries(select(.value != null))'
}

facts() {
    if [ -d "$ROOT/sys/firmware/efi" ]; then firmware=uefi; else firmware=bios; fi
    model=$(sed -n 's/^model name[[:space:]]*: //p' "$ROOT/proc/cpuinfo" | head -n 1)
    sockets=$(sed -n 's/^physical id[[:space:]]*: //p' "$ROOT/proc/cpuinfo" | sort -u | grep -c .)
    # The kernel of arm64 says neither; SMBIOS does, an entry for each socket (type 4, DSP0134 7.5).
    if [ -z "$model" ]; then
        for entry in "$ROOT"/sys/firmware/dmi/entries/4-*; do
            [ -r "$entry/raw" ] || continue
            model="$(dmi_text "$entry/raw" 7) $(dmi_text "$entry/raw" 16)" sockets=$((sockets + 1))
        done
    fi
    dimms >/run/dimms
    numa >/run/numa
    pci >/run/pci
    gpus </run/pci >/run/gpus
    bmc >/run/bmc
    neighbours >/run/neighbours
    mkdir -p /run/raid
    raid_members /run/raid >/run/raid-members
    jq -n --arg systemVendor "$(dmi sys_vendor)" --arg product "$(dmi product_name)" --arg serial "$(dmi product_serial)" --arg uuid "$(dmi product_uuid)" \
        --arg boardVendor "$(dmi board_vendor)" --arg boardProduct "$(dmi board_name)" --arg biosVendor "$(dmi bios_vendor)" \
        --arg biosVersion "$(dmi bios_version)" --arg biosDate "$(dmi bios_date)" --arg firmware "$firmware" --arg model "$model" \
        --argjson sockets "$sockets" --arg kernel "$(uname -r)" \
        --slurpfile dimms /run/dimms --slurpfile numa /run/numa --slurpfile pci /run/pci --slurpfile gpus /run/gpus --slurpfile disks /run/disks --slurpfile bmc /run/bmc \
        --slurpfile lldp /run/neighbours --slurpfile raidMembers /run/raid-members '
        def said: with_entries(select(.value != ""));
        {
            dmi: ({$systemVendor, $product, $serial, $uuid, $boardVendor, $boardProduct, $biosVendor, $biosVersion, $biosDate} | said),
            firmware: {type: $firmware},
            cpu: {$model, $sockets},
            $dimms, $numa, $pci,
            $gpus,
            disks: [$disks[] | del(.model, .sizeBytes, .kind) | with_entries(select(.value != ""))],
            bmc: $bmc[0],
            $lldp,
            $kernel
        } + if $raidMembers == [] then {} else {raidMembers: $raidMembers[:256]} end'
}
