// A database for a process that can die: what the kill matrix and the power model have in common.
import type { Sql } from '../src/db/connect.ts'

/** The same database, every statement of which goes through `step`: there the process may die before it is sent or before its answer is read. */
export function mortalSql(sql: Sql, step: <T>(act: () => Promise<T>) => Promise<T>): Sql {
  return new Proxy(sql, {
    apply: (target, self, args: unknown[]) => {
      const query = Reflect.apply(target as never, self, args) as PromiseLike<unknown>
      if (!Array.isArray((args[0] as { raw?: unknown } | undefined)?.raw)) return query
      // A fragment within another query is never awaited, so it is no step.
      const run = query.then.bind(query)
      // biome-ignore lint/suspicious/noThenProperty: a query is a thenable, and this is where it is sent
      query.then = ((ok: never, no: never) => step(() => new Promise((resolve, reject) => void run(resolve, reject))).then(ok, no)) as never
      return query
    },
  })
}
