// CPU of processes, from /proc: what a figure costs does not depend on who else uses the machine, as its rate does.
import { readdirSync, readFileSync } from 'node:fs'

/** Processes that do one thing together, by their roles: `front`, `broker` … */
export type Groups = Readonly<Record<string, () => readonly number[]>>
/** CPU microseconds by group. */
export type Costs = Record<string, number>

/** CPU time of each group since its processes started, in microseconds. */
export function cpuOf(groups: Groups): Costs {
  return Object.fromEntries(Object.entries(groups).map(([name, pids]) => [name, pids().reduce((sum, pid) => sum + cpuMicros(pid), 0)]))
}

/** Runs `act` and answers what it answered, with the CPU that each group used meanwhile. */
export async function costing<Result>(groups: Groups, act: () => Promise<Result>): Promise<{ result: Result; costs: Costs }> {
  const before = cpuOf(groups)
  const result = await act()
  const after = cpuOf(groups)
  return { result, costs: Object.fromEntries(Object.keys(after).map(name => [name, (after[name] ?? 0) - (before[name] ?? 0)])) }
}

/**
 * The processes of PostgreSQL by what their names say: one per connection, named for its database. What serves all databases (the writer of the
 * log, the checkpointer) belongs to everybody, and so to both sides of a comparison.
 */
export function postgresOf(postmaster: number, isOurs: (database: string) => boolean): number[] {
  const children = readdirSync('/proc').flatMap(entry =>
    /^\d+$/.test(entry) && parentOf(Number(entry)) === postmaster ? [Number(entry)] : [],
  )
  return children.filter(pid => {
    const [, database] = /^postgres: muster (\S+) \[local\]/.exec(nameOf(pid)) ?? []
    return database === undefined || isOurs(database)
  })
}

/** The server that a connection's process belongs to. */
export const postmasterOf = (backend: number): number => parentOf(backend)

function nameOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return '' // it ended while we looked
  }
}

/** All threads, in nanoseconds of the scheduler where it counts them, else in ticks of 10 ms. A process that is gone counts nothing. */
function cpuMicros(pid: number): number {
  try {
    const tasks = readdirSync(`/proc/${pid}/task`)
    return tasks.reduce((sum, task) => sum + Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]) / 1000, 0)
  } catch {
    const fields = statFields(pid)
    return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) * 10_000
  }
}

const parentOf = (pid: number) => Number(statFields(pid)[1])

/** The fields behind the name, which may hold blanks itself. */
function statFields(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? []
  } catch {
    return [] // it ended while we looked
  }
}
