// What people do with one machine: create, change, look, lock, switch, and ask for moves.

import type { Caller } from '@muster/shared/contract/call'
import { mayAct } from '@muster/shared/contract/call'
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { durationMs } from '@muster/shared/duration'
import { Refusal } from '@muster/shared/errors'
import { newMachineId } from '@muster/shared/ids'
import { lifeCycle, type MoveName, outcomeOf, requestsIn } from '@muster/shared/life-cycle'
import type { ErasePolicy, Explanation, Fault, Machine, MachineDetail } from '@muster/shared/machine'
import type { ScriptChoice } from '@muster/shared/scripts'
import { joinedKeys } from '@muster/shared/ssh-key'
import { holderOfTask } from '../db/boots.ts'
import { byHand, notePower } from '../db/by-hand.ts'
import { inTransaction, isDuplicate } from '../db/connect.ts'
import { lastWork } from '../db/events.ts'
import * as db from '../db/machines.ts'
import * as power from '../db/power.ts'
import { latestRotation } from '../db/rotations.ts'
import { Bell } from './bell.ts'
import type { Core } from './core.ts'
import { replaceCandidates } from './credentials.ts'
import { erasePolicyFor, leftUnerased } from './erase.ts'
import { refuseWithoutLicence } from './licences.ts'
import { type DeploymentSecrets, readUserData, sealDeployment } from './metadata.ts'
import { deploymentOf, existingMachine, moveMachine, noteChange, refuseForeign, refuseLocked } from './move.ts'
import { networkOf, refuseUnfitNetwork } from './network-config.ts'
import { refuseUnknownPlaces } from './places.ts'
import { storedPowerSettings } from './power-settings.ts'
import { chooseScripts } from './scripts.ts'
import { recordDocuments, refuseReservedName } from './static-addresses.ts'
import { layoutFor } from './storage.ts'
import { orderViewOf, rotationViewOf, viewOf } from './view.ts'

/** An id is 29 bits of chance: with 2,000 machines two tries in a million meet a taken one. */
const idAttempts = 5

/** Adds a machine by hand. Throws already-exists where the hostname or a MAC is known. */
export async function createMachine(core: Core, caller: Caller, input: CallInput<'machines.create'>): Promise<Machine> {
  refuseUnknownPlaces(core, input)
  if (input.hostname !== undefined)
    await refuseReservedName(core.sql, input.hostname, {
      machine: null,
      mac: input.interfaces[0]?.mac ?? null,
      name: null,
      by: caller.name,
    })
  for (let attempt = 1; ; attempt++) {
    const id = newMachineId(core.partition)
    const stored = storedPowerSettings(core, id, input.powerDriver ?? null, input.powerSettings ?? {})
    try {
      const row = await db.insertMachine(
        core.sql,
        {
          id,
          hostname: input.hostname ?? id,
          arch: input.arch,
          cpus: input.cpus,
          memoryMib: input.memoryMib,
          pool: input.pool,
          zone: input.zone,
          rack: input.rack,
          tags: [...new Set(input.tags)],
          interfaces: input.interfaces,
          disks: input.disks,
          note: input.note,
          powerDriver: stored.driver,
          powerSettings: stored.settings,
          powerSecrets: stored.secrets,
        },
        { kind: 'machine.created', actor: caller.name },
      )
      noteChange(core, row)
      return viewOf(row, core.partition)
    } catch (error) {
      if (isDuplicate(error, 'machines_pkey') && attempt < idAttempts) continue
      throw duplicateRefusal(error, input.hostname)
    }
  }
}

function duplicateRefusal(error: unknown, hostname: string | undefined): unknown {
  if (isDuplicate(error, 'machines_hostname_key')) return new Refusal('already-exists', `another machine here is called ${hostname}`)
  if (isDuplicate(error, 'macs_pkey')) return new Refusal('already-exists', 'another machine here has one of these MAC addresses')
  return error
}

/** Changes what a person may set. With `version`, refuses when somebody else was faster. */
export async function updateMachine(core: Core, caller: Caller, input: CallInput<'machines.update'>): Promise<Machine> {
  const { id, version, powerDriver, powerSettings, ...plain } = input
  for (;;) {
    const found = await existingMachine(core, id)
    refuseLocked(found)
    if (version !== undefined && found.version !== version)
      throw new Refusal('stale-version', `${id} is at version ${found.version}, not ${version}`, { version: found.version })
    // Where it is already it may stay.
    refuseUnknownPlaces(core, {
      pool: plain.pool === found.pool ? undefined : plain.pool,
      zone: plain.zone === found.zone ? undefined : plain.zone,
    })
    if (plain.hostname !== undefined)
      await refuseReservedName(core.sql, plain.hostname, { machine: found, mac: null, name: null, by: caller.name })
    const isSwitchGiven = powerDriver !== undefined || powerSettings !== undefined
    const stored =
      isSwitchGiven && storedPowerSettings(core, id, powerDriver === undefined ? found.power_driver : powerDriver, powerSettings ?? {})
    try {
      const changed = await inTransaction(core.sql, async sql => {
        if (stored) {
          await power.lockSwitch(sql, id)
          await replaceCandidates(sql, id)
        }
        const row = await db.changeMachine(sql, {
          id,
          version: found.version,
          patch: { ...definedOf(plain), ...(plain.tags && { tags: [...new Set(plain.tags)] }) },
          attentionMs: 0,
          actor: caller.name,
          events: [{ kind: 'machine.updated', data: { fields: Object.keys(definedOf({ ...plain, powerDriver, powerSettings })) } }],
        })
        if (row && plain.interfaces)
          await db.replaceMacs(
            sql,
            id,
            plain.interfaces.map(({ mac }) => mac),
          )
        if (!row || !stored) return row
        await power.saveSwitch(sql, id, stored)
        return db.findMachine(sql, id)
      })
      if (!changed) continue
      noteChange(core, changed)
      return viewOf(changed, core.partition)
    } catch (error) {
      throw duplicateRefusal(error, plain.hostname)
    }
  }
}

function definedOf<T extends object>(object: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as never
}

/** Forgets a machine that nobody uses. */
export async function deleteMachine(core: Core, caller: Caller, id: string): Promise<void> {
  for (;;) {
    const row = await existingMachine(core, id)
    refuseLocked(row)
    if (lifeCycle[row.state].deletable === 'no')
      throw new Refusal('wrong-state', `delete ${id}: a machine in state ${row.state} is in use or at work`, { state: row.state })
    if (row.allocation_id !== null) throw new Refusal('machine-owned', `delete ${id}: it belongs to ${row.owner}; release it first`)
    if ((await latestRotation(core.sql, id))?.state === 'running') {
      const message = `delete ${id}: the password of its BMC is being rotated; wait for the end, or set the true password in its power settings`
      throw new Refusal('wrong-state', message)
    }
    if ((await db.deleteMachine(core.sql, row, caller.name)) === 'stale') continue
    core.memory.remove(id)
    core.bells.log.ring()
    return
  }
}

/** One machine; operators see its power settings (secrets left out), and where the agent found its BMC. */
export async function machineDetail(core: Core, caller: Caller, id: string): Promise<MachineDetail> {
  const [row, facts, found] = await Promise.all([existingMachine(core, id), db.findInventory(core.sql, id), power.findSwitch(core.sql, id)])
  const isOperator = mayAct(caller.role, 'operator')
  return {
    ...viewOf(row, core.partition),
    inventory: isOperator || facts === null ? facts : withoutOwnBmc(facts),
    powerSettings: isOperator && found ? { ...found.settings, ...(found.secrets && { secrets: '***' }) } : null,
  }
}

/** What tenants see of an inventory: the address of the BMC is an operator's business. */
function withoutOwnBmc({ bmc: _, ...rest }: Record<string, unknown>): Record<string, unknown> {
  return rest
}

/** Why a machine is as it is. */
export async function explainMachine(core: Core, id: string): Promise<Explanation> {
  const [row, orders, rotation, found, holder, work] = await Promise.all([
    existingMachine(core, id),
    power.openOrders(core.sql, id),
    latestRotation(core.sql, id),
    power.findSwitch(core.sql, id),
    holderOfTask(core.sql, id),
    lastWork(core.sql, id),
  ])
  const { does, wantedPower } = lifeCycle[row.state]
  const facts = { from: row.state, origin: row.origin_state, isOwned: row.allocation_id !== null }
  const allowed = requestsIn(row.state).filter(move => outcomeOf(move, facts).kind === 'moved')
  return {
    id,
    state: row.state,
    since: row.state_since.toISOString(),
    does,
    wantedPower,
    power: row.power,
    powerSeenAt: row.power_seen_at?.toISOString() ?? null,
    waitingFor: row.waiting_for,
    deadline: row.deadline_at?.toISOString() ?? null,
    lastFault: row.fault ?? found?.fault ?? null,
    ...(holder !== undefined && { bootScriptGivenTo: holder }),
    nextStep: nextStep(row, { allowed, order: orders[0], holder }),
    allowed: row.locked ? [] : allowed,
    powerOrders: orders.map(orderViewOf),
    ...(work.length > 0 && { lastWork: work.map(({ state, at, took }) => ({ state, endedAt: at.toISOString(), ...took })) }),
    ...(rotation && rotation.state !== 'done' && { credentialRotation: rotationViewOf(rotation) }),
  }
}

interface Known {
  allowed: readonly MoveName[]
  order: power.PowerOrder | undefined
  /** Who has its boot script. */
  holder: string | undefined
}

function nextStep(row: db.MachineRow, { allowed, order, holder }: Known): string {
  if (row.locked) return `nothing until it is unlocked${row.lock_reason ? ` (${row.lock_reason})` : ''}`
  const stranger =
    holder === undefined || row.last_signal_at !== null
      ? ''
      : `; ${holder} was given its boot script and has not been heard since: where that is not the machine, keep it out, abort, and ask again`
  if (order !== undefined && row.power_driver === byHand)
    return `a person must switch it (${order.action}${order.boot === 'network' ? ', booting from the network' : ''}) and then say so: confirm-power${stranger}`
  if (row.waiting_for !== null) {
    const limit = row.deadline_at === null ? '' : `; at ${row.deadline_at.toISOString()} at the latest it moves on by itself`
    return `it waits for ${row.waiting_for}${limit}${stranger}`
  }
  if (row.fault?.hint) return `${row.fault.hint}; you may ${allowed.join(', ')}`
  return allowed.length === 0 ? 'nothing can be asked of it' : `it waits for somebody to ask: ${allowed.join(', ')}`
}

/** What the calls of the contract ask, by the verb of the call. */
const requests = {
  commission: { move: 'commission', needs: 'power' },
  abort: { move: 'abort' },
  release: { move: 'release' },
  markBroken: { move: 'markBroken' },
  fix: { move: 'fix' },
  rescue: { move: 'rescue', needs: 'power' },
  exitRescue: { move: 'exitRescue' },
  retire: { move: 'retire' },
  restore: { move: 'restore' },
} as const satisfies Record<string, { move: MoveName; needs?: 'power' }>
export type PlainRequest = keyof typeof requests
export const plainRequests = Object.keys(requests) as PlainRequest[]

/** Asks for a move that needs nothing but the machine. */
export async function requestMove(
  core: Core,
  caller: Caller,
  verb: PlainRequest,
  input: { id: string; reason?: string; erase?: ErasePolicy | undefined; scripts?: ScriptChoice[] } & GivenKeys,
): Promise<Machine> {
  const request: { move: MoveName; needs?: 'power' } = requests[verb]
  // An operator may leave rescue or abort for anybody; a user only on machines of their own.
  const { outcome, row } = await moveMachine(core, {
    id: input.id,
    move: request.move,
    actor: caller.name,
    ...(verb === 'rescue' && { patch: { rescue_keys: keysFor(core, caller, input) } }),
    ...(input.scripts && { patch: { scripts: input.scripts }, data: { scripts: input.scripts.map(({ name }) => name) } }),
    ...(verb === 'release' && { erase: erasePolicyFor(core, caller, input.erase) }),
    check: found => {
      refuseForeign(caller, found)
      if (request.needs === 'power') refuseWithoutPower(found)
    },
    ...(verb === 'abort' && { fault: row => abortFault(core, row, caller.name) }),
    ...(input.reason && { data: { reason: input.reason }, fault: { code: 'marked-broken', message: input.reason } }),
  })
  if (outcome === 'joined' && input.scripts && !sameChoices(row.scripts, input.scripts))
    throw new Refusal('wrong-state', `${verb} ${row.id}: it is ${row.state} with other scripts already; abort it first`, {
      state: row.state,
    })
  return viewOf(row, core.partition)
}

/** What an abort leaves undone: of a release only, whose machine nobody may have as it is. */
async function abortFault(core: Core, row: db.MachineRow, by: string): Promise<Omit<Fault, 'since'> | undefined> {
  if (row.state !== 'releasing') return undefined
  return {
    code: 'release-aborted',
    message: `${by} aborted the release; ${await leftUnerased(core, row)}`,
    hint: 'release it again: that begins anew; until then it stays with its owner',
  }
}

interface GivenKeys {
  readonly sshKeys?: string[]
  readonly ownKeys?: boolean | undefined
}

/** The keys of a request, and those that the caller keeps in its own document. */
function keysFor(core: Core, caller: Caller, { sshKeys = [], ownKeys = true }: GivenKeys): string[] {
  const own = ownKeys ? Object.values(core.configuration.content?.documents.user[caller.name]?.sshKeys ?? {}) : []
  return joinedKeys(sshKeys, own)
}

/** Asks for a commissioning. The scripts must be ones that this partition or its agent has. */
export async function commission(core: Core, caller: Caller, input: CallInput<'machines.commission'>): Promise<Machine> {
  return requestMove(core, caller, 'commission', { id: input.id, scripts: chooseScripts(core, input) })
}

/** PostgreSQL keeps objects in an order of its own. */
function sameChoices(a: readonly ScriptChoice[], b: readonly ScriptChoice[]): boolean {
  const text = (choices: readonly ScriptChoice[]) =>
    JSON.stringify(choices.map(({ name, parameters }) => [name, Object.entries(parameters).sort(([x], [y]) => (x < y ? -1 : 1))]))
  return text(a) === text(b)
}

/** Nothing is queued for an image that is to come: whoever wants to wait for it asks again. */
function notInstallable({ partition, catalogue }: Core, os: string, arch: string, whyAway: WhyAway): Refusal {
  const cannot = `partition ${partition} cannot install ${os} on ${arch}`
  const facts = { available: [...(catalogue.installable.get(arch) ?? [])] }
  if (!catalogue.isSelected(os)) return new Refusal('not-installable', `${cannot}: it was not selected for this partition`, facts)
  if (catalogue.images.some(image => image.os === os && image.arch === arch))
    return new Refusal('not-installable', `${cannot}: its image is here, and this release cannot prepare its first boot`, facts)
  const why = whyAway(os, arch)
  if (why !== undefined) return new Refusal('not-yet-installable', `${cannot} yet: ${why}`, facts)
  return new Refusal('not-installable', `${cannot}: its image is not here, and no document describes one`, facts)
}

function refuseWithoutPower(row: db.MachineRow): void {
  if (row.power_driver === null)
    throw new Refusal('no-power-driver', `${row.id} has no power driver; set powerDriver and powerSettings first`)
}

/** Why what is not here to be installed may come by itself, in words; undefined: it will not. */
export type WhyAway = (os: string, arch: string) => string | undefined

/** Asks for a deployment. The operating system must be one this partition can install on that architecture. */
export async function deploy(core: Core, caller: Caller, input: CallInput<'machines.deploy'>, whyAway: WhyAway): Promise<Machine> {
  const secrets: Omit<DeploymentSecrets, 'sshKeys'> = {
    ...readUserData(input.userData),
    ...(input.secrets && { oneTime: input.secrets }),
  }
  const { outcome, row } = await moveMachine(core, {
    id: input.id,
    move: 'deploy',
    actor: caller.name,
    check: found => {
      refuseForeign(caller, found)
      refuseWithoutPower(found)
      const image = core.catalogue.imageFor(input.os, found.arch)
      if (!image || !core.catalogue.isSelected(input.os)) throw notInstallable(core, input.os, found.arch, whyAway)
      layoutFor(image, found, input.storage)
      refuseWithoutLicence(core, input.os)
      const network = input.network ?? found.network
      // The machine may have other ports than when an operator said how its network is to be.
      if (network) refuseUnfitNetwork(network, found, 'network')
    },
    patch: found => {
      const image = core.catalogue.imageFor(input.os, found.arch)
      return {
        deployment: deploymentOf(input.os, input.dataSource ?? image?.dataSource ?? 'nocloud'),
        // An operator who deploys somebody else's machine does not come in there by its own keys.
        deployment_secrets: sealDeployment(core, input.id, {
          ...secrets,
          sshKeys: found.owner === caller.name ? keysFor(core, caller, input) : input.sshKeys,
        }),
        deployment_network: input.network ?? null,
        deployment_storage: image ? layoutFor(image, found, input.storage) : null,
      }
    },
    data: { os: input.os },
  })
  if (outcome === 'joined' && row.deployment?.os !== input.os)
    throw new Refusal(
      'wrong-state',
      `deploy ${input.id}: it is ${row.state} with ${row.deployment?.os ?? 'nothing'} already; release it first`,
      { state: row.state },
    )
  return viewOf(row, core.partition)
}

/** How the network of a machine is to be. */
export async function machineNetwork(core: Core, id: string): Promise<CallAnswer<'machines.network'>> {
  return networkViewOf(await existingMachine(core, id))
}

const networkViewOf = (row: db.MachineRow) => ({ document: row.network, deployment: row.deployment_network, config: networkOf(row) })

/** Sets it from the next deployment on. Idempotent. Throws already-taken where somebody else has an address of it. */
export async function setNetwork(
  core: Core,
  caller: Caller,
  { id, document }: CallInput<'machines.setNetwork'>,
): Promise<CallAnswer<'machines.setNetwork'>> {
  for (;;) {
    const row = await existingMachine(core, id)
    refuseLocked(row)
    if (document) refuseUnfitNetwork(document, row, 'document')
    const changed = await inTransaction(core.sql, async sql => {
      const next = await db.changeMachine(sql, {
        id,
        version: row.version,
        patch: { network: document },
        actor: caller.name,
        events: [{ kind: 'machine.updated', data: { fields: ['network'] } }],
      })
      if (next) await recordDocuments(sql, next, caller.name)
      return next
    })
    if (!changed) continue
    noteChange(core, changed)
    return networkViewOf(changed)
  }
}

/** Sets or lifts the lock. Idempotent. */
export async function setLock(
  core: Core,
  caller: Caller,
  input: { id: string; lock: 'locked' | 'unlocked'; reason: string },
): Promise<Machine> {
  const isLocked = input.lock === 'locked'
  for (;;) {
    const row = await existingMachine(core, input.id)
    refuseForeign(caller, row)
    if (row.locked === isLocked && row.lock_reason === input.reason) return viewOf(row, core.partition)
    const changed = await db.changeMachine(core.sql, {
      id: row.id,
      version: row.version,
      patch: { locked: isLocked, lock_reason: input.reason },
      actor: caller.name,
      events: [{ kind: isLocked ? 'machine.locked' : 'machine.unlocked', data: { reason: input.reason } }],
    })
    if (!changed) continue
    noteChange(core, changed)
    return viewOf(changed, core.partition)
  }
}

/** Gives a power order where the table leaves the power to people, or repeats what the table wants anyway. */
export async function orderPower(
  core: Core,
  caller: Caller,
  input: CallInput<'machines.power'>,
  signal: AbortSignal,
  boot: 'network' | 'disk' | null = null,
): Promise<CallAnswer<'machines.power'>> {
  const row = await existingMachine(core, input.id)
  refuseForeign(caller, row)
  refuseLocked(row)
  refuseWithoutPower(row)
  const { wantedPower } = lifeCycle[row.state]
  if (wantedPower !== 'user' && input.action !== wantedPower) {
    const why = `power ${input.action} ${row.id}: in state ${row.state} it is to be ${wantedPower}`
    throw new Refusal('wrong-state', `${why}; only a deployed machine's power is its owner's business`, { state: row.state })
  }
  const how = input.action === 'off' ? input.how : 'hard'
  const given = await power.giveOrder(core.sql, { machine: row.id, action: input.action, boot, how, askedBy: caller.name })
  core.bells.power.ring()
  const order = input.wait === undefined ? given : await ended(core, given, durationMs(input.wait), signal)
  return { ...viewOf(await existingMachine(core, input.id), core.partition), order: orderViewOf(order) }
}

/** The order when it has ended, or as it is when the time is up. */
async function ended(core: Core, given: power.PowerOrder, limitMs: number, signal: AbortSignal): Promise<power.PowerOrder> {
  const until = Date.now() + limitMs
  const pause = new Bell()
  let order = given
  while ((order.state === 'queued' || order.state === 'running') && Date.now() < until && !signal.aborted) {
    await pause.wait(200, signal)
    order = (await power.findOrder(core.sql, given.id)) ?? order
  }
  return order
}

/** A person says what they did to a machine that only people can switch. */
export async function confirmPower(core: Core, caller: Caller, input: CallInput<'machines.confirmPower'>): Promise<Machine> {
  refuseForeign(caller, await existingMachine(core, input.id))
  if ((await notePower(core.sql, { machine: input.id, power: input.power, by: caller.name })) === 'not by hand')
    throw new Refusal(
      'wrong-state',
      `${input.id} has a switch of its own, and Muster asks that; only machines with the driver "${byHand}" are switched by people`,
    )
  core.bells.engine.ring()
  core.bells.log.ring()
  return viewOf(await existingMachine(core, input.id), core.partition)
}

export async function powerOrders(core: Core, input: CallInput<'machines.powerOrders'>): Promise<CallAnswer<'machines.powerOrders'>> {
  await existingMachine(core, input.id)
  return { items: (await power.listOrders(core.sql, input.id, input.limit)).map(orderViewOf) }
}

/** Takes a tag off a machine. Idempotent. */
export async function takeOffTag(core: Core, caller: Caller, id: string, tag: string): Promise<void> {
  for (let row = await db.findMachine(core.sql, id); row?.tags.includes(tag); row = await db.findMachine(core.sql, id)) {
    const changed = await db.changeMachine(core.sql, {
      id,
      version: row.version,
      patch: { tags: row.tags.filter(name => name !== tag) },
      actor: caller.name,
      events: [{ kind: 'machine.updated', data: { fields: ['tags'] } }],
    })
    if (changed) noteChange(core, changed)
  }
}
