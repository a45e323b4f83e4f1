#!/bin/sh
# A first boot of this very system by its own cloud-init, stage by stage, in namespaces and on an overlay: nothing of it stays, nothing outside is touched.
# Wants root. Usage: unshare --mount --uts --ipc --pid --fork --kill-child first-boot.sh FOLDER < cloud-init configuration. Prints what root's home and
# the boot's log show. Only modules that touch no hardware, network or service take part.
set -eu
folder=$1
mount --make-rprivate /
mount -t tmpfs first-boot "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay first-boot -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount --bind /sys sys
mount -o remount,bind,ro sys
mount -t tmpfs run run
mount -t tmpfs dev dev
for device in null zero random urandom; do
  touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
rm -rf var/lib/cloud etc/cloud/cloud.cfg.d etc/ssh/ssh_host_* root/.ssh
mkdir -p etc/cloud/cloud.cfg.d
cat >etc/cloud/cloud.cfg <<'CONFIGURATION'
disable_root: false
network: {config: disabled}
cloud_init_modules: [write-files, set_hostname, users-groups, ssh]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-vendor, scripts-per-instance, scripts-user, ssh-authkey-fingerprints, phone-home, final-message]
system_info:
  distro: debian
  default_user: {name: root}
  paths: {cloud_dir: /var/lib/cloud/, templates_dir: /etc/cloud/templates/}
CONFIGURATION
cat >etc/cloud/cloud.cfg.d/90-muster.cfg
stage() {
  chroot . /usr/bin/cloud-init "$@" >>"$folder/output" 2>&1 || echo "cloud-init $*: exit $?" >>"$folder/output"
}
stage init --local
stage init
stage modules --mode config
stage modules --mode final
echo "hostname $(hostname)"
sed 's/^/authorized /' root/.ssh/authorized_keys 2>/dev/null || true
for file in root/*.seen; do
  [ -e "$file" ] && echo "${file#root/} $(cat "$file")"
done
sed 's/^/output /' "$folder/output"
