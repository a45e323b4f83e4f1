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
import { isSameNetwork, putSubnet } from './addresses.ts'
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
    rangesText(row.reserved) === rangesText(wanted.reserved)
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
    const wanted = Object.entries(settingsHere(this.#core)?.subnets ?? {})
    let pass = await this.#pass(wanted)
    for (let more = wanted.length; more > 0 && pass.changes > 0 && pass.problems.length > 0; more--) pass = await this.#pass(wanted)
    for (const problem of pass.problems) if (!this.#problems.includes(problem)) this.#core.log.warn({}, problem)
    this.#problems = pass.problems
    return 'idle'
  }

  async #pass(wanted: readonly (readonly [string, DescribedSubnet])[]): Promise<{ changes: number; problems: string[] }> {
    const problems: string[] = []
    let changes = 0
    for (const [name, subnet] of wanted) {
      const row = await findSubnet(this.#core.sql, name)
      if (row && isAsDescribed(row, subnet)) continue
      try {
        await putSubnet(this.#core, itself, { name, ...subnet })
        changes++
        this.#core.log.info({ subnet: name }, 'a subnet is as the global configuration says')
      } catch (thrown) {
        const error = refusalOfDatabase(thrown)
        // One that passes says nothing of the subnet: the loop tries again.
        if (!(error instanceof Refusal) || errorTable[error.code].retryable === 'yes') throw error
        problems.push(`the global configuration describes a subnet that cannot be so here: ${error.message}`)
      }
    }
    return { changes, problems }
  }
}
