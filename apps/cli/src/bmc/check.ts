// What a BMC can do: IPMI has a check of its own, with questions only IPMI can answer; every other driver is asked what all drivers promise.
// Nothing on the BMC or the machine is changed.
import { type Controller, DriverError, type Identity, type PowerDriver, type PowerSession } from '@muster/drivers/driver'
import { ipmi, ipmiClient } from '@muster/drivers/ipmi'
import { checkBmc, type Finding as IpmiFinding } from '@muster/drivers/ipmi/check'
import type { IpmiClient } from '@muster/drivers/ipmi/client'
import type { ExitName } from '../exit-codes.ts'
import type { Target } from './target.ts'

/** One thing found. */
export interface Finding extends Omit<IpmiFinding, 'topic'> {
  readonly topic: IpmiFinding['topic'] | 'sessions' | 'identity'
}

export interface Report {
  readonly target: string
  readonly findings: readonly Finding[]
  /** Whether Muster can provision with it. */
  readonly usable: boolean
}

type Log = (message: string, facts: Readonly<Record<string, string | number>>) => void

/** Asks the BMC everything; what it fails at is a finding. Throws DriverError `cancelled` when the signal fires. */
export function checkTarget(target: Target, options: { signal: AbortSignal; log?: Log | undefined }): Promise<Report> {
  return target.driver.type === ipmi.type ? checkIpmi(target.settings, options) : checkAny(target, options)
}

/** The ending by the worst finding. */
export function exitOfReport({ findings, usable }: Report): ExitName {
  if (!usable || findings.some(({ verdict }) => verdict === 'bad')) return 'bmc-unfit'
  return findings.some(({ verdict }) => verdict === 'odd') ? 'bmc-odd' : 'ok'
}

async function checkIpmi(given: Target['settings'], options: { signal: AbortSignal; log?: Log | undefined }): Promise<Report> {
  const settings = ipmi.settings.parse(given)
  const report = await checkBmc(settings, { signal: options.signal })
  const hasLoggedIn = report.findings.some(({ topic, verdict }) => topic === 'login' && verdict !== 'bad')
  if (!hasLoggedIn) return report
  const client = ipmiClient(settings, { context: { signal: options.signal, ...(options.log && { log: options.log }) } })
  try {
    return { ...report, findings: [...report.findings, await sessionsLeft(client)] }
  } finally {
    await client.close()
  }
}

/** Get Session Info (IPMI v2.0 22.20) of the session it is asked in. */
const getSessionInfo = { netFn: 0x06, command: 0x3d }
const thisSession = 0x00

/** How many more consoles the BMC has room for. Boards have 4 to 63 slots, and some programs never close theirs. */
async function sessionsLeft(client: IpmiClient): Promise<Finding> {
  const topic = 'sessions'
  try {
    const reply = await client.run('ask for session slots', turn => turn.command(getSessionInfo, { data: Buffer.of(thisSession) }))
    if (reply.completionCode !== 0 || reply.data.length < 3)
      return { topic, verdict: 'good', found: 'The BMC does not tell how many sessions it has room for.' }
    const slots = reply.data.readUInt8(1) & 0x3f
    const used = reply.data.readUInt8(2) & 0x3f
    const left = Math.max(0, slots - used)
    const found = `${left} of ${slots} session slots are free beside this session.`
    if (left > 0) return { topic, verdict: 'good', found }
    const hint = 'Look for other programs that poll this BMC: the next login may find no room. Abandoned sessions end after 3 to 60 s.'
    return { topic, verdict: 'odd', found, hint }
  } catch (error) {
    return failed(topic, 'odd', error)
  }
}

/** What every driver can be asked. The first question logs in: after its failure nothing more is asked. */
async function checkAny(target: Target, options: { signal: AbortSignal; log?: Log | undefined }): Promise<Report> {
  const context = { signal: options.signal, ...(options.log && { log: options.log }) }
  await using session = target.driver.open(target.driver.settings.parse(target.settings), context)
  const power = await finding('power', 'bad', async () => {
    const state = await session.power()
    if (state === 'unknown')
      return {
        verdict: 'odd',
        found: 'The power state is not known.',
        hint: 'A machine whose power nobody sees must be watched by a person.',
      }
    return { verdict: 'good', found: `Logged in; the machine is ${state}.` }
  })
  const findings = [power]
  if (power.verdict !== 'bad')
    for (const { topic, ask } of questions(target.driver, session)) findings.push(await finding(topic, 'odd', ask))
  return { target: session.target, findings, usable: power.verdict !== 'bad' }
}

type Answer = Omit<Finding, 'topic'>

interface Question {
  readonly topic: Finding['topic']
  readonly ask: () => Promise<Answer>
}

function questions(driver: PowerDriver, { capabilities }: PowerSession): Question[] {
  const { bootNext, controller, identity } = capabilities
  const noBootNext: Answer = {
    verdict: 'odd',
    found: `The ${driver.type} driver has no boot override.`,
    hint: 'Put the network first in the boot order of the firmware.',
  }
  const all: Question[] = [{ topic: 'boot override', ask: async () => (bootNext ? bootAnswer(await bootNext.read()) : noBootNext) }]
  if (controller) all.push({ topic: 'controller', ask: async () => controllerAnswer(await controller()) })
  if (identity) all.push({ topic: 'identity', ask: async () => identityAnswer(await identity()) })
  return all
}

function controllerAnswer({ manufacturer, product, firmware, protocol }: Controller): Answer {
  return { verdict: 'good', found: `Maker ${manufacturer}, product ${product}, firmware ${firmware}, ${protocol}.` }
}

function identityAnswer({ maker, product, serial }: Identity): Answer {
  const name = [maker, product].filter(Boolean).join(' ') || 'without a name'
  return { verdict: 'good', found: `The machine is ${name}, serial number ${serial || 'not written'}.` }
}

function bootAnswer(next: { device: string; firmware: string } | undefined): Answer {
  const found = next ? `The next boot is set to ${next.device} (${next.firmware}).` : 'There is a boot override, not set now.'
  return { verdict: 'good', found }
}

async function finding(topic: Finding['topic'], verdict: 'odd' | 'bad', ask: () => Promise<Answer>): Promise<Finding> {
  try {
    return { topic, ...(await ask()) }
  } catch (error) {
    return failed(topic, verdict, error)
  }
}

/** A failure as a finding; the caller's own cancellation is none, and neither is a fault of ours. */
function failed(topic: Finding['topic'], verdict: 'odd' | 'bad', error: unknown): Finding {
  if (!(error instanceof DriverError) || error.kind === 'cancelled') throw error
  return { topic, verdict, found: `${error.got.charAt(0).toUpperCase()}${error.got.slice(1)}.`, hint: error.hint }
}
