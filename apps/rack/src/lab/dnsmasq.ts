// DHCP and TFTP on the lab's switch, by dnsmasq: which loader a firmware gets, and which script iPXE then asks for.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, mkdirSync, openSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { deathTie } from '@muster/embedded/death-tie'
import { lan } from './place.ts'

/** Debian's package ipxe. */
const loaders = { bios: '/usr/lib/ipxe/undionly.kpxe', uefi: '/usr/lib/ipxe/snponly.efi' } as const

/** Starts it. Answers how to stop it. Throws where it ends at once. */
export async function startDnsmasq({ folder, bootUrl }: { folder: string; bootUrl: string }): Promise<() => Promise<void>> {
  const tftp = path.join(folder, 'tftp')
  mkdirSync(tftp, { recursive: true })
  for (const file of Object.values(loaders)) copyFileSync(file, path.join(tftp, path.basename(file)))
  const config = path.join(folder, 'dnsmasq.conf')
  writeFileSync(config, dnsmasqConfig({ folder, tftp, bootUrl }))
  const log = openSync(path.join(folder, 'dnsmasq.log'), 'a')
  const [program, ...args] = [...deathTie('TERM'), 'dnsmasq', '--keep-in-foreground', `--conf-file=${config}`]
  const child: ChildProcess = spawn(program as string, args, { stdio: ['ignore', log, log] })
  const early = await Promise.race([once(child, 'exit'), sleep(500)])
  if (early) throw new Error(`dnsmasq ended at once; its log is ${path.join(folder, 'dnsmasq.log')}`)
  return async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  }
}

const dnsmasqConfig = ({ folder, tftp, bootUrl }: { folder: string; tftp: string; bootUrl: string }) => `port=0
interface=${lan.bridge}
bind-interfaces
user=root
log-dhcp
log-facility=-
dhcp-leasefile=${path.join(folder, 'leases')}
dhcp-range=${lan.dynamic.from},${lan.dynamic.to},10m
enable-tftp
tftp-root=${tftp}
dhcp-match=set:ipxe,175
dhcp-match=set:bios,option:client-arch,0
dhcp-match=set:efi64,option:client-arch,7
dhcp-match=set:efi64,option:client-arch,9
dhcp-boot=tag:!ipxe,tag:bios,${path.basename(loaders.bios)}
dhcp-boot=tag:!ipxe,tag:efi64,${path.basename(loaders.uefi)}
dhcp-boot=tag:ipxe,${bootUrl}/boot/ipxe/\${net0/mac}
dhcp-option=tag:ipxe,175,b0:01:01
`
