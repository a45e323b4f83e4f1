# What the disk $PART says of its own health, by SMART. One that says nothing, such as a virtual one, is skipped.
if ! command -v smartctl >/dev/null; then
    echo 'there is no smartctl here'
    exit 77
fi
# It ends with a number made of bits, which its answer says better.
smartctl --json --health --attributes "/dev/$PART" >"$SCRATCH/said" 2>&1
if [ "$(jq '.smart_status.passed | type == "boolean"' "$SCRATCH/said" 2>/dev/null)" != true ]; then
    cat "$SCRATCH/said"
    echo
    jq -r '.smartctl.messages[0].string // empty' "$SCRATCH/said" 2>/dev/null
    echo 'the disk does not say how it is'
    exit 77
fi
jq '(.nvme_smart_health_information_log // {}) as $nvme
    | [.ata_smart_attributes.table[]?] as $ata
    | def raw($id): $ata[] | select(.id == $id) | .raw.value;
    {
        healthy: .smart_status.passed, temperatureC: .temperature.current, powerOnHours: .power_on_time.hours,
        wearPercent: $nvme.percentage_used, criticalWarning: $nvme.critical_warning, mediaErrors: $nvme.media_errors,
        reallocatedSectors: ([raw(5)][0]), pendingSectors: ([raw(197)][0]), uncorrectableSectors: ([raw(198)][0])
    } | with_entries(select(.value != null))' "$SCRATCH/said" >"$RESULT"
jq -r 'to_entries[] | "\(.key): \(.value)"' "$RESULT"
jq -r --arg disk "$PART" --argjson wear "$wearPercentMax" '
    if .healthy == false then "\($disk) says that it fails"
    elif (.criticalWarning // 0) != 0 then "\($disk) warns: critical warning \(.criticalWarning)"
    elif (.wearPercent // 0) > $wear then "\($disk) is worn by \(.wearPercent) %, more than \($wear) %"
    else empty end' "$RESULT" >"$SCRATCH/bad"
if [ -s "$SCRATCH/bad" ]; then
    cat "$SCRATCH/bad"
    exit 1
fi
echo 'healthy'
