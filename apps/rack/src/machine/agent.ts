// The agent's part: what the small Linux in memory does once a kernel with muster's arguments has booted. Enlists, or fetches its job
// and does it: commission, install, erase or rescue (libs/shared/src/agent.ts is the protocol).
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type AgentMode,
  agentModes,
  type Erasure,
  enlisted,
  type Job,
  job as jobSchema,
  kernelArguments,
  type Signal,
} from '@muster/shared/agent'
import type { JobScript, ScriptResult } from '@muster/shared/scripts'
import type { Boot, Ending } from './boot.ts'
import { HttpFailure, patientAttempts } from './http.ts'
import { durations } from './pace.ts'
import { partsFor, simulatedResult } from './scripts.ts'

/** Plays the agent until the machine reboots, powers itself off or has nothing left to do. Rejects only when the power goes. */
export async function runAgent(boot: Boot, args: ReadonlyMap<string, string>): Promise<Ending> {
  const url = args.get(kernelArguments.url)
  const mode = agentModes.find(name => name === args.get(kernelArguments.mode))
  if (!url || !mode) {
    boot.note('hung', { why: `the kernel's arguments name no ${url ? kernelArguments.mode : kernelArguments.url}` })
    return 'stay'
  }
  boot.enter('agent')
  await boot.pacer.stage('agentStart', boot.signal)
  boot.note('agent', { mode })
  await boot.pacer.stage('probe', boot.signal)
  const base = url.replace(/\/+$/, '')
  return await agentModeTable[mode]({ boot, base, token: args.get(kernelArguments.token) ?? '' })
}

interface Agent {
  readonly boot: Boot
  /** The partition's door, without a slash at its end. */
  readonly base: string
  readonly token: string
}

const agentModeTable: Readonly<Record<AgentMode, (agent: Agent) => Promise<Ending>>> = {
  enlist,
  commission: doJob,
  install: doJob,
  erase: doJob,
  rescue: doJob,
}

/** Announces the machine, then powers it off: there is nothing to do until somebody decides. */
async function enlist({ boot, base }: Agent): Promise<Ending> {
  const password = boot.behaviour.reportedPassword === 'wrong' ? `not-${boot.bmc.password}`.slice(0, 20) : boot.bmc.password
  const { address, user, redfish } = boot.bmc
  const bmc = redfish
    ? { driver: 'redfish', settings: { address: redfish.url, user, password, certificate: redfish.fingerprint } }
    : { driver: 'ipmi', settings: { address, user, password } }
  const body = JSON.stringify({ ...boot.inventory, hostname: boot.name, bmc })
  try {
    const answer = await boot.http.ask({
      method: 'POST',
      url: `${base}/agent/enlist`,
      headers: json,
      body,
      attempts: patientAttempts,
      signal: boot.signal,
    })
    const { id, outcome } = enlisted.parse(JSON.parse(answer.body.toString('utf8')))
    boot.note('enlisted', { id, outcome })
  } catch (error) {
    boot.note('enlist refused', { why: reasonOf(error, boot.signal) })
  }
  return 'power-off'
}

/** Whatever the kernel line says, the job says what is wanted by now. */
async function doJob(agent: Agent): Promise<Ending> {
  const { boot } = agent
  let job: Job
  try {
    const answer = await boot.http.ask({
      url: `${agent.base}/agent/job`,
      headers: bearer(agent),
      attempts: patientAttempts,
      signal: boot.signal,
    })
    job = jobSchema.parse(JSON.parse(answer.body.toString('utf8')))
  } catch (error) {
    // The run is over (its token died) or the server is gone for long: a machine without a job does not burn power.
    boot.note('job refused', { why: reasonOf(error, boot.signal) })
    return 'power-off'
  }
  boot.note('job', { kind: job.kind, machine: job.machine })
  try {
    if (job.kind === 'commission') return await commission(agent, job)
    if (job.kind === 'install') return await install(agent, job)
    if (job.kind === 'erase') return await erase(agent, job)
    return await rescue(agent, job)
  } catch (error) {
    // Stays on for somebody to look; the server switches it off when the state wants that.
    boot.note('job refused', { why: reasonOf(error, boot.signal) })
    return 'stay'
  }
}

/** What commissioning looks at, in order, and how long it really takes. */
const commissioningSteps = [
  { step: 'inventory', realMs: 10_000 },
  { step: 'cpu', realMs: 20_000 },
  { step: 'memory', realMs: 30_000 },
  { step: 'disks', realMs: 30_000 },
  { step: 'network', realMs: 15_000 },
] as const

async function commission(agent: Agent, job: Job & { kind: 'commission' }): Promise<Ending> {
  const { boot } = agent
  await post(agent, 'inventory', boot.inventory)
  boot.note('inventory sent')
  for (const [at, { step, realMs }] of commissioningSteps.entries()) {
    const share = (part: number) => Math.round((100 * (at + part)) / commissioningSteps.length)
    const isHalfWay = step === 'memory'
    if (isHalfWay && boot.behaviour.commissioning === 'falls silent') {
      boot.note('fell silent', { step })
      return 'stay'
    }
    if (isHalfWay && boot.behaviour.commissioning === 'signals failed') {
      await signal(agent, { status: 'failed', step, message: 'memory test: 3 errors at 0x00000003f2a41c08 on DIMM A2', progress: share(0) })
      return 'stay'
    }
    await work(agent, { step, realMs, heartbeatMs: job.heartbeatMs, progress: share })
  }
  for (const [at, script] of job.scripts.entries())
    await runScript(agent, script, {
      heartbeatMs: job.heartbeatMs,
      progress: part => Math.round((100 * (at + part)) / job.scripts.length),
      // The first test, whichever that is.
      ends:
        boot.behaviour.commissioning === 'a test fails' && script === job.scripts.find(({ kind }) => kind === 'test') ? 'badly' : 'well',
    })
  const message = `${commissioningSteps.length} steps and ${job.scripts.length} scripts ended`
  await signal(agent, { status: 'done', step: 'commission', message, progress: 100 })
  return 'power-off'
}

/** How long a script really takes on one part of a machine. */
const scriptRealMs = 5_000

/** Tells of each part as the script has run on it. Where it ends badly it does so on the first. */
async function runScript(
  agent: Agent,
  script: JobScript,
  { heartbeatMs, progress, ends }: { heartbeatMs: number; progress: (part: number) => number; ends: 'well' | 'badly' },
): Promise<void> {
  const { inventory } = agent.boot
  const tell = (result: ScriptResult) => post(agent, 'script-result', result)
  const parts = partsFor(script, inventory)
  if ('skipped' in parts) {
    const common = { script: script.name, part: '', exitCode: null, seconds: 0, output: '', result: null }
    await tell({ ...common, status: 'skipped', message: parts.skipped })
    return
  }
  for (const [at, part] of parts.entries()) {
    const share = (done: number) => progress((at + done) / parts.length)
    await work(agent, { step: script.name, realMs: scriptRealMs, heartbeatMs, progress: share })
    await tell(simulatedResult(script, part, { inventory, ends: at === 0 ? ends : 'well' }))
  }
  agent.boot.note('script ran', { script: script.name, parts: parts.length })
}

async function install(agent: Agent, job: Job & { kind: 'install' }): Promise<Ending> {
  const { boot } = agent
  // Progress is told beside the work and not between its parts: an image may come in one long breath.
  const report: { step: string; progress: number } = { step: 'download', progress: 0 }
  const failed = async (message: string): Promise<Ending> => {
    await signal(agent, { status: 'failed', step: report.step, message, progress: report.progress })
    return 'stay'
  }
  const everyMs = Math.max(100, Math.min(job.heartbeatMs, boot.pacer.scaledMs(durations.progress)))
  await using telling = tellProgress(agent, { report, everyMs })
  const fetched = await fetchImage(agent, job, progress => {
    report.progress = Math.round(progress * 60)
  })
  if (fetched !== undefined) {
    await telling.stop()
    return await failed(fetched)
  }
  Object.assign(report, { step: 'write', progress: 60 })
  await telling.now()
  if (boot.behaviour.install === 'disk errors') {
    await telling.stop()
    const [first] = boot.inventory.disks
    return await failed(`write to /dev/${first?.name ?? 'sda'}: Input/output error at byte ${Math.floor(job.image.sizeBytes * 0.61)}`)
  }
  await boot.pacer.stage('writeImage', boot.signal)
  Object.assign(report, { step: 'seed', progress: 95 })
  await telling.now()
  await boot.pacer.stage('writeSeed', boot.signal)
  const { os, hostname, seedUrl, metadata } = job
  boot.writeDisk({ kind: 'installed', os, hostname, sha256: job.image.sha256, seedUrl, ...(metadata && { metadata }) })
  boot.note('image written', { os: job.os, bytes: job.image.sizeBytes })
  await telling.stop()
  await signal(agent, { status: 'done', step: 'install', message: `${job.os} written`, progress: 100 })
  return 'reboot'
}

/** Fetches and verifies the image; from its first byte on the disk is not what it was. Returns why it failed, undefined if it did not. */
async function fetchImage(agent: Agent, job: Job & { kind: 'install' }, progress: (share: number) => void): Promise<string | undefined> {
  const { boot } = agent
  const { url, sha256, sizeBytes } = job.image
  let found = { bytes: 0, digest: '' }
  try {
    await boot.http.retrying({ attempts: imageAttempts, signal: boot.signal }, async () => {
      const hash = createHash('sha256')
      let bytes = 0
      await boot.http.download({ url, signal: boot.signal }, chunk => {
        if (bytes === 0) boot.writeDisk({ kind: 'partial', os: job.os })
        bytes += chunk.length
        hash.update(chunk)
        progress(Math.min(1, bytes / sizeBytes))
        return bytes > sizeBytes ? 'stop' : 'more'
      })
      found = { bytes, digest: hash.digest('hex') }
    })
  } catch (error) {
    return `image not fetched: ${reasonOf(error, boot.signal)}`
  }
  if (found.bytes !== sizeBytes)
    return `image ${url} has ${found.bytes > sizeBytes ? 'more than' : `only ${found.bytes} of`} ${sizeBytes} bytes`
  return found.digest === sha256 ? undefined : `image ${url} has SHA-256 ${found.digest}, not ${sha256}`
}

const imageAttempts = 5

/** Tells of each disk as it is erased. */
async function erase(agent: Agent, job: Job & { kind: 'erase' }): Promise<Ending> {
  const { boot } = agent
  const { disks } = boot.inventory
  for (const [at, { name, serial, model, sizeBytes }] of disks.entries()) {
    const share = (part: number) => Math.round((100 * (at + part)) / disks.length)
    await work(agent, { step: 'erase', realMs: job.method === 'full' ? 600_000 : 10_000, heartbeatMs: job.heartbeatMs, progress: share })
    if (boot.behaviour.erase === 'a disk refuses') {
      await signal(agent, { status: 'failed', step: 'erase', message: `write to /dev/${name}: Input/output error`, progress: share(0) })
      return 'stay'
    }
    if (at === 0) boot.writeDisk({ kind: 'empty' })
    const outcome = job.method === 'full' ? 'overwritten' : 'discarded'
    await post(agent, 'erasure', { disk: name, serial, model, sizeBytes, outcome, samples: 64, seconds: 1 } satisfies Erasure)
  }
  boot.note('erased', { disks: disks.length })
  await signal(agent, { status: 'done', step: 'erase', message: `${disks.length} disks erased`, progress: 100 })
  return 'power-off'
}

async function rescue(agent: Agent, job: Job): Promise<Ending> {
  // Until the power goes, or the server says that the rescue is over.
  for (;;) {
    await signal(agent, { status: 'working', step: 'rescue', message: 'waiting for you on the console' })
    await sleep(Math.max(heartbeatMinMs, job.heartbeatMs), undefined, { signal: agent.boot.signal })
  }
}

const heartbeatMinMs = 50

/** One step of work: says that it begins, then is heard at least once per heartbeat until it has taken its time. */
async function work(
  agent: Agent,
  { step, realMs, heartbeatMs, progress }: { step: string; realMs: number; heartbeatMs: number; progress: (part: number) => number },
): Promise<void> {
  const { boot } = agent
  const totalMs = boot.pacer.scaledMs(realMs)
  const beatMs = Math.max(heartbeatMinMs, heartbeatMs)
  for (let doneMs = 0; doneMs <= totalMs; doneMs += beatMs) {
    await signal(agent, { status: 'working', step, message: '', progress: progress(totalMs > 0 ? doneMs / totalMs : 0) })
    if (totalMs - doneMs >= 1) await sleep(Math.min(beatMs, totalMs - doneMs), undefined, { signal: boot.signal })
  }
}

/** Signals `report` as it stands, again and again until stopped, and `now`. A lost heartbeat is no failure; the next one tells more. */
function tellProgress(
  agent: Agent,
  { report, everyMs }: { report: { step: string; progress: number }; everyMs: number },
): AsyncDisposable & { now(): Promise<void>; stop(): Promise<void> } {
  const stopping = new AbortController()
  const until = AbortSignal.any([agent.boot.signal, stopping.signal])
  const now = () => signal(agent, { status: 'working', step: report.step, message: '', progress: report.progress })
  const telling = (async () => {
    while (!until.aborted) {
      try {
        await now()
        await sleep(everyMs, undefined, { signal: until })
      } catch (error) {
        if (until.aborted) return
        agent.boot.note('job refused', { why: reasonOf(error, agent.boot.signal) })
        return
      }
    }
  })()
  const stop = async () => {
    stopping.abort()
    await telling
  }
  return { now, stop, [Symbol.asyncDispose]: stop }
}

/** Tells the partition. What ends a job is repeated patiently; a heartbeat only briefly. Throws HttpFailure where it is refused. */
async function signal(agent: Agent, said: Signal): Promise<void> {
  const attempts = said.status === 'working' ? heartbeatAttempts : patientAttempts
  let heard: 'yes' | 'no' = 'yes'
  try {
    await post(agent, 'signal', said, attempts)
  } catch (error) {
    // The server's "no" ends the job; its silence does not, while the work goes on.
    if (said.status !== 'working' || (error instanceof HttpFailure && isRefusal(error))) throw error
    agent.boot.signal.throwIfAborted()
    heard = 'no'
  }
  const progress = said.progress === undefined ? {} : { progress: said.progress }
  agent.boot.note('signal', { status: said.status, step: said.step, heard, ...progress, ...(said.message && { message: said.message }) })
}

const heartbeatAttempts = 3

function isRefusal({ status }: HttpFailure): boolean {
  return status !== undefined && status >= 400 && status < 500 && status !== 429
}

async function post(
  agent: Agent,
  door: 'inventory' | 'signal' | 'erasure' | 'script-result',
  body: unknown,
  attempts = patientAttempts,
): Promise<void> {
  await agent.boot.http.ask({
    method: 'POST',
    url: `${agent.base}/agent/${door}`,
    headers: { ...json, ...bearer(agent) },
    body: JSON.stringify(body),
    attempts,
    signal: agent.boot.signal,
  })
}

const json = { 'content-type': 'application/json' }

function bearer({ token }: Agent): Record<string, string> {
  return token === '' ? {} : { authorization: `Bearer ${token}` }
}

/** Why something failed, for the history. Losing power is not a failure: that is thrown on. */
function reasonOf(error: unknown, power: AbortSignal): string {
  power.throwIfAborted()
  return error instanceof Error ? error.message.slice(0, 500) : String(error)
}
