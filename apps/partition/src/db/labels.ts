// Tags, pools and zones: described by rows, used by machines.
import type { LabelEntry, LabelKind } from '@muster/shared/contract/labels'
import type { Sql } from './connect.ts'

const useOf = (sql: Sql, kind: LabelKind) =>
  kind === 'tag' ? sql`select unnest(tags) as name, state from machines` : sql`select ${sql(kind)} as name, state from machines`

/** Labels that are described or used, by name; with `name`, that one only. */
export function listLabels(sql: Sql, kind: LabelKind, name?: string): Promise<LabelEntry[]> {
  return sql<LabelEntry[]>`
    select name, coalesce(max(description), '') as description, sum(machines)::int as machines, sum(ready)::int as ready
    from (
      select name, description, 0 as machines, 0 as ready from labels where kind = ${kind}
      union all
      select name, null, count(*), count(*) filter (where state = 'ready') from (${useOf(sql, kind)}) as used group by name
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
