// Reads what a partition has written down: straight from its database, because no server may stand between the judge and the facts.
import postgres from 'postgres'
import type { AllocationRecord, LogEntry, MachineRecord, PartitionRecord } from './history.ts'

/** Long enough for the slowest step of anything that is promised to end by itself (R8). */
const overdueSeconds = 60

export interface Books extends AsyncDisposable {
  read(): Promise<PartitionRecord>
  /** Machines past their deadline by more than is promised, in words. */
  overdue(): Promise<string[]>
  /** Those of the notes whose allocations have machines at this moment. */
  notesWithMachines(notes: readonly string[]): Promise<string[]>
  /** Machines that are not ready, by state; and events without a number. */
  unrest(): Promise<{ states: Record<string, number>; unnumbered: number }>
}

/** Opens one partition's database for reading. */
export function openBooks(name: string, database: string): Books {
  const sql = postgres(database, {
    max: 1,
    onnotice: () => {},
    types: { int8: { to: 20, from: [20], parse: (text: string) => Number(text), serialize: String } },
  })
  return {
    read: () =>
      // One snapshot: rows and log speak of the same moment.
      sql.begin('isolation level repeatable read read only', async snapshot => {
        const log = await snapshot<LogEntry[]>`
          select id, seq, extract(epoch from at)::float8 * 1000 as at, kind, machine_id as machine, data->>'move' as move,
            data->>'from' as from, data->>'to' as to, data->>'allocation' as allocation
          from events where seq is not null order by seq`
        const [counts] = await snapshot<{ last_seq: number; unnumbered: number }[]>`
          select last_seq, (select count(*) from events where seq is null) as unnumbered from event_log`
        const allocations = await snapshot<AllocationRecord[]>`
          select id, state, count, note, machine_ids as machines from allocations`
        const machines = await snapshot<MachineRecord[]>`select id, state, allocation_id as allocation from machines`
        return { name, lastSeq: counts?.last_seq ?? 0, unnumbered: counts?.unnumbered ?? 0, log, allocations, machines }
      }),
    overdue: async () => {
      const rows = await sql<{ id: string; state: string; late: number }[]>`
        select id, state, extract(epoch from now() - deadline_at)::float8 as late from machines
        where deadline_at < now() - ${overdueSeconds} * interval '1 second' and fault is null`
      return rows.map(({ id, state, late }) => `${id} is ${state}, ${Math.round(late)} s past its deadline`)
    },
    notesWithMachines: async notes => {
      const rows = await sql<{ note: string }[]>`
        select distinct a.note from allocations a join machines m on m.allocation_id = a.id where a.note = any(${notes as string[]})`
      return rows.map(({ note }) => note)
    },
    unrest: async () => {
      const rows = await sql<{ state: string; machines: number }[]>`
        select state, count(*) as machines from machines where state <> 'ready' or allocation_id is not null group by state`
      const [events] = await sql<{ unnumbered: number }[]>`select count(*) as unnumbered from events where seq is null`
      return { states: Object.fromEntries(rows.map(({ state, machines }) => [state, machines])), unnumbered: events?.unnumbered ?? 0 }
    },
    [Symbol.asyncDispose]: () => sql.end({ timeout: 5 }),
  }
}
