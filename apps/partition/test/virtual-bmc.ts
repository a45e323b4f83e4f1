// BMCs of the virtual rack for the partition's tests: real UDP, real sessions, and a history of what the machine behind them really did.
// Imported by path at run time: the rack knows the partition, not the other way round.
import { onTestFinished } from 'vitest'

export interface VirtualMachine {
  readonly power: 'on' | 'off'
  readonly bmc: {
    readonly address: string
    readonly port: number
    readonly user: string
    readonly password: string
    readonly faults: { latencyMs: number | readonly [number, number]; dropRate: number; busyRate: number; life: 'alive' | 'silent' }
    readonly counters: { readonly sessionsOpenMax: number; readonly controls: Readonly<Record<string, number>> }
  }
  readonly redfish:
    | {
        readonly url: string
        readonly certificate: { readonly fingerprint: string }
        readonly told: number
        readonly subscriptions: readonly { readonly destination: string }[]
        readonly counters: { readonly requests: number }
      }
    | undefined
  readonly history: readonly { at: number; what: string; facts: Readonly<Record<string, string | number>> }[]
  pressPower(options: { to: 'on'; boot?: 'network' } | { to: 'off' }): void
}

interface Rack {
  readonly machines: readonly VirtualMachine[]
  close(): Promise<void>
}

/** `count` machines that find nothing to boot; chassis orders take `powerEffectMs`. */
export async function startBmcs(
  count: number,
  options: { powerEffectMs?: number; speaks?: 'ipmi' | 'redfish' } = {},
  ending: (end: () => Promise<void>) => void = end => onTestFinished(end),
): Promise<readonly VirtualMachine[]> {
  const { startRack } = (await import(new URL('../../rack/src/rack.ts', import.meta.url).href)) as {
    startRack: (options: object) => Promise<Rack>
  }
  const machines = Array.from({ length: count }, (_, index) => ({
    index,
    bootUrl: 'http://127.0.0.1:9',
    bootOrder: 'disk only',
    speaks: options.speaks ?? 'ipmi',
  }))
  const rack = await startRack({ pace: 'instant', powerEffectMs: options.powerEffectMs ?? 5, machines })
  ending(() => rack.close())
  return rack.machines
}

/** What a person would type as the machine's power settings. */
export function settingsOf({ bmc }: VirtualMachine): Record<string, unknown> {
  return { address: `${bmc.address}:${bmc.port}`, user: bmc.user, password: bmc.password }
}

/** The same for its Redfish service. */
export function redfishSettingsOf({ bmc, redfish }: VirtualMachine): Record<string, unknown> {
  return { address: redfish?.url, user: bmc.user, password: bmc.password, certificate: redfish?.certificate.fingerprint }
}

/** A place in the machine's history, which forgets its oldest entries. */
export const markOf = (machine: VirtualMachine) => machine.history.at(-1)

/** What the power really did since that mark: `on` and `off`, in order. */
export function switchedSince(machine: VirtualMachine, mark: ReturnType<typeof markOf>): string[] {
  const since = mark === undefined ? 0 : machine.history.lastIndexOf(mark) + 1
  return machine.history.slice(since).flatMap(({ what }) => (what === 'power on' ? ['on'] : what === 'power off' ? ['off'] : []))
}
