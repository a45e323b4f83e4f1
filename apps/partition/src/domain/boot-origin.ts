// Who is given a machine's boot script with its token, and who may use that token as its agent. Firmware has no secret to show; what it has is its
// address: where our DHCP gives addresses, it must be the one that was given to the machine, and in any case a task of a machine is for one address.
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Together } from '@muster/database/together'
import { nobody } from '@muster/shared/contract/call'
import { isInNetwork } from '@muster/shared/network'
import { reservedFor } from '../db/addresses.ts'
import { type BootClaim, claimBoots, holderOfBoot, noteRefusedOrigin, type RefusedOrigin } from '../db/boots.ts'
import type { MachineRow } from '../db/machines.ts'
import type { Core } from './core.ts'
import { StrangeToken } from './machine-token.ts'

/** What is done with who asks from a network where our DHCP gives no addresses: the first who asks is believed; or who has its address reserved; or nobody. */
export const bootTrusts = ['any', 'reserved', 'none'] as const

export interface OriginRules {
  /** Networks, with prefix length, where this partition's DHCP gives the addresses; others with other ranges. */
  served: readonly string[]
  trust: (typeof bootTrusts)[number]
  /** Reverse proxies whose X-Forwarded-For is believed. */
  proxies: readonly string[]
}

/** What is weak about these rules, in words. */
export function weaknessesOf({ served, trust }: OriginRules): string[] {
  if (trust !== 'any') return []
  const where = served.length === 0 ? '' : ' from outside of the networks where this partition gives the addresses'
  return [
    `whoever asks first${where} with the MAC address of a machine at work is given its boot script and can speak in its name (MUSTER_BOOT_TRUST=any)`,
  ]
}

/** Where a request began. `peer`: the other end of the connection; `forwarded`: its X-Forwarded-For, to which each proxy appends whom it was asked by. */
export function originOf(peer: string, forwarded: string | undefined, proxies: readonly string[]): string {
  const path = [...(forwarded ?? '').split(',').map(text => plainAddress(text.trim())), plainAddress(peer)]
  const first = path.findLastIndex(address => !proxies.includes(address))
  const origin = path[first]
  // A proxy that says nothing of whom it was asked by is the origin itself.
  return origin !== undefined && isIP(origin) !== 0 ? origin : plainAddress(peer)
}

/** A socket for both versions of IP writes those of version 4 as `::ffff:10.0.0.5`. */
const plainAddress = (text: string) => text.replace(/^::ffff:(?=\d+\.)/i, '')

/** A lease is in dnsmasq's file before its machine hears of it, but the file is written anew in place, and another replica's comes over the database. */
const leaseTries = { times: 4, everyMs: 100 }
/** An agent is asked about again after so long, and so many are remembered: it speaks every few seconds, and the answer is the same. */
const heard = { forMs: 60_000, most: 10_000 }
/** Refusals of one machine are one event in so long, and those of all so many. */
const refusals = { everyMs: 60_000, most: 60 }

export type LeaseReader = (macs: readonly string[]) => Promise<(readonly string[])[]>

type Claimed = { kind: 'claimed' } | { kind: 'over' } | { kind: 'taken'; by: string }

/**
 * Each claim's outcome, in their order. Several of one machine at once are carried out one after the other: a statement changes a row once.
 * `taken`: the script went to another address in this task of the machine. `over`: so is the run.
 */
export async function claimAll({ sql }: Pick<Core, 'sql'>, claims: readonly BootClaim[]): Promise<Claimed[]> {
  const outcomes: Claimed[] = claims.map(() => ({ kind: 'over' }))
  let left = claims.map((claim, index) => ({ claim, index }))
  while (left.length > 0) {
    const firsts = new Map(left.toReversed().map(each => [each.claim.id, each]))
    for (const { id, is_claimed, holder } of await claimBoots(
      sql,
      [...firsts.values()].map(({ claim }) => claim),
    )) {
      const { index } = firsts.get(id) as { index: number }
      if (is_claimed) outcomes[index] = { kind: 'claimed' }
      else if (holder !== null) outcomes[index] = { kind: 'taken', by: holder }
    }
    left = left.filter(({ claim, index }) => firsts.get(claim.id)?.index !== index)
  }
  return outcomes
}

export class BootOrigins {
  readonly #core: Core
  readonly #rules: OriginRules
  /** A herd shares a few readings of the leases, and a few statements. */
  readonly #leases: Together<string, readonly string[]>
  readonly #claims: Together<BootClaim, Claimed>
  readonly #refused = new Map<string, { at: number; times: number }>()
  /** By machine: the address its agent speaks from in a task. */
  readonly #heard = new Map<string, { task: string; address: string; at: number }>()

  /** `leased`: for each of these MAC addresses, those that DHCP has given to it. */
  constructor(core: Core, rules: OriginRules, leased: LeaseReader) {
    this.#core = core
    this.#rules = rules
    this.#leases = new Together(leased)
    this.#claims = new Together(claims => claimAll(core, claims))
  }

  get proxies(): readonly string[] {
    return this.#rules.proxies
  }

  /** Whether who asks from this address is given the machine's token; why not, in words for the machine's console. */
  async grant(asked: {
    id: string
    run: string
    mac: string
    address: string
  }): Promise<{ kind: 'granted' } | { kind: 'refused'; because: string }> {
    const { id, run, mac, address } = asked
    const rule = this.#isServed(address) ? 'leased' : this.#rules.trust
    if (rule === 'none')
      return this.#refuse(asked, 'it is in no network where this partition gives the addresses', 'this network is not trusted')
    const given = rule === 'any' ? null : rule === 'leased' ? await this.#leasedTo([mac], address) : await this.#reservedTo([mac])
    if (given && !given.includes(address))
      return this.#refuse(
        asked,
        `${given.length === 0 ? 'no address' : given.join(', ')} is ${rule === 'leased' ? 'given by DHCP' : 'reserved'} to ${mac}`,
        'this is not the address of the machine',
      )
    const claim = await this.#claims.add({ id, run, address, given })
    if (claim.kind === 'claimed') return { kind: 'granted' }
    if (claim.kind === 'over') return { kind: 'refused', because: 'its task is over' }
    return this.#refuse(asked, `${claim.by} has been given it already`, 'another one has been given the work of this machine')
  }

  /**
   * Whether who comes with the agent's token of this machine may speak for it: from the address that has its script, or from one that is its own by now.
   * Where nobody knows whose an address is (trust `any`), the token alone counts. Throws forbidden.
   */
  async checkAgent(machine: MachineRow & { run: string }, address: string): Promise<void> {
    const { id, run } = machine
    const now = Date.now()
    const task = `${run} ${machine.state_since.getTime()}`
    const known = this.#heard.get(id)
    if (known?.task === task && known.address === address && now - known.at < heard.forMs) return
    const why = await this.#whyNoAgent(machine, address)
    if (why === undefined) {
      this.#heard.delete(id)
      if (this.#heard.size >= heard.most) this.#heard.delete(this.#heard.keys().next().value as string)
      this.#heard.set(id, { task, address, at: now })
      return
    }
    await this.#tell({ kind: 'machine.agent-refused', id, address, why, text: `the agent of ${id} is not heard from ${address}: ${why}` })
    throw new StrangeToken('forbidden', 'this is not the address of the machine that the token was given to')
  }

  async #whyNoAgent({ id, run, interfaces }: MachineRow & { run: string }, address: string): Promise<string | undefined> {
    const holder = await holderOfBoot(this.#core.sql, { id, run })
    if (holder === address) return undefined
    const macs = interfaces.map(({ mac }) => mac)
    const rule = this.#isServed(address) ? 'leased' : this.#rules.trust
    if (rule === 'leased' || rule === 'reserved') {
      const own = rule === 'leased' ? await this.#leasedTo(macs, address) : await this.#reservedTo(macs)
      if (own.includes(address)) return undefined
    } else if (rule === 'any' && (holder === undefined || !this.#isServed(holder))) return undefined
    return holder === undefined ? 'its boot script was given to nobody' : `its boot script was given to ${holder}`
  }

  #isServed(address: string): boolean {
    return this.#rules.served.some(cidr => isInNetwork(cidr, address))
  }

  /** What is leased to any of these; looked for again where the address is not among it. */
  async #leasedTo(macs: readonly string[], address: string): Promise<readonly string[]> {
    let found: readonly string[] = []
    for (let attempt = 1; attempt <= leaseTries.times && !found.includes(address); attempt++) {
      if (attempt > 1) await sleep(leaseTries.everyMs)
      found = (await Promise.all(macs.map(mac => this.#leases.add(mac)))).flat()
    }
    return found
  }

  async #reservedTo(macs: readonly string[]): Promise<string[]> {
    return (await Promise.all(macs.map(mac => reservedFor(this.#core.sql, mac)))).flat().map(({ address }) => address)
  }

  async #refuse(
    { id, mac, address }: { id: string; mac: string; address: string },
    why: string,
    because: string,
  ): Promise<{ kind: 'refused'; because: string }> {
    this.#core.audit.refused({ call: 'boot', caller: nobody, from: address, code: 'forbidden', reason: because })
    const text = `the boot script of ${id} is not given to ${address}: ${why}`
    await this.#tell({ kind: 'machine.boot-refused', id, mac, address, why, text })
    return { kind: 'refused', because }
  }

  /** A refusal as an event of the machine, and in the log. */
  async #tell({ kind, id, text, ...facts }: { kind: RefusedOrigin; id: string; mac?: string; address: string; why: string; text: string }) {
    const now = Date.now()
    const key = `${kind} ${id}`
    for (const [known, { at }] of this.#refused) if (now - at >= refusals.everyMs * 2) this.#refused.delete(known)
    const before = this.#refused.get(key)
    if (before && now - before.at < refusals.everyMs) {
      before.times++
      return
    }
    const recent = [...this.#refused.values()].filter(({ at }) => now - at < refusals.everyMs).length
    if (recent >= refusals.most) return
    // Those since the last event, this one included.
    const times = (before?.times ?? 0) + 1
    this.#refused.set(key, { at: now, times: 0 })
    this.#core.log.warn({ machine: id, ...facts, times }, text)
    await noteRefusedOrigin(this.#core.sql, { kind, machine: id, data: { ...facts, times } })
    this.#core.bells.log.ring()
  }
}
