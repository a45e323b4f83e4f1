// Scripts as a machine that is not there runs them: each that concerns it, on each of its parts, with results such as a healthy machine has. What a script
// of a partition's own would do nobody here knows: it passes.
import type { Inventory } from '@muster/shared/agent'
import type { JobScript, ScriptResult } from '@muster/shared/scripts'

/** What a script is run on, and the disk of it where it is one. */
export interface Part {
  readonly name: string
  readonly disk?: Inventory['disks'][number]
}

/** The parts of the machine that a script runs on, or why on none. */
export function partsFor(script: JobScript, inventory: Inventory): readonly Part[] | { skipped: string } {
  const { vendor, diskKinds } = script.only
  const maker = String((inventory.facts.dmi as { systemVendor?: string } | undefined)?.systemVendor ?? '')
  if (vendor !== undefined && !maker.toLowerCase().includes(vendor.toLowerCase()))
    return { skipped: `the system is made by ${maker}, not ${vendor}` }
  if (script.on === 'machine') return [{ name: '' }]
  if (script.on === 'interface') return inventory.interfaces.map(({ name }) => ({ name }))
  const disks = inventory.disks.filter(({ kind }) => diskKinds?.includes(kind) ?? true)
  return disks.length > 0 ? disks.map(disk => ({ name: disk.name, disk })) : { skipped: 'the machine has no such disk' }
}

const mibPerSecond = { hdd: 210, ssd: 530, nvme: 3_100 } as const

const found: Readonly<Record<string, (inventory: Inventory, part: Part) => Record<string, unknown>>> = {
  cpu: ({ cpus }) => ({ cpus, wrong: 0 }),
  memory: ({ memoryMib }) => ({ testedMib: Math.floor(memoryMib * 0.8), patterns: 4, wrong: 0 }),
  'disk-health': () => ({ healthy: true, wearPercent: 1, temperatureC: 31 }),
  'disk-speed': (_, { disk }) => ({ mibPerSecond: mibPerSecond[disk?.kind ?? 'ssd'] }),
  network: ({ interfaces }, { name }) => ({
    speedMbps: interfaces.find(port => port.name === name)?.speedMbps ?? 0,
    reached: true,
    lossPercent: 0,
    latencyMs: 0.2,
  }),
}

/** What is told of a script on a part. */
export function simulatedResult(
  script: JobScript,
  part: Part,
  { inventory, ends }: { inventory: Inventory; ends: 'well' | 'badly' },
): ScriptResult {
  const common = { script: script.name, part: part.name, seconds: 1 }
  if (ends === 'badly') {
    const message = `simulated: ${part.disk ? `SMART overall health of ${part.name} is FAILED` : 'an error was found'}`
    return { ...common, status: 'failed', exitCode: 1, message, output: `${script.name} ran\n${message}\n`, result: { healthy: false } }
  }
  const result = script.text === null ? (found[script.name]?.(inventory, part) ?? null) : null
  return { ...common, status: 'passed', exitCode: 0, message: '', output: `${script.name} ran, simulated\n`, result }
}
