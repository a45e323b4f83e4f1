# What people read on the consoles, and how the machine ends.

# Whatever this and every program says goes out as the kernel's own words do: to all its consoles, whether there is something behind them or not. /dev/console
# is only the last one, and who writes to that waits where nothing is, or where somebody has pressed Ctrl-S.
speak_on_consoles() {
    # Of errors: the usual level of the console is theirs, and `quiet` leaves them. All of them: else ten lines in five seconds are enough for the kernel.
    echo on >/proc/sys/kernel/printk_devkmsg
    mkfifo /run/said
    while IFS= read -r line; do printf '<11>%.900s\n' "$line" >/dev/kmsg; done </run/said &
    exec >/run/said 2>&1
}

# The consoles that the kernel was told of and that can be written to, as devices.
consoles() {
    for name in $(cat /sys/class/tty/console/active); do
        if [ -c "/dev/$name" ] && echo 2>/dev/null >"/dev/$name"; then echo "/dev/$name"; fi
    done
}

say() { echo "muster: $*"; }

# Ends the machine: off, or reboot. Nothing comes back from here.
end() {
    say "$2: $1"
    sync
    # The last line is the one that matters, and is on its way through speak_on_consoles.
    sleep 0.3
    if [ "$1" = reboot ]; then reboot -f; else poweroff -f; fi
    # A machine that cannot switch itself off is switched off by its BMC.
    while :; do sleep 3600; done
}
