// What machines tell us: that they exist, what is in them, how far they are, and that they are up. Reports move the life cycle; repeats are harmless.
import type { Enlistment, Inventory, Job, Signal } from '@muster/shared/agent'
import { Refusal, wrongFields } from '@muster/shared/errors'
import { newMachineId } from '@muster/shared/ids'
import type { State } from '@muster/shared/life-cycle'
import type { Deployment, NetworkInterface } from '@muster/shared/machine'
import { storageLayout } from '@muster/shared/storage'
import { isDuplicate } from '../db/connect.ts'
import * as db from '../db/machines.ts'
import type { Core } from './core.ts'
import { disksLeft } from './erase.ts'
import { machineToken, readMachineToken, StrangeToken, type TokenPurpose } from './machine-token.ts'
import { dataSourceOf, metadataCredentials } from './metadata.ts'
import { moveMachine, noteChange } from './move.ts'
import { storedPowerSettings } from './power-settings.ts'
import { chooseScripts, forgetOldResults, jobScripts, scriptsFault } from './scripts.ts'
import { linesOf } from './storage.ts'

/** How often the agent says that it lives. */
export const heartbeatMs = 5_000

/** The machine a token speaks for. Throws unauthenticated where its run is over, as a {@link StrangeToken} where the token is not ours. */
export async function machineOfToken(core: Core, purpose: TokenPurpose, token: string): Promise<db.MachineRow & { run: string }> {
  const claims = readMachineToken(core.seal, purpose, token)
  if (!claims) throw new StrangeToken('unauthenticated', 'the machine token is not known here')
  const row = await db.findMachine(core.sql, claims.id)
  if (row?.run !== claims.run) throw new Refusal('unauthenticated', 'the run of this machine token is over')
  return { ...row, run: claims.run }
}

/** What a simulated machine may say of its own controller. */
const foundInBand = new Set(['ipmi', 'redfish'])

/** A machine announces itself. A known MAC changes nothing: an anonymous caller must not rewrite what we know. */
export async function enlist(core: Core, input: Enlistment): Promise<{ id: string; outcome: 'created' | 'known' }> {
  const macs = input.interfaces.map(({ mac }) => mac)
  const known = await db.findMachineByMac(core.sql, macs)
  if (known) {
    await commissionIfWanted(core, known)
    return { id: known.id, outcome: 'known' }
  }
  try {
    return await insertEnlisted(core, input, input.hostname)
  } catch (error) {
    // Machines that boot together and are all called localhost: the name went to another one just now.
    if (isDuplicate(error, 'machines_hostname_key')) return await insertEnlisted(core, input, undefined)
    // The same machine twice at once: one of the two won.
    const winner = isDuplicate(error, 'macs_pkey') ? await db.findMachineByMac(core.sql, macs) : undefined
    if (!winner) throw error
    return { id: winner.id, outcome: 'known' }
  }
}

async function insertEnlisted(core: Core, input: Enlistment, hostname: string | undefined): Promise<{ id: string; outcome: 'created' }> {
  const waiting = await db.countNew(core.sql, core.rules.enlistedMost)
  if (waiting >= core.rules.enlistedMost)
    throw new Refusal(
      'overloaded',
      `${waiting} machines have enlisted and wait to be commissioned or deleted; no more are taken (MUSTER_ENLISTED_MOST, or enlistedMost of the partition's document)`,
    )
  const id = newMachineId(core.partition)
  if (input.bmc) refuseStrangeBmc(core, input.bmc.driver)
  const stored = input.bmc
    ? storedPowerSettings(core, id, input.bmc.driver, input.bmc.settings)
    : { driver: null, settings: {}, secrets: null }
  const row = await db.insertMachine(
    core.sql,
    {
      id,
      hostname: await freeHostname(core, hostname, id),
      arch: input.arch,
      cpus: input.cpus,
      memoryMib: input.memoryMib,
      pool: 'default',
      zone: textFact(input.facts.zone),
      rack: textFact(input.facts.rack),
      tags: [],
      interfaces: input.interfaces,
      disks: input.disks,
      note: '',
      powerDriver: stored.driver,
      powerSettings: stored.settings,
      powerSecrets: stored.secrets,
      facts: input.facts,
    },
    { kind: 'machine.enlisted', actor: 'agent' },
  )
  noteChange(core, row)
  await commissionIfWanted(core, row)
  return { id, outcome: 'created' }
}

/**
 * Who enlists is anybody: settings of a controller would have this server call any address with any password, and switch off whatever answers there.
 * Real agents tell what they found as a fact, and an operator makes it the power driver; a lab's simulated machines bring it with them.
 */
function refuseStrangeBmc(core: Core, driver: string): void {
  if (core.rules.place !== 'lab') {
    const message = 'settings of a controller are taken from machines in labs only (MUSTER_PLACE=lab); an operator gives the power driver'
    throw wrongFields([{ field: 'bmc', message }])
  }
  if (foundInBand.has(driver)) return
  const message = `a machine finds ${[...foundInBand].join(' or ')} in itself, not ${driver}`
  throw wrongFields([{ field: 'bmc.driver', message }])
}

/** Also for a machine that is known and still new: the partition may have died between the two. */
async function commissionIfWanted(core: Core, row: db.MachineRow): Promise<void> {
  if (core.rules.enlisted !== 'commission' || row.power_driver === null || row.state !== 'new') return
  await moveMachine(core, { id: row.id, move: 'commission', actor: 'enlistment', from: 'new', patch: { scripts: chooseScripts(core) } })
}

/** Where a machine says it stands, as far as it is a usable label. */
function textFact(value: unknown): string {
  return typeof value === 'string' && /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(value) ? value : 'default'
}

async function freeHostname(core: Core, wanted: string | undefined, id: string): Promise<string> {
  if (wanted === undefined) return id
  const taken = await db.isHostnameTaken(core.sql, wanted)
  return taken ? id : wanted
}

/** What the agent of this machine should do. */
export function jobOf(core: Core, row: db.MachineRow & { run: string }, baseUrl: string): Job {
  const common = { machine: row.id, heartbeatMs }
  if (row.state === 'commissioning') return { kind: 'commission', ...common, scripts: jobScripts(core, row) }
  if (row.state === 'releasing' && row.erase !== null) return { kind: 'erase', ...common, method: row.erase }
  if (row.state === 'rescue') return { kind: 'rescue', ...common, sshKeys: row.rescue_keys }
  if (row.state === 'deploying' && row.netboot && row.deployment) {
    const image = core.catalogue.imageFor(row.deployment.os, row.arch)
    const dataSource = dataSourceOf(row.deployment)
    if (!image)
      throw new Refusal('not-installable', `the files of ${row.deployment.os} for ${row.arch} are gone, or not what their description says`)
    return {
      kind: 'install',
      ...common,
      hostname: row.hostname,
      os: row.deployment.os,
      image: { url: `${baseUrl}/boot/files/${image.path}`, sha256: image.sha256, sizeBytes: image.sizeBytes, form: image.form },
      ...(image.form === 'tar' && { storage: linesOf(row.deployment_storage ?? storageLayout.parse({ kind: 'flat' }), row) }),
      seedUrl: `${baseUrl}/metadata/${machineToken(core.seal, 'metadata', row)}/`,
      dataSource,
      ...(dataSource === 'maas' && { metadata: metadataCredentials(core, row, baseUrl) }),
    }
  }
  throw new Refusal('wrong-state', `there is no job for ${row.id} in state ${row.state}`, { state: row.state })
}

/** The agent's inventory replaces what was known of the hardware; names of subnets and addresses a person set stay. */
export async function saveInventory(core: Core, machine: db.MachineRow, report: Inventory): Promise<void> {
  if (machine.state !== 'commissioning')
    throw new Refusal('wrong-state', `an inventory of ${machine.id} is taken while it commissions, not in state ${machine.state}`, {
      state: machine.state,
    })
  const known = new Map(machine.interfaces.map(port => [port.mac, port]))
  const interfaces: NetworkInterface[] = report.interfaces.map(port => ({
    ...port,
    subnet: port.subnet ?? known.get(port.mac)?.subnet ?? null,
    ip: port.ip ?? known.get(port.mac)?.ip ?? null,
  }))
  try {
    await db.replaceMacs(
      core.sql,
      machine.id,
      interfaces.map(({ mac }) => mac),
    )
  } catch (error) {
    if (isDuplicate(error, 'macs_pkey'))
      throw new Refusal('already-exists', `another machine has one of the MAC addresses of ${machine.id}`)
    throw error
  }
  await db.saveInventory(core.sql, machine.id, report.facts)
  await storeReport(core, machine, row => ({
    patch: { arch: report.arch, cpus: report.cpus, memory_mib: report.memoryMib, interfaces, disks: report.disks, step: inventoryTaken },
    // Once in a commissioning: the answer may have been lost, or the machine's power, and it is told again.
    events:
      row.step === inventoryTaken
        ? []
        : [{ kind: 'machine.inventory', data: { cpus: report.cpus, memoryMib: report.memoryMib, disks: report.disks.length } }],
  }))
}

/** The step of a machine whose inventory has come in the commissioning under way. */
const inventoryTaken = 'inventory taken'

/** States in which an agent is at work on the machine. */
const agentStates: ReadonlySet<State> = new Set(['commissioning', 'deploying', 'releasing', 'rescue'])

/** A heartbeat, or the end of the agent's job. Once that has ended the machine, a late or repeated signal changes nothing. */
export async function receiveSignal(core: Core, machine: db.MachineRow, signal: Signal): Promise<void> {
  const { state } = machine
  if (!agentStates.has(state) || (state === 'deploying' && !machine.netboot) || (state === 'releasing' && machine.erase === null)) return
  if (signal.status === 'failed') {
    const fault = {
      code: `${signal.step}-failed`,
      message: signal.message || `the agent failed in step ${signal.step}`,
      hint: 'the agent said why; mend that and try again',
    }
    if (state !== 'rescue') await moveMachine(core, { id: machine.id, move: 'fail', actor: 'agent', from: state, fault })
    return
  }
  if (signal.status === 'done' && state === 'commissioning') return endCommissioning(core, machine)
  if (signal.status === 'done' && state === 'releasing') return endErasure(core, machine)
  const isInstalled = signal.status === 'done' && state === 'deploying'
  await storeReport(core, machine, row => ({
    patch: {
      progress: signal.progress ?? row.progress,
      waiting_for: isInstalled ? 'the first boot of the installed system to phone home' : describe(signal),
      ...(state === 'deploying' && row.deployment && !isInstalled && { deployment: withStep(row.deployment, signal.step) }),
      ...(isInstalled && { netboot: false, deployment: row.deployment && { ...row.deployment, installedAt: new Date().toISOString() } }),
    },
    // A heartbeat is not worth an event; a step is.
    events: isInstalled
      ? [{ kind: 'machine.installed', data: { os: row.deployment?.os } }]
      : row.waiting_for === describe(signal)
        ? []
        : [{ kind: 'machine.step', data: { step: signal.step, message: signal.message } }],
  }))
}

/** The agent says that it is done; whether the machine is fit, the results of its scripts say. */
async function endCommissioning(core: Core, machine: db.MachineRow): Promise<void> {
  const fault = await scriptsFault(core, machine)
  const move = fault ? ({ move: 'fail', fault } as const) : ({ move: 'commissioned' } as const)
  await moveMachine(core, { id: machine.id, actor: 'agent', from: 'commissioning', ...move })
  await forgetOldResults(core, machine)
}

/** The agent says that it is done; the partition believes certificates, one for each disk that commissioning had found. */
async function endErasure(core: Core, machine: db.MachineRow): Promise<void> {
  const left = await disksLeft(core, machine)
  if (left.length > 0) {
    const fault = {
      code: 'erase-failed',
      message: `the agent ended and did not say that it erased ${left.join(', ')}`,
      hint: 'a disk was taken out, or is dead: commission the machine again, or release it without erasing',
    }
    await moveMachine(core, { id: machine.id, move: 'fail', actor: 'agent', from: 'releasing', fault })
    return
  }
  await storeReport(core, machine, row => ({
    patch: { erase: null, disks_used: false, progress: 100, waiting_for: 'the power off' },
    events: [{ kind: 'machine.erased', data: { disks: row.disks.length, owner: row.owner } }],
  }))
}

/** So many different steps at most: an agent cannot make the row grow. */
const stepsMax = 20

/** Notes when a step began; a heartbeat within it changes nothing. An agent that lost its power begins at the first step again, and that counts as one more. */
function withStep(deployment: Deployment, step: string): Deployment {
  const { steps = [] } = deployment
  if (steps.length >= stepsMax || steps.at(-1)?.step === step) return deployment
  return { ...deployment, steps: [...steps, { step, at: new Date().toISOString() }] }
}

const describe = (signal: Signal) => `the agent: ${signal.step}${signal.message ? ` (${signal.message})` : ''}`

/** Stores a report while the machine's run goes on; a report of an ended run is dropped. */
export async function storeReport(
  core: Core,
  machine: db.MachineRow,
  change: (row: db.MachineRow) => Pick<db.MachineChange, 'patch' | 'events'>,
): Promise<void> {
  for (
    let row: db.MachineRow | undefined = machine;
    row?.run === machine.run && row.state === machine.state;
    row = await db.findMachine(core.sql, machine.id)
  ) {
    const changed = await db.changeMachine(core.sql, { id: row.id, version: row.version, ...change(row), signal: 'now', actor: 'agent' })
    if (!changed) continue
    noteChange(core, changed)
    return
  }
}
