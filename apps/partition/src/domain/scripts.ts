// Scripts of a commissioning: which are chosen, what the agent is given of them, what it tells of each, and what that means for the machine. The agent
// does the work (apps/agent/root/muster/scripts.sh).
import type { CallAnswer, CallInput } from '@muster/shared/contract/contract'
import { durationMs } from '@muster/shared/duration'
import { type FieldError, Refusal } from '@muster/shared/errors'
import type { Fault } from '@muster/shared/machine'
import { type JobScript, parametersOf, type Script, type ScriptChoice, type ScriptReport, type ScriptResult } from '@muster/shared/scripts'
import type { MachineRow } from '../db/machines.ts'
import {
  findScriptResult,
  forgetScriptRuns,
  insertScriptResult,
  listScriptResults,
  type ScriptResultRow,
  scriptResultsOfRun,
} from '../db/script-results.ts'
import { type Core, deadlineFor } from './core.ts'

/** Results of so many commissionings are kept of each machine. */
const keptRuns = 10
/** A fault names so many failures; the results have them all. */
const namedMax = 5

type Asked = Partial<Pick<CallInput<'machines.commission'>, 'scripts' | 'tests' | 'parameters'>>

/**
 * What a commissioning is to run: what was asked for, else all commissioning scripts of the partition and the tests of its rule. Throws invalid-input
 * where a script is not here, is of the other kind, or does not take these parameters.
 */
export function chooseScripts(core: Core, asked: Asked = {}): ScriptChoice[] {
  const errors: FieldError[] = []
  const all = core.catalogue.scripts
  const pick = (field: 'scripts' | 'tests', kind: Script['kind'], usual: readonly Script[]) =>
    [...new Set(asked[field] ?? usual.map(({ name }) => name))].flatMap(name => {
      const script = all.find(known => known.name === name)
      if (script?.kind === kind) return [script]
      const have = all.filter(known => known.kind === kind).map(known => known.name)
      const what = script ? `is a ${script.kind} script` : `is no script that partition ${core.partition} has`
      errors.push({ field, message: `${name} ${what}; there are ${have.join(', ') || 'none'}` })
      return []
    })
  const ours = all.filter(script => script.kind === 'commissioning')
  const chosen = [...pick('scripts', 'commissioning', ours), ...pick('tests', 'test', usualTests(core))]
  const choices = chosen.map(script => {
    const { values, problems } = parametersOf(script, asked.parameters?.[script.name])
    for (const { parameter, message } of problems) errors.push({ field: `parameters.${script.name}.${parameter}`, message })
    return { name: script.name, parameters: values }
  })
  for (const name of Object.keys(asked.parameters ?? {}))
    if (!chosen.some(script => script.name === name))
      errors.push({ field: `parameters.${name}`, message: 'is of a script that does not run' })
  const [first] = errors
  if (first) throw new Refusal('invalid-input', `${first.field}: ${first.message}`, { errors })
  return choices
}

/** The tests of the partition's rule. One that is not here must not keep machines from being commissioned. */
function usualTests(core: Core): Script[] {
  return core.rules.tests.flatMap(name => {
    const script = core.catalogue.scripts.find(known => known.name === name && known.kind === 'test')
    if (!script) core.log.warn({ test: name }, `the partition's rule names a test ${name}, which is not here`)
    return script ? [script] : []
  })
}

/** What the agent is given. Throws not-found where the file of a script has gone since it was chosen. */
export function jobScripts(core: Core, row: MachineRow): JobScript[] {
  return row.scripts.map(({ name, parameters }) => {
    const { kind, on, timeout, only, text } = existingScript(core, name)
    return { name, kind, on, timeoutSeconds: Math.ceil(durationMs(timeout) / 1000), parameters, only, text }
  })
}

function existingScript(core: Core, name: string): Script {
  const script = core.catalogue.scripts.find(known => known.name === name)
  if (!script) throw new Refusal('not-found', `the script ${name} was chosen for this machine and is gone from partition ${core.partition}`)
  return script
}

/** How much longer a commissioning may take for its scripts: half of the usual time is theirs, and what they may need beyond that is added. */
export function scriptsMs(core: Core, row: MachineRow, choices: readonly ScriptChoice[]): number {
  const mayTakeMs = choices.reduce((sum, { name }) => {
    const { on, timeout } = existingScript(core, name)
    const parts = { machine: 1, disk: row.disks.length, interface: row.interfaces.length }[on]
    return sum + durationMs(timeout) * Math.max(1, parts)
  }, 0)
  return Math.max(0, mayTakeMs - (deadlineFor(core, 'commissioning') as number) / 2)
}

/** Keeps what the agent says of a script. A repeat adds nothing. Throws wrong-state where no such script is to run, invalid-input for a part it has not. */
export async function receiveScriptResult(core: Core, machine: MachineRow & { run: string }, said: ScriptResult): Promise<void> {
  if (machine.state !== 'commissioning' || !machine.scripts.some(({ name }) => name === said.script))
    throw new Refusal('wrong-state', `no script ${said.script} is to run on ${machine.id}`, { state: machine.state })
  // So that an agent cannot fill the table: a script has one result for each part that the inventory names.
  const parts = [...machine.disks, ...machine.interfaces].map(({ name }) => name)
  if (said.part !== '' && !parts.includes(said.part))
    throw new Refusal('invalid-input', `part: ${machine.id} has no disk or interface ${said.part}`, {
      errors: [{ field: 'part', message: 'is no disk or interface of the inventory' }],
    })
  const { kind } = existingScript(core, said.script)
  const { script, part, status, exitCode, seconds, message, output, result } = said
  const told = { script, kind, part, status, exit_code: exitCode, seconds, message, output, result }
  await insertScriptResult(core.sql, { machine_id: machine.id, run: machine.run, ...told })
}

/** What is wrong with a commissioning whose agent says that it is done: a script failed, or was not told of. Undefined where all is well. */
export async function scriptsFault(core: Core, machine: MachineRow): Promise<Omit<Fault, 'since'> | undefined> {
  if (machine.scripts.length === 0 || machine.run === null) return undefined
  const told = await scriptResultsOfRun(core.sql, machine.id, machine.run)
  const bad = told.filter(({ status }) => status === 'failed' || status === 'timed-out')
  if (bad.length > 0) {
    const words = bad.slice(0, namedMax).map(failureWords).join('; ')
    const more = bad.length > namedMax ? `; and ${bad.length - namedMax} more` : ''
    return {
      code: 'script-failed',
      message: `${words}${more}`,
      hint: `see what it wrote: muster machine results ${machine.id} --log ${bad[0]?.script}`,
    }
  }
  const missing = machine.scripts.filter(({ name }) => !told.some(({ script }) => script === name)).map(({ name }) => name)
  if (missing.length === 0) return undefined
  return {
    code: 'script-missing',
    message: `the agent ended and told nothing of ${missing.join(', ')}`,
    hint: "the agent's image is older than this partition: build it anew (npm run agent:build)",
  }
}

function failureWords({
  script,
  kind,
  part,
  status,
  message,
}: Pick<ScriptResultRow, 'script' | 'kind' | 'part' | 'status' | 'message'>): string {
  const what = kind === 'test' ? `test ${script}` : `commissioning script ${script}`
  return `${what} ${status === 'failed' ? 'failed' : 'timed out'}${part && ` on ${part}`}${message && `: ${message}`}`
}

/** Forgets results of commissionings that are long past. */
export async function forgetOldResults(core: Core, machine: MachineRow): Promise<void> {
  if (machine.scripts.length > 0) await forgetScriptRuns(core.sql, machine.id, keptRuns)
}

export async function scriptResults(
  core: Core,
  { id, run, script, limit, cursor }: CallInput<'machines.scriptResults'>,
): Promise<CallAnswer<'machines.scriptResults'>> {
  const before = cursor === undefined ? undefined : Number(cursor)
  const rows = await listScriptResults(core.sql, { machine: id, run, script, before, limit: limit + 1 })
  const items = rows.slice(0, limit).map(reportOf)
  return { items, nextCursor: rows.length > limit ? String(items.at(-1)?.id) : null }
}

/** Throws not-found. */
export async function scriptOutput(
  core: Core,
  { id, result }: CallInput<'machines.scriptOutput'>,
): Promise<CallAnswer<'machines.scriptOutput'>> {
  const row = await findScriptResult(core.sql, id, result)
  if (!row) throw new Refusal('not-found', `machine ${id} has no result ${result}: it is not of this machine, or was forgotten`)
  return { ...reportOf(row), output: row.output }
}

function reportOf({
  id,
  machine_id,
  run,
  script,
  kind,
  part,
  status,
  exit_code,
  seconds,
  message,
  result,
  at,
}: ScriptResultRow): ScriptReport {
  const told = { run, script, kind, part, status, exitCode: exit_code, seconds, message, result }
  return { id, at: at.toISOString(), machine: machine_id, ...told }
}

export function listScripts(core: Core): CallAnswer<'scripts.list'> {
  const usual = new Set(core.rules.tests)
  const items = core.catalogue.scripts.map(({ text, ...head }) => ({
    ...head,
    source: text === null ? ('agent' as const) : ('partition' as const),
    default: head.kind === 'commissioning' || usual.has(head.name),
    partitions: [core.partition],
  }))
  return { items, nextCursor: null }
}
