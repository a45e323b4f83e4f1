// What the lab needs beside Node, and the Debian package that brings it.
import { existsSync } from 'node:fs'
import path from 'node:path'
import { findProgram } from '@muster/embedded/find-program'

const needs: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  '/usr/share/OVMF/OVMF_CODE_4M.fd': 'ovmf',
  '/usr/lib/ipxe/qemu/pxe-virtio.rom': 'ipxe-qemu',
  '/usr/lib/ipxe/snponly.efi': 'ipxe',
  dnsmasq: 'dnsmasq-base',
  mmdebstrap: 'mmdebstrap',
  'mkfs.ext4': 'e2fsprogs',
  'mkfs.vfat': 'dosfstools',
  mcopy: 'mtools',
  sfdisk: 'fdisk',
  'grub-mkimage': 'grub-common',
  '/usr/lib/grub/i386-pc/boot.img': 'grub-pc-bin',
  '/usr/lib/grub/x86_64-efi/moddep.lst': 'grub-efi-amd64-bin',
  zstd: 'zstd',
  cpio: 'cpio',
  depmod: 'kmod',
  ip: 'iproute2',
  unshare: 'util-linux',
  'ssh-keygen': 'openssh-client',
}

/** Why the lab cannot run here and what to do about it; undefined where it can. */
export function whyNoLab(): string | undefined {
  if (process.getuid?.() !== 0) return 'it makes name spaces and disks, and needs root'
  const isHere = (name: string) => (path.isAbsolute(name) ? existsSync(name) : findProgram(name) !== undefined)
  const packages = Object.entries(needs).flatMap(([name, from]) => (isHere(name) ? [] : [from]))
  return packages.length === 0 ? undefined : `missing here: apt-get install -y ${packages.join(' ')}`
}
