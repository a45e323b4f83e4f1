# Reads the first $sizeMib of the disk $PART past the cache. Nothing is written.
DEVICES=${DEVICES:-/dev}
[ ! -w /proc/sys/vm/drop_caches ] || echo 3 >/proc/sys/vm/drop_caches
now() { cut -d" " -f1 /proc/uptime; }
read_disk() {
    began=$(now)
    dd if="$DEVICES/$PART" of=/dev/null bs=1048576 count="$sizeMib" "$@" 2>"$SCRATCH/dd"
}
# Not everything that is a disk can be read past the cache, which is empty anyway.
read_disk iflag=direct || read_disk || {
    echo "read of /dev/$PART: $(tr '\n' ' ' <"$SCRATCH/dd")"
    exit 1
}
ended=$(now)
cat "$SCRATCH/dd"
# Busybox tells records, whole and in part, and no time. The clock ticks a hundred times a second.
awk -F+ -v began="$began" -v ended="$ended" '/records in/ && $1 > 0 {
    took = ended > began ? ended - began : 0.01
    printf "{\"readMib\": %d, \"seconds\": %.2f, \"mibPerSecond\": %.1f}\n", $1, took, $1 / took
}' "$SCRATCH/dd" >"$RESULT"
if [ ! -s "$RESULT" ]; then
    echo "nothing could be read of /dev/$PART"
    exit 1
fi
speed=$(jq .mibPerSecond "$RESULT")
if jq -e --argjson least "$leastMibPerSecond" '.mibPerSecond < $least' "$RESULT" >/dev/null; then
    echo "$speed MiB/s, less than $leastMibPerSecond MiB/s"
    exit 1
fi
echo "$speed MiB/s"
