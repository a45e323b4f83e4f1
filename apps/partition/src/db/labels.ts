// Tags, pools and zones: described by rows, used by machines.
import type { LabelEntry, LabelKind } from '@muster/shared/contract/labels'
import type { Sql } from './connect.ts'
import { isSeenBy, type SeenBy } from './machines.ts'

const useOf = (sql: Sql, kind: LabelKind, seenBy: SeenBy | undefined) => sql`
  select ${kind === 'tag' ? sql`unnest(m.tags)` : sql`m.${sql(kind)}`} as name, m.state from machines m where ${isSeenBy(sql, seenBy)}`

/** Labels that are described, or used by machines that this caller may see (undefined: all are); by name; with `name`, that one only. */
export function listLabels(
  sql: Sql,
  kind: LabelKind,
  { name, seenBy }: { name?: string; seenBy: SeenBy | undefined },
): Promise<LabelEntry[]> {
  return sql<LabelEntry[]>`
    select name, coalesce(max(description), '') as description, sum(machines)::int as machines, sum(ready)::int as ready
    from (
      select name, description, 0 as machines, 0 as ready from labels where kind = ${kind}
      union all
      select name, null, count(*), count(*) filter (where state = 'ready') from (${useOf(sql, kind, seenBy)}) as used group by name
    ) as both_sides
    where true ${name === undefined ? sql`` : sql`and name = ${name}`}
    group by name order by name collate "C"`
}

export async function putLabel(sql: Sql, kind: LabelKind, label: { name: string; description: string }): Promise<void> {
  await sql`
    insert into labels (kind, name, description) values (${kind}, ${label.name}, ${label.description})
    on conflict (kind, name) do update set description = excluded.description`
}

export async function deleteLabel(sql: Sql, kind: LabelKind, name: string): Promise<void> {
  await sql`delete from labels where kind = ${kind} and name = ${name}`
}

/** The machines that wear a tag. */
export async function machinesWithTag(sql: Sql, tag: string): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`select id from machines where tags @> ${[tag]}`
  return rows.map(({ id }) => id)
}
