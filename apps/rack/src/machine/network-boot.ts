// Booting from the network as far as the kernel: asks the partition for this MAC's script and follows it.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Boot } from './boot.ts'
import { fewAttempts } from './http.ts'
import { type IpxeHost, runIpxe } from './ipxe.ts'

export type NetworkBoot =
  | { kind: 'kernel'; arguments: ReadonlyMap<string, string> }
  | { kind: 'disk' }
  | { kind: 'reboot' }
  | { kind: 'power-off' }
  | { kind: 'waits'; command: string }
  /** Nothing came of it: the firmware tries its next device. */
  | { kind: 'failed'; reason: string }

const shortestSleepMs = 100

/** Fetches and runs the script at `{bootUrl}/boot/ipxe/<mac>`. Rejects only when the power goes. */
export async function networkBoot(boot: Boot): Promise<NetworkBoot> {
  boot.enter('network boot')
  const url = `${boot.bootUrl.replace(/\/+$/, '')}/boot/ipxe/${boot.facts.bootMac}`
  try {
    const text = await fetchText(boot, url)
    boot.note('script', { url, bytes: text.length })
    const outcome = await runIpxe({ text, url }, hostOf(boot))
    if (outcome.kind !== 'kernel') return outcome
    boot.note('kernel', { url: outcome.url, arguments: outcome.arguments })
    return { kind: 'kernel', arguments: kernelArgumentsOf(outcome.arguments) }
  } catch (error) {
    if (!(error instanceof Error) || error.name !== 'HttpFailure') throw error
    return { kind: 'failed', reason: error.message }
  }
}

/** `a=1 b c=x=y` → a: 1, b: '', c: x=y. The last of equal names counts, as in the kernel. */
export function kernelArgumentsOf(line: string): ReadonlyMap<string, string> {
  const words = line.split(/\s+/).filter(word => word !== '')
  return new Map(
    words.map(word => {
      const at = word.indexOf('=')
      return at < 0 ? [word, ''] : [word.slice(0, at), word.slice(at + 1)]
    }),
  )
}

async function fetchText(boot: Boot, url: string): Promise<string> {
  const { body } = await boot.http.ask({ url, attempts: fewAttempts, signal: boot.signal })
  return body.toString('utf8')
}

function hostOf(boot: Boot): IpxeHost {
  return {
    settings: settingsOf(boot),
    fetchScript: async url => await fetchText(boot, url),
    fetchFile: async url => {
      await boot.http.retrying({ attempts: fewAttempts, signal: boot.signal }, async () => {
        let bytes = 0
        await boot.http.download({ url, signal: boot.signal }, chunk => {
          bytes += chunk.length
          return bytes >= boot.bootFileMax ? 'stop' : 'more'
        })
      })
    },
    sleep: async seconds => {
      await boot.pacer.wait(seconds * 1000, boot.signal)
      // A script sleeps because it waits for a server, and that is not as quick as we are.
      if (boot.pacer.pace !== 'real') await sleep(Math.min(seconds * 1000, shortestSleepMs), undefined, { signal: boot.signal })
    },
    note: line => boot.note('console', { line }),
  }
}

/** What iPXE knows of the machine, under the names scripts use. */
function settingsOf({ facts, name, inventory, bootUrl }: Boot): Record<string, string> {
  const [first] = inventory.interfaces
  const legacy = inventory.facts.firmware === 'legacy'
  const settings: Record<string, string> = {
    mac: facts.bootMac,
    ip: first?.ip ?? '',
    uuid: facts.uuid,
    serial: facts.serial,
    hostname: name,
    manufacturer: 'Muster Virtual Rack',
    buildarch: inventory.arch === 'arm64' ? 'arm64' : legacy ? 'i386' : 'x86_64',
    platform: legacy ? 'pcbios' : 'efi',
    'next-server': URL.parse(bootUrl)?.hostname ?? '',
    'net0/mac': facts.bootMac,
    'net0/ip': first?.ip ?? '',
    netX: 'net0',
    'netX/mac': facts.bootMac,
  }
  for (const [at, port] of inventory.interfaces.entries()) settings[`net${at}/mac`] = port.mac
  return settings
}
