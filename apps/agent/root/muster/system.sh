# A system out of a root tarball: unpacked onto its layout, told of its disks, and given a loader. The loader is Muster's own GRUB, for BIOS and UEFI, which
# reads every file system, mirror and volume that a layout may have, and then the system's own grub.cfg.
GRUB=/muster/grub

# Unpacks the standard input below /run/target. What comes after an error is read and lost, so that the digest of all of it is known.
# By its path: busybox's shell prefers busybox's own tar, which knows neither extended attributes nor ACLs.
put_tree() {
    /bin/tar --extract --file=- --directory=/run/target --numeric-owner --preserve-permissions --acls --xattrs --xattrs-include='*' 2>/run/put && : >/run/is-put
    cat >/dev/null
}

finish_system() {
    [ -d /run/target/etc ] || fail write 'the tarball holds no /etc: it is no root file system'
    kernel=$(find /run/target/boot -maxdepth 1 -name 'vmlinuz-*' 2>/dev/null | sed 's,.*/vmlinuz-,,' | sort -V | tail -n 1)
    [ -n "$kernel" ] || fail boot 'the tarball holds no kernel: there is no /boot/vmlinuz-…'
    stand seed 'writing the seed of the first boot' 92
    write_fstab
    seed_into /run/target/etc
    stand boot 'writing the boot loader' 95
    prepare_for_layout
    write_menu
    for id in $(planned boot); do write_loader "$id"; done
    for path in $(planned mount | cut -d' ' -f3); do
        sync -f "/run/target$path" 2>/run/tool || fail boot "write the new system to its disks: $(tr '\n' ' ' </run/tool)"
    done
    leave_layout || fail boot "the new system could not be unmounted: $(tr '\n' ' ' </run/tool)"
    mark_disks
}

uuid_of() { blkid -c /dev/null -o value -s UUID "$(device "$1")"; }

# The device of the file system that holds this path, which is a mount point or the root.
holder_of() { planned mount | awk -v path="$1" '$3 == path { found = $1 } $3 == "/" && !found { root = $1 } END { print found ? found : root }'; }

write_fstab() {
    first=$(planned boot | head -n 1)
    mkdir -p /run/target/boot/efi
    {
        echo '# Written by Muster, from the layout of its disks.'
        planned mount | while read -r part type path options; do
            case $type$path in ext4/) pass=1 ;; ext4* | vfat*) pass=2 ;; *) pass=0 ;; esac
            echo "UUID=$(uuid_of "$part") $path $type $options 0 $pass"
        done
        # Of two loaders only one can be mounted here; a system whose first disk is dead comes up without.
        echo "UUID=$(uuid_of "part:$first:2") /boot/efi vfat umask=0077,nofail 0 2"
        planned swap | while read -r part; do echo "UUID=$(uuid_of "$part") none swap sw 0 0"; done
    } >/run/fstab
    ! grep -q '^UUID= ' /run/fstab || fail boot "a file system has no UUID: $(grep '^UUID= ' /run/fstab | tr '\n' ';')"
    keep /run/fstab /etc/fstab
}

# keep FILE PATH: what was made in memory, onto the new system.
keep() { cp "$1" "/run/target$2" 2>/run/tool || fail boot "write $2: $(tr '\n' ' ' </run/tool)"; }

# in_target COMMAND…: as the new system's root, with what its tools look at. What it wrote is in /run/chroot; /run/late is there where it took too long. It
# ends with all that it started: what is left would hold the new system's disks.
in_target() {
    rm -f /run/late
    for name in dev proc sys; do
        mkdir -p "/run/target/$name" 2>/run/chroot && mount -o bind "/$name" "/run/target/$name" 2>/run/chroot || { leave_target; return 1; }
    done
    setsid chroot /run/target /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root DEBIAN_FRONTEND=noninteractive "$@" \
        </dev/null >/run/chroot 2>&1 3<&- &
    pid=$!
    later "$TOOL_SECONDS" ": >/run/late; kill -TERM -$pid; sleep 5; kill -KILL -$pid"
    wait $pid 2>/dev/null
    ended=$?
    not_later
    kill -KILL -$pid 2>/dev/null
    leave_target
    return $ended
}

leave_target() {
    for name in sys proc dev; do
        ! grep -q " /run/target/$name " /proc/mounts || umount "/run/target/$name" 2>/dev/null || umount -l "/run/target/$name"
    done
}

# What the last tool in the new system said, and whether it was ended.
words_in_target() { echo "$([ ! -e /run/late ] || echo "it took longer than $TOOL_SECONDS s; it wrote last: ")$(tail -n 4 /run/chroot | tr '\n' ' ')"; }

# Its memory image finds mirrors and volumes only if it knows of them and has the tools within.
prepare_for_layout() {
    needs=''
    if [ -n "$(planned mirror)" ]; then
        needs=mdadm
        mkdir -p /run/target/etc/mdadm
        { echo 'HOMEHOST <system>' && mdadm --detail --scan; } >/run/mdadm.conf 2>/run/tool || fail boot "mdadm does not say what it made: $(tail -n 1 /run/tool)"
        keep /run/mdadm.conf /etc/mdadm/mdadm.conf
    fi
    [ -z "$(planned group)" ] || needs="$needs lvm"
    for tool in $needs; do
        [ -x "/run/target/usr/sbin/$tool" ] || [ -x "/run/target/sbin/$tool" ] || fail boot "the system in the tarball has no $tool, which its layout needs"
    done
    [ -n "$needs" ] && [ -x /run/target/usr/sbin/update-initramfs ] || return 0
    # One with LVM within finds every group, whichever machine it is on; of mirrors it has to be told.
    [ -n "$(planned mirror)" ] || ! in_target sh -c 'for image in /boot/initrd.img-*; do lsinitramfs "$image" | grep -q "sbin/lvm$" || exit 1; done' || return 0
    in_target update-initramfs -u -k all || fail boot "update-initramfs in the new system: $(words_in_target)"
}

# The system's own tool where it has one, so that a later kernel gets the same; else one entry for the latest kernel.
write_menu() {
    mkdir -p /run/target/boot/grub
    if [ -x /run/target/usr/sbin/grub-mkconfig ]; then
        # It names the root by UUID only where udev has a link.
        mkdir -p /dev/disk/by-uuid
        ln -sf "$(device "$(holder_of /)")" "/dev/disk/by-uuid/$(uuid_of "$(holder_of /)")"
        in_target grub-mkconfig -o /boot/grub/grub.cfg && return
        # One that hangs has said nothing of what it would have needed, and what is stuck may hold the disks.
        [ ! -e /run/late ] || fail boot "grub-mkconfig in the new system: $(words_in_target)"
        say "grub-mkconfig in the new system: $(tail -n 1 /run/chroot); it gets one entry instead"
    fi
    prefix=/boot initrd=''
    [ "$(holder_of /boot)" = "$(holder_of /)" ] || prefix=''
    for name in "initrd.img-$kernel" "initramfs-$kernel.img"; do [ ! -e "/run/target/boot/$name" ] || initrd=$name; done
    {
        echo 'set timeout=1'
        echo "menuentry '$(jq -r .os /run/job)' {"
        echo "  linux $prefix/vmlinuz-$kernel root=UUID=$(uuid_of "$(holder_of /)") ro $(tr ' ' '\n' </proc/cmdline | grep '^console=' | tr '\n' ' ')"
        [ -z "$initrd" ] || echo "  initrd $prefix/$initrd"
        echo '}'
    } >/run/menu
    keep /run/menu /boot/grub/grub.cfg
}

# write_loader DISK: its first sector finds the core at the start of the first partition; the core, and the one for UEFI, read a line in the second one.
write_loader() {
    target=$(disk_called "$1")
    holder=$(holder_of /boot) folder=/boot/grub
    [ "$holder" = "$(holder_of /)" ] || folder=/grub
    # Architectures without BIOS have none.
    [ ! -e $GRUB/core.img ] ||
        { dd if=$GRUB/boot.img of="/dev/$target" bs=440 count=1 conv=notrunc && dd if=$GRUB/core.img of="$(device "part:$1:1")" conv=notrunc; } 2>/run/tool ||
        fail boot "write the loader to /dev/$target: $(tr '\n' ' ' </run/tool)"
    mkdir -p /run/efi
    stored "mount the EFI system partition of /dev/$target" mount -t vfat "$(device "part:$1:2")" /run/efi
    { fill_efi && sync -f /run/efi && umount /run/efi; } 2>/run/tool || fail boot "write the EFI system partition of /dev/$target: $(tr '\n' ' ' </run/tool)"
}

fill_efi() {
    mkdir -p /run/efi/EFI/BOOT /run/efi/muster &&
        cp $GRUB/BOOT*.EFI /run/efi/EFI/BOOT/ &&
        printf 'search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)%s\nconfigfile $prefix/grub.cfg\n' "$(uuid_of "$holder")" "$folder" >/run/efi/muster/grub.cfg
}
