// What the global configuration says of this partition beside who it is: rules, and subnets. Its document counts before the settings of its server; what the document
// leaves out the server says, and subnets that it does not name are the partition's own.
import type { Caller } from '@muster/shared/contract/call'
import { centralRules, type PartitionStatus } from '@muster/shared/contract/partitions'
import type { DescribedSubnet } from '@muster/shared/contract/subnets'
import { errorTable, Refusal, wrongFields } from '@muster/shared/errors'
import type { PartitionSettings } from '@muster/shared/global/documents'
import { bitsOf } from '@muster/shared/network'
import { refusalOfDatabase } from '../db/connect.ts'
import { findSubnet, type SubnetRow } from '../db/subnets.ts'
import { isSameNetwork, putSubnet, putSubnets } from './addresses.ts'
import type { Core, Rules } from './core.ts'

/** The rules that hold: the server's, and before them the document's. */
export function rulesWith(own: Rules, said: PartitionSettings | undefined): Rules {
  const { erase = own.erase, enlisted = own.enlisted, enlistedMost = own.enlistedMost } = said ?? {}
  return { ...own, erase, enlisted, enlistedMost }
}

/** The same for people: what holds, and who says so. */
export function rulesView({ rules, ...core }: CentralCore): NonNullable<PartitionStatus['rules']> {
  const said = settingsHere(core)
  return centralRules.map(rule => ({ rule, value: String(rules[rule]), from: said?.[rule] === undefined ? 'server' : 'document' }))
}

type CentralCore = Pick<Core, 'configuration' | 'partition' | 'rules'>

function settingsHere({ configuration, partition }: Pick<Core, 'configuration' | 'partition'>): PartitionSettings | undefined {
  return configuration.content?.documents.partition[partition]
}

/** Throws invalid-input where a subnet is described by this partition's document, which a partition does not change. */
export function refuseCentralSubnet(core: Core, name: string): void {
  if (!Object.hasOwn(settingsHere(core)?.subnets ?? {}, name)) return
  const message = `the subnet ${name} is described by the document of partition ${core.partition} in the global configuration; change it there: muster config set`
  throw wrongFields([{ field: 'name', message }])
}

/** Whether a subnet is as it is described. */
export function isAsDescribed(row: Omit<SubnetRow, 'name' | 'used'>, wanted: DescribedSubnet): boolean {
  return (
    isSameNetwork(row.cidr, wanted.cidr) &&
    row.vlan === wanted.vlan &&
    row.description === wanted.description &&
    sameAddresses([row.gateway], [wanted.gateway]) &&
    sameAddresses(row.nameservers, wanted.nameservers) &&
    rangesText(row.reserved) === rangesText(wanted.reserved) &&
    rangesText(row.dynamic) === rangesText(wanted.dynamic ?? [])
  )
}

function sameAddresses(one: readonly (string | null)[], other: readonly (string | null)[]): boolean {
  const text = (addresses: typeof one) => addresses.map(address => address && bitsOf(address)).join()
  return one.length === other.length && text(one) === text(other)
}

function rangesText(ranges: SubnetRow['reserved']): string {
  return JSON.stringify(
    ranges.map(({ from, to, note }) => [bitsOf(from), bitsOf(to), note]).sort(([one = ''], [other = '']) => (one < other ? -1 : 1)),
  )
}

/** In whose name subnets are put. */
const itself: Caller = { name: 'configuration', role: 'admin' }

/** Makes the subnets that the document names, as it describes them. None is ever deleted: one that the document names no more is the partition's own again. */
export class CentralSubnets {
  readonly #core: Core
  #problems: readonly string[] = []

  constructor(core: Core) {
    this.#core = core
  }

  /** Which subnets are not as the document says, and why, in words. */
  get problems(): readonly string[] {
    return this.#problems
  }

  /** One look at all of them: again as long as a change may have made room for another. */
  async look(): Promise<'idle'> {
    const wanted = settingsHere(this.#core)?.subnets ?? {}
    let pass = await this.#pass(wanted)
    for (let more = Object.keys(wanted).length; more > 0 && pass.refused.size > 0; more--) {
      if (pass.changes === 0 && !(await this.#exchange(wanted, pass.refused))) break
      pass = await this.#pass(wanted)
    }
    const problems = [...pass.refused.values()].map(({ message }) => message).map(problemText)
    for (const problem of problems) if (!this.#problems.includes(problem)) this.#core.log.warn({}, problem)
    this.#problems = problems
    return 'idle'
  }

  async #pass(wanted: Readonly<Record<string, DescribedSubnet>>): Promise<{ changes: number; refused: Map<string, Refusal> }> {
    const refused = new Map<string, Refusal>()
    let changes = 0
    for (const [name, subnet] of Object.entries(wanted)) {
      const row = await findSubnet(this.#core.sql, name)
      if (row && isAsDescribed(row, subnet)) continue
      const refusal = await refusalOf(putSubnet(this.#core, itself, putOf(name, subnet)))
      if (refusal) {
        refused.set(name, refusal)
        continue
      }
      changes++
      this.#core.log.info({ subnet: name }, 'a subnet is as the global configuration says')
    }
    return { changes, refused }
  }

  /** Subnets that are in nobody's way but each other's change places in one go. Whether they did. */
  async #exchange(wanted: Readonly<Record<string, DescribedSubnet>>, refused: ReadonlyMap<string, Refusal>): Promise<boolean> {
    const names = inEachOthersWay(refused)
    if (names.length < 2) return false
    const inputs = names.map(name => putOf(name, wanted[name] as DescribedSubnet))
    if (await refusalOf(putSubnets(this.#core, itself, inputs))) return false
    this.#core.log.info({ subnets: names }, 'subnets have changed places, as the global configuration says')
    return true
  }
}

/** A document describes a subnet whole: what it leaves out is not there. */
const putOf = (name: string, { dynamic = [], ...subnet }: DescribedSubnet) => ({ name, ...subnet, dynamic })

const problemText = (message: string) => `the global configuration describes a subnet that cannot be so here: ${message}`

/** What is said against it; undefined: nothing. Throws what passes and says nothing of the subnet: the loop tries again. */
async function refusalOf(put: Promise<unknown>): Promise<Refusal | undefined> {
  try {
    await put
    return undefined
  } catch (thrown) {
    const error = refusalOfDatabase(thrown)
    if (!(error instanceof Refusal) || errorTable[error.code].retryable === 'yes') throw error
    return error
  }
}

/** Of those that were refused, the ones that overlap such others only. */
function inEachOthersWay(refused: ReadonlyMap<string, Refusal>): string[] {
  let names = [...refused.keys()]
  for (;;) {
    const left = names.filter(name => {
      const { code, facts } = refused.get(name) as Refusal
      return code === 'already-exists' && (facts.subnets as string[]).every(other => names.includes(other))
    })
    if (left.length === names.length) return left
    names = left
  }
}
