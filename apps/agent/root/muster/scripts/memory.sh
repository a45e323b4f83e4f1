# Fills $percent of the free memory with patterns and reads them back, one file of a file system in memory for each processor. What the kernel and this
# system need for themselves is not tested.
chunk_mib=4
now() { cut -d. -f1 /proc/uptime; }

# at_work FILE CHUNKS PATTERN: writes, then reads. The patterns lie in memory too, and a wrong one is found as well.
at_work() {
    left=$2
    while [ "$left" -gt 0 ]; do
        cat "$3" || { echo "$1: write failed" >>"$SCRATCH/broken"; return; }
        left=$((left - 1))
    done >"$1"
    at=0
    while [ $at -lt "$2" ]; do
        dd if="$1" bs=$((chunk_mib * 1048576)) skip=$at count=1 2>/dev/null | cmp - "$3" >>"$SCRATCH/wrong" 2>&1
        at=$((at + 1))
    done
    : >"$1.read"
}

began=$(now)
free_mib=$(awk '/^MemAvailable:/ { printf "%d", $2 / 1024 }' /proc/meminfo)
mib=$((free_mib * percent / 100))
[ "$limitMib" = 0 ] || [ "$mib" -le "$limitMib" ] || mib=$limitMib
workers=$(nproc)
[ $((mib / chunk_mib)) -ge "$workers" ] || workers=1
chunks=$((mib / chunk_mib / workers))
if [ $chunks = 0 ]; then
    echo "of $free_mib MiB that are free, $mib MiB are to be tested: too few"
    exit 77
fi
tested=$((chunks * chunk_mib * workers))
echo "$tested MiB of $free_mib MiB that are free, by $workers at once"
: >"$SCRATCH/wrong"
: >"$SCRATCH/broken"
patterns=0
# Zeros, ones, every other bit, the others, and chance.
for pattern in 000 377 252 125 random; do
    [ $patterns = 0 ] || [ $(($(now) - began)) -lt "$seconds" ] || break
    case $pattern in
        random) head -c $((chunk_mib * 1048576)) /dev/urandom ;;
        *) head -c $((chunk_mib * 1048576)) /dev/zero | tr '\000' "\\$pattern" ;;
    esac >"$SCRATCH/pattern"
    worker=0
    while [ $worker -lt "$workers" ]; do
        at_work "$SCRATCH/memory.$worker" $chunks "$SCRATCH/pattern" &
        worker=$((worker + 1))
    done
    wait
    # One that was ended from outside, for want of memory perhaps, has proved nothing.
    [ "$(find "$SCRATCH" -name 'memory.*.read' | wc -l)" = "$workers" ] || echo "pattern $pattern was not read back by all" >>"$SCRATCH/broken"
    rm -f "$SCRATCH"/memory.*
    patterns=$((patterns + 1))
    echo "pattern $pattern: done after $(($(now) - began)) s"
    [ ! -s "$SCRATCH/broken" ] || break
done
wrong=$(wc -l <"$SCRATCH/wrong")
jq -n --argjson freeMib "$free_mib" --argjson testedMib $tested --argjson patterns $patterns --argjson wrong "$wrong" \
    '{$freeMib, $testedMib, $patterns, $wrong}' >"$RESULT"
head -n 100 "$SCRATCH/wrong"
if [ -s "$SCRATCH/broken" ]; then
    cat "$SCRATCH/broken"
    echo 'the memory that is said to be free could not be filled'
    exit 1
fi
echo "$tested MiB, $patterns patterns, $wrong of their chunks of $chunk_mib MiB wrong"
[ "$wrong" = 0 ]
