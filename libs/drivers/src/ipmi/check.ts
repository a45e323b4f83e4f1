/**
 * What one BMC can do, in plain words: for `muster bmc check`. Reads only; nothing on the BMC or the machine is changed.
 */
import { DriverError } from '../driver.ts'
import { type IpmiSettings, ipmiClient } from '../ipmi.ts'
import { readBootNext } from './boot-next.ts'
import type { IpmiClient, Turn } from './client.ts'
import { bootParameters, commands, type SuiteRecord, suitesOffered } from './codec.ts'
import { deviceId } from './device.ts'
import { type AuthCapabilities, askAuthCapabilities, askSuites } from './discovery.ts'
import { chassisStatus } from './power.ts'
import { readSel } from './sel.ts'
import { defaultTimers, type Timers } from './timers.ts'

/** One thing found. `odd` works but deserves a look; `bad` does not work, or is not safe. */
export interface Finding {
  topic: 'reach' | 'suites' | 'login' | 'power' | 'privilege' | 'boot override' | 'controller' | 'event log' | 'security'
  verdict: 'good' | 'odd' | 'bad'
  /** A sentence for people. */
  found: string
  /** What to do about it, where something should be done. */
  hint?: string
}

export interface BmcCheck {
  target: string
  findings: Finding[]
  /** Whether Muster can provision with it: power state, power control and login work. */
  usable: boolean
}

/** Findings without which a machine cannot be provisioned. */
const needed: readonly Finding['topic'][] = ['login', 'power', 'privilege']

/** An event log longer than this is mentioned. */
const manyEvents = 500

/**
 * Asks the BMC everything, one question after the other, and never throws for what the BMC does: that is a finding. After a failed
 * login nothing more is asked. Throws DriverError `cancelled` when the signal fires.
 */
export async function checkBmc(
  settings: IpmiSettings,
  options: { signal?: AbortSignal; timers?: Partial<Timers> } = {},
): Promise<BmcCheck> {
  const timers = { ...defaultTimers, ...options.timers }
  const signal = options.signal ?? new AbortController().signal
  const client = ipmiClient(settings, { timers, context: { signal } })
  const findings: Finding[] = []
  try {
    findings.push(...(await checkOutside(client, { signal, probeMs: timers.probeMs })))
    const login = await checkLogin(client)
    findings.push(...login)
    if (login.every(finding => finding.verdict !== 'bad')) {
      for (const check of insideChecks) findings.push(await inside(client, check))
    }
  } finally {
    await client.close()
  }
  const usable = needed.every(topic => findings.some(finding => finding.topic === topic && finding.verdict !== 'bad'))
  return { target: client.target, findings, usable }
}

interface InsideCheck {
  topic: Finding['topic']
  tried: string
  /** What a failure means: some things a machine can do without. */
  failed: 'odd' | 'bad'
  ask: (turn: Turn) => Promise<Omit<Finding, 'topic'>>
}

const insideChecks: readonly InsideCheck[] = [
  {
    topic: 'power',
    tried: 'power status',
    failed: 'bad',
    ask: async turn => {
      const { power, fault, controlFault, overload, interlock } = await chassisStatus(turn)
      const troubles = Object.entries({ 'power fault': fault, 'power control fault': controlFault, overload, interlock })
        .filter(([, present]) => present)
        .map(([name]) => name)
      if (troubles.length === 0) return { verdict: 'good', found: `The machine is ${power}.` }
      return {
        verdict: 'odd',
        found: `The machine is ${power}, and the BMC reports: ${troubles.join(', ')}.`,
        hint: 'Look at the power supplies and the chassis lid before trusting power control.',
      }
    },
  },
  {
    // Reading the override needs the same level as switching power, so this proves the privilege without switching anything.
    topic: 'privilege',
    tried: 'use OPERATOR',
    failed: 'bad',
    ask: async turn => {
      await turn.command(commands.getBootOptions, { data: Buffer.of(bootParameters.flags, 0, 0), privilege: 'OPERATOR' })
      return { verdict: 'good', found: 'The account may switch power (OPERATOR).' }
    },
  },
  {
    topic: 'boot override',
    tried: 'read boot device',
    failed: 'odd',
    ask: async turn => {
      const next = await readBootNext(turn)
      return {
        verdict: 'good',
        found: next ? `The next boot is set to ${next.device} (${next.firmware}).` : 'There is a boot override, not set now.',
      }
    },
  },
  {
    topic: 'controller',
    tried: 'ask who the BMC is',
    failed: 'odd',
    ask: async turn => {
      const { manufacturer, product, firmware, protocol } = await deviceId(turn)
      return { verdict: 'good', found: `Maker ${manufacturer}, product ${product}, firmware ${firmware}, ${protocol}.` }
    },
  },
  {
    topic: 'event log',
    tried: 'read event log',
    failed: 'odd',
    ask: async turn => {
      const entries = await readSel(turn, manyEvents)
      if (entries.length < manyEvents) return { verdict: 'good', found: `The event log has ${entries.length} entries.` }
      return {
        verdict: 'odd',
        found: `The event log has ${manyEvents} entries or more.`,
        hint: 'A full log takes no new events: read it, then clear it.',
      }
    },
  },
]

async function inside(client: IpmiClient, check: InsideCheck): Promise<Finding> {
  try {
    return { topic: check.topic, ...(await client.run(check.tried, check.ask)) }
  } catch (error) {
    return failed(check.topic, check.failed, error)
  }
}

async function checkLogin(client: IpmiClient): Promise<Finding[]> {
  const startedAt = performance.now()
  try {
    await client.run('log in', chassisStatus)
  } catch (error) {
    return [failed('login', 'bad', error)]
  }
  const ms = Math.round(performance.now() - startedAt)
  if (ms < slowLoginMs) return [{ topic: 'login', verdict: 'good', found: `Logged in and answered within ${ms} ms.` }]
  return [
    {
      topic: 'login',
      verdict: 'odd',
      found: `Logging in took ${ms} ms.`,
      hint: 'The BMC is slow, or the path to it loses packets; a restart of the BMC often helps.',
    },
  ]
}

/** Healthy BMCs need 50 to 500 ms. */
const slowLoginMs = 2000

async function checkOutside(client: IpmiClient, options: { signal: AbortSignal; probeMs: number }): Promise<Finding[]> {
  try {
    return await client.ask('ask without a session', async link => {
      const capabilities = await askAuthCapabilities(link, { ...options, privilege: 'OPERATOR' })
      const suites = await askSuites(link, options)
      return [...reachFindings(capabilities), ...suiteFindings(suites)]
    })
  } catch (error) {
    return [failed('reach', 'bad', error)]
  }
}

function reachFindings(capabilities: AuthCapabilities | undefined): Finding[] {
  if (!capabilities) {
    return [
      {
        topic: 'reach',
        verdict: 'odd',
        found: 'No answer to questions without a session.',
        hint: 'Some BMCs answer only logins. If the login fails too, check address, cabling and that IPMI over LAN is enabled.',
      },
    ]
  }
  if (!capabilities.v20) {
    return [{ topic: 'reach', verdict: 'bad', found: 'The BMC speaks only IPMI 1.5.', hint: 'Muster needs IPMI 2.0: update the firmware.' }]
  }
  const findings: Finding[] = [{ topic: 'reach', verdict: 'good', found: 'The BMC answers and speaks IPMI 2.0.' }]
  if (capabilities.anonymousUser || capabilities.nullUser) {
    findings.push({
      topic: 'security',
      verdict: 'odd',
      found: 'The BMC says that it lets in users without a name.',
      hint: 'Disable user 1 (the one without a name) unless it has a password. Some boards claim this wrongly.',
    })
  }
  if (capabilities.kgSet) findings.push({ topic: 'security', verdict: 'good', found: 'The BMC says that a K_g is set.' })
  return findings
}

function suiteFindings(records: SuiteRecord[] | undefined): Finding[] {
  if (!records)
    return [{ topic: 'suites', verdict: 'odd', found: 'The BMC does not list its cipher suites.', hint: 'Harmless: 17 and 3 are tried.' }]
  const findings: Finding[] = []
  if (records.some(record => record.enterprise === undefined && record.authentication.includes(0))) {
    findings.push({
      topic: 'security',
      verdict: 'bad',
      found: 'The BMC offers cipher suite 0, which lets anybody in without a password.',
      hint: 'Disable cipher suite 0 on the BMC.',
    })
  }
  const offered = suitesOffered(records)
  if (offered.includes(17)) findings.push({ topic: 'suites', verdict: 'good', found: `Offers suite ${offered.join(' and ')}.` })
  else if (offered.includes(3)) {
    findings.push({ topic: 'suites', verdict: 'good', found: 'Offers suite 3 (SHA-1) but not 17 (SHA-256).' })
  } else {
    findings.push({
      topic: 'suites',
      verdict: 'odd',
      found: 'Lists neither suite 17 nor 3.',
      hint: 'If the login fails, enable cipher suite 17 (or 3) on the BMC.',
    })
  }
  return findings
}

/** A failure as a finding; the caller's own cancellation is none, and neither is a fault of ours. */
function failed(topic: Finding['topic'], verdict: 'odd' | 'bad', error: unknown): Finding {
  if (!(error instanceof DriverError) || error.kind === 'cancelled') throw error
  return { topic, verdict, found: sentence(error.got), hint: error.hint }
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`
}
