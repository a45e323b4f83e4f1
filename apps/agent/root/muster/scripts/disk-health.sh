# What the disk $PART says of its own health, by SMART; where it is made by a RAID controller, what the controller's own disks say. A disk that says
# nothing, such as a virtual one, is skipped.
. "${0%/scripts/*}/inventory.sh"
. "${0%/scripts/*}/smart.sh"
if ! command -v smartctl >/dev/null; then
    echo 'there is no smartctl here'
    exit 77
fi
smart "/dev/$PART" >"$SCRATCH/own"
raid_members "$SCRATCH" >"$SCRATCH/all"
# Members are judged once: with the first logical disk of their controller, else with the first disk there is.
jq -Rsc --arg disk "$PART" --arg first "$(disk_names | head -n 1)" --argjson wear "$wearPercentMax" --slurpfile all "$SCRATCH/all" "$SMART_FACTS"'
    ([fromjson?][0] // {}) as $said | ($said | smart_facts) as $own
    | [$all[] | select((.disks[0] // $first) == $disk)] as $mine
    | [$all[] | select((.disks | index($disk)) and .disks[0] != $disk) | .disks[0]][0] as $elsewhere
    | [$mine[] | select(.healthy == null) | .name] as $silent
    | def lines: to_entries[] | select(.key != "members") | "\(.key): \(.value)";
    [($own + {what: $disk}), ($mine[] | .what = "member \(.name) of \($disk)\(if .serial then " (serial number \(.serial))" else "" end)")
        | if .healthy == false then "\(.what) says that it fails"
          elif (.criticalWarning // 0) != 0 then "\(.what) warns: critical warning \(.criticalWarning)"
          elif (.wearPercent // 0) > $wear then "\(.what) is worn by \(.wearPercent) %, more than \($wear) %"
          else empty end] as $bad
    # The bad ones first: of very many members not all can be told.
    | ($own + if $mine == [] then {} else {members: ($mine | sort_by(.healthy != false) | .[:80] | map(del(.controller, .host, .disks, .model, .firmware, .sizeBytes, .kind)))} end) as $result
    | {$result, log: [$said.smartctl.messages[]?.string, ($result | lines), ($result.members[]? | "member \(.name)", lines)]}
    + if $bad != [] then {code: 1, message: ($bad | join("; "))}
      elif ($mine | length) > ($silent | length) then {
          code: 0,
          message: "healthy: \(($mine | length) - ($silent | length)) of \($mine | length) members of the controller\(if $silent == [] then "" else "; nothing is said by \($silent | join(", "))" end)"
      }
      elif $own.healthy then {code: 0, message: "healthy"}
      else {
          code: 77,
          message: "the disk does not say how it is\(if $elsewhere then "; the members of its controller are judged with \($elsewhere)" else "" end)\(if $silent == [] then "" else ", nor do the members \($silent | join(", ")) of its controller" end)"
      } end' "$SCRATCH/own" >"$SCRATCH/verdict"
jq .result "$SCRATCH/verdict" >"$RESULT"
jq -r '.log[], .message' "$SCRATCH/verdict"
exit "$(jq .code "$SCRATCH/verdict")"
