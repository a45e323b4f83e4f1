# What people read on the console, and how the machine ends.

say() { echo "muster: $*"; }

# Ends the machine: off, or reboot. Nothing comes back from here.
end() {
    say "$2: $1"
    sync
    # The console is slow, and the last line is the one that matters.
    sleep 1
    if [ "$1" = reboot ]; then reboot -f; else poweroff -f; fi
    # A machine that cannot switch itself off is switched off by its BMC.
    while :; do sleep 3600; done
}
