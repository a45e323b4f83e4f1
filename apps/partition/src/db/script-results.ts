// Results of scripts: written once, never changed, forgotten when newer commissionings have taken their place.
import type { ScriptReport } from '@muster/shared/scripts'
import type { Sql } from './connect.ts'

export interface ScriptResultRow {
  id: number
  machine_id: string
  run: string
  script: string
  kind: ScriptReport['kind']
  part: string
  status: ScriptReport['status']
  exit_code: number | null
  seconds: number
  message: string
  result: Record<string, unknown> | null
  at: Date
}

const columns = ['id', 'machine_id', 'run', 'script', 'kind', 'part', 'status', 'exit_code', 'seconds', 'message', 'result', 'at'] as const

/** Keeps a result; the first of a script on a part in a run stays. */
export async function insertScriptResult(sql: Sql, row: Omit<ScriptResultRow, 'id' | 'at'> & { output: string }): Promise<void> {
  const result = row.result === null ? null : sql.json(row.result as never)
  await sql`insert into script_results ${sql({ ...row, result } as never)} on conflict (machine_id, run, script, part) do nothing`
}

/** What was told in one run, in the order in which it came. */
export function scriptResultsOfRun(
  sql: Sql,
  machine: string,
  run: string,
): Promise<Pick<ScriptResultRow, 'script' | 'kind' | 'part' | 'status' | 'message'>[]> {
  return sql`select script, kind, part, status, message from script_results where machine_id = ${machine} and run = ${run} order by id`
}

export interface ScriptResultFilter {
  machine: string
  /** `latest`: of the last run that has any. */
  run: string | undefined
  script: string | undefined
  /** Those older than this result. */
  before: number | undefined
  limit: number
}

/** Latest first, without what they wrote. */
export function listScriptResults(sql: Sql, { machine, run, script, before, limit }: ScriptResultFilter): Promise<ScriptResultRow[]> {
  const latest = sql`(select run from script_results where machine_id = ${machine} order by id desc limit 1)`
  return sql<ScriptResultRow[]>`
    select ${sql(columns)} from script_results
    where machine_id = ${machine}
      ${run === undefined ? sql`` : sql`and run = ${run === 'latest' ? latest : run}`}
      ${script === undefined ? sql`` : sql`and script = ${script}`}
      ${before === undefined ? sql`` : sql`and id < ${before}`}
    order by id desc limit ${limit}`
}

/** One result with what the script wrote. */
export async function findScriptResult(sql: Sql, machine: string, id: number): Promise<(ScriptResultRow & { output: string }) | undefined> {
  const [row] = await sql<(ScriptResultRow & { output: string })[]>`
    select * from script_results where machine_id = ${machine} and id = ${id}`
  return row
}

/** Forgets all but the latest runs of a machine. */
export async function forgetScriptRuns(sql: Sql, machine: string, kept: number): Promise<void> {
  await sql`
    delete from script_results where machine_id = ${machine} and run not in (
      select run from script_results where machine_id = ${machine} group by run order by max(id) desc limit ${kept})`
}
