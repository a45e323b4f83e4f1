// Machines that misbehave, chosen by name: a spec says `slow-bmc` or `slow-bmc-2` and gets the row below. Names, not patches, because
// a name can be typed at a command line and read in a list of machines.
import type { BmcFaults } from '../bmc/faults.ts'

/** What a machine does differently. Absent fields are the healthy way. */
export interface Behaviour {
  readonly bmc?: Partial<BmcFaults>
  /** The BMC accepts "on" and nothing happens; the power button works, or it could never have enlisted. */
  readonly powerOrders?: 'on is ignored'
  /** What enlistment reports as the BMC's password. */
  readonly reportedPassword?: 'wrong'
  readonly commissioning?: 'falls silent' | 'signals failed' | 'a test fails'
  readonly install?: 'disk errors'
  readonly erase?: 'a disk refuses'
  readonly phoneHome?: 'never'
  readonly firstBoot?: 'a step fails'
}

/** The table: name → what is different. */
export const sadMachines = {
  'never-powers-on': { powerOrders: 'on is ignored' },
  'slow-bmc': { bmc: { latencyMs: [1_500, 3_000] } },
  'dies-in-commissioning': { commissioning: 'falls silent' },
  'fails-commissioning': { commissioning: 'signals failed' },
  'fails-a-test': { commissioning: 'a test fails' },
  'never-phones-home': { phoneHome: 'never' },
  'wrong-password': { reportedPassword: 'wrong' },
  'dead-bmc': { bmc: { life: 'silent' } },
  'first-boot-fails': { firstBoot: 'a step fails' },
  'bad-disk': { install: 'disk errors' },
  'erase-fails': { erase: 'a disk refuses' },
} as const satisfies Record<string, Behaviour>

export type SadName = keyof typeof sadMachines
export const sadNames = Object.keys(sadMachines) as SadName[]

/** How a machine of this name behaves; `{}` for a healthy one. A number may follow: `slow-bmc-2`. */
export function behaviourOf(name: string): Behaviour {
  const plain = name.replace(/-\d+$/, '')
  return isSadName(plain) ? sadMachines[plain] : {}
}

/** Whether the word alone, without a number, is one of the table's. */
export function isSadName(name: string): name is SadName {
  return Object.hasOwn(sadMachines, name)
}
