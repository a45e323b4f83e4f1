// The first boot of an installed system, as its cloud-init reports it. Tens of small reports come within seconds; they are gathered for a moment
// and stored as one change with one event. What ends or fails is stored before it is answered.
import { type CloudInitReport, type FirstBoot, mostFailures } from '@muster/shared/cloud-init'
import { Refusal } from '@muster/shared/errors'
import type { Fault } from '@muster/shared/machine'
import * as db from '../db/machines.ts'
import { machineOfToken, storeReport } from './agent.ts'
import type { Core } from './core.ts'
import { readMachineToken } from './machine-token.ts'
import { moveMachine } from './move.ts'
import { firstBootFault } from './steps.ts'

/** Shorter than people notice; longer than the burst in which cloud-init empties its queue. */
const gatherMs = 1_000
/** A burst has some forty. More than this are not gathered: each waits for the database, and so does who sends them. */
const mostGathered = 100
/** Steps named in one event. */
const mostSteps = 50

interface Gathering {
  machine: db.MachineRow
  reports: CloudInitReport[]
  timer: NodeJS.Timeout
}

export class FirstBoots {
  readonly #core: Core
  readonly #gathering = new Map<string, Gathering>()

  constructor(core: Core) {
    this.#core = core
  }

  /** Takes a report in. Throws unauthenticated. Those of a machine whose first boot is over come to nothing: every later boot sends them all again. */
  async receive(token: string, report: CloudInitReport): Promise<void> {
    // Within a gathering the token costs no look at the database; its row is read again before anything is stored.
    const key = readMachineToken(this.#core.seal, 'metadata', token) ? token : ''
    let gathering = this.#gathering.get(key)
    if (!gathering) {
      const machine = await machineOfToken(this.#core, 'metadata', token)
      gathering = this.#gathering.get(key) ?? this.#gather(key, machine)
    }
    gathering.reports.push(report)
    if (mustBeStored(report) || gathering.reports.length >= mostGathered) await this.#store(key)
  }

  /** Stores what is gathered. */
  async close(): Promise<void> {
    await Promise.all([...this.#gathering.keys()].map(key => this.#storeOrLog(key)))
  }

  #gather(key: string, machine: db.MachineRow): Gathering {
    const timer = setTimeout(() => void this.#storeOrLog(key), gatherMs)
    const gathering = { machine, reports: [], timer }
    this.#gathering.set(key, gathering)
    return gathering
  }

  async #storeOrLog(key: string): Promise<void> {
    try {
      await this.#store(key)
    } catch (error) {
      // Nobody waits for an answer, and what was lost is progress: ends and failures are stored by who brings them.
      this.#core.log.warn({ err: error }, 'the progress of a first boot could not be stored')
    }
  }

  async #store(key: string): Promise<void> {
    const gathering = this.#gathering.get(key)
    if (!gathering) return
    this.#gathering.delete(key)
    clearTimeout(gathering.timer)
    const row = await db.findMachine(this.#core.sql, gathering.machine.id)
    if (!row || row.run !== gathering.machine.run || !isFirstBoot(row)) return
    await storeFirstBoot(this.#core, row, gathering.reports)
  }
}

/** Also when its end is stored and the move that follows is not: a replica may have died between the two, and the end is told again. */
const isFirstBoot = ({ state, netboot, deployment }: db.MachineRow) =>
  deployment !== null && ((state === 'deploying' && !netboot) || (state === 'deployed' && !deployment.firstBoot?.endedAt))

/** The system's own last stage: after it cloud-init has nothing more to do. */
const lastStage = 'modules-final'
const isEnd = ({ event_type, name }: CloudInitReport) => event_type === 'finish' && name === lastStage
const isFailure = ({ event_type, result }: CloudInitReport) => event_type === 'finish' && (result === 'FAIL' || result === 'FAILURE')
const mustBeStored = (report: CloudInitReport) => isEnd(report) || isFailure(report)

async function storeFirstBoot(core: Core, machine: db.MachineRow, reports: readonly CloudInitReport[]): Promise<void> {
  await storeReport(core, machine, row => {
    const firstBoot = firstBootAfter(row.deployment?.firstBoot, reports, new Date().toISOString())
    const failed = firstBootFault(firstBoot)
    return {
      patch: {
        deployment: row.deployment && { ...row.deployment, firstBoot },
        ...(row.state === 'deploying' && { waiting_for: waitingText(firstBoot) }),
        ...faultPatch(row, failed && { ...failed, since: firstBoot.reportedAt }),
      },
      events: [{ kind: 'machine.cloud-init', data: eventOf(reports) }],
    }
  })
  if (reports.some(isEnd)) await phoneHome(core, machine)
}

/** The fault of a first boot keeps the time at which it came, and goes with its cause; another fault is not touched. */
function faultPatch({ fault }: db.MachineRow, found: Fault | undefined): Pick<db.MachinePatch, 'fault'> {
  const isOurs = fault?.code === 'cloud-init-failed'
  if (found) return { fault: { ...found, since: isOurs ? fault.since : found.since } }
  return isOurs ? { fault: null } : {}
}

/**
 * What is known after further reports. A stage that failed because of its steps is not a failure of its own; a step that succeeds at last, because the
 * machine lost its power and booted again, is none either.
 */
export function firstBootAfter(before: FirstBoot | undefined, reports: readonly CloudInitReport[], now: string): FirstBoot {
  const failures = new Set(before?.failures)
  for (const report of reports.filter(({ event_type }) => event_type === 'finish')) {
    const isOfItsSteps = [...failures].some(name => name.startsWith(`${report.name}/`))
    if (!isFailure(report)) failures.delete(report.name)
    else if (!isOfItsSteps && failures.size < mostFailures) failures.add(report.name)
  }
  const last = reports.at(-1)
  return {
    step: last?.name ?? before?.step ?? '',
    description: last?.description ?? before?.description ?? '',
    failures: [...failures],
    reportedAt: now,
    endedAt: before?.endedAt ?? (reports.some(isEnd) ? now : null),
  }
}

/** Each step that ended, with its result where that is not success; and the one under way. */
function eventOf(reports: readonly CloudInitReport[]): Record<string, unknown> {
  const ended = reports.filter(({ event_type }) => event_type === 'finish')
  const files = reports.flatMap(report => report.files?.map(({ path }) => path) ?? [])
  const said = ({ name, result, description }: CloudInitReport) =>
    result === undefined || result === 'SUCCESS' ? { name } : { name, result, description }
  return {
    reports: reports.length,
    // Failures first: where there are too many to name, these are not the ones to miss.
    ended: [...ended.filter(isFailure), ...ended.filter(report => !isFailure(report))].slice(0, mostSteps).map(said),
    last: reports.at(-1)?.name,
    ...(files.length > 0 && { droppedFiles: files.slice(0, mostSteps) }),
  }
}

function waitingText({ step, description, failures }: FirstBoot): string {
  const failed = failures.length > 0 ? `; failed so far: ${failures.join(', ')}` : ''
  return `the first boot of the installed system to phone home; its cloud-init is at ${step}${description && ` (${description})`}${failed}`
}

/** The installed system says that it is up: by phoning home, by a signal, or because its cloud-init has ended. */
export async function phoneHome(core: Core, machine: db.MachineRow, hostKeys: string[] = []): Promise<void> {
  if (machine.state !== 'deploying' || machine.netboot) return
  await moveMachine(core, {
    id: machine.id,
    move: 'deployed',
    actor: 'agent',
    from: 'deploying',
    check: refuseOtherRun(machine),
    patch: ({ deployment }) => {
      const deployedAt = new Date().toISOString()
      const fault = firstBootFault(deployment?.firstBoot)
      const keys = hostKeys.length > 0 ? { hostKeys } : {}
      return { deployment: deployment && { ...deployment, deployedAt, ...keys }, ...(fault && { fault: { ...fault, since: deployedAt } }) }
    },
  })
}

/** The installed system says that it cannot come up. */
export async function failFirstBoot(core: Core, machine: db.MachineRow, message: string): Promise<void> {
  if (machine.state !== 'deploying') return
  const fault = {
    code: 'first-boot-failed',
    message: message || 'the machine said that its deployment failed, and not why',
    hint: 'the machine said so itself: look at its console, then try again',
  }
  await moveMachine(core, { id: machine.id, move: 'fail', actor: 'agent', from: 'deploying', check: refuseOtherRun(machine), fault })
}

/** For a move that a machine's own report makes: not when it has been deployed anew since. */
const refuseOtherRun = (machine: db.MachineRow) => (found: db.MachineRow) => {
  if (found.run !== machine.run) throw new Refusal('unauthenticated', 'the run of this machine token is over')
}
