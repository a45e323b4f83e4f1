// The one place that opens connections to PostgreSQL, of partitions and of the fronts' global configuration.
import postgres from 'postgres'

/** Milliseconds one statement may take: ten times the slowest page of a list of 2,000 machines on a busy machine. */
const statementLimitMs = 10_000

const int8 = { to: 20, from: [20], parse: (text: string) => Number(text), serialize: (value: number) => String(value) }

export type Sql = postgres.Sql<{ int8: number }>

/** Opens a pool. Connections are made when needed and made anew after the server's restart. */
export function connect(
  url: string,
  options: { connections?: number; name: string; durability?: 'at once' | 'with the next change' },
): Sql {
  return postgres(url, {
    max: options.connections ?? 12,
    // 2^53 events are 285 years at a million a second: numbers are enough, and BigInt does not fit JSON.
    types: { int8 },
    connect_timeout: 5,
    // A server that comes back is found within a second; postgres.js waits ever longer by default.
    backoff: attempt => Math.min(0.1 * 2 ** attempt, 1) * (0.5 + Math.random()),
    // A partition's tables are in memory. With the default, made for disks, the planner reads a whole table rather than ten rows by their index.
    connection: {
      application_name: options.name,
      statement_timeout: statementLimitMs,
      random_page_cost: 1.1,
      ...(options.durability === 'with the next change' && { synchronous_commit: 'off' as never }),
    },
    onnotice: () => {},
  })
}

/** SQLSTATE classes and driver codes that say "the server is not there", not "the statement is wrong". */
const awayCodes = /^(08|57P0[1-3]|53300|57014|ECONN|ENOENT|EPIPE|ETIMEDOUT|EAI_|CONNECTION_|CONNECT_TIMEOUT)/

export function isDatabaseAway(error: unknown): boolean {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && awayCodes.test(error.code)
}

/** Whether the database was dropped, or what is in it: 3D000, invalid_catalog_name; 42P01, undefined_table. */
export function isDatabaseGone(error: unknown): boolean {
  return error instanceof postgres.PostgresError && (error.code === '3D000' || error.code === '42P01')
}

/** Whether a text of ours holds the one thing that PostgreSQL cannot store: the character NUL, as a text and within JSON. */
export function isUnstorable(error: unknown): boolean {
  return error instanceof postgres.PostgresError && (error.code === '22021' || error.code === '22P05')
}

/** Whether a statement failed because a row like it exists, or one that overlaps it; `constraint` is the name of the index. */
export function isDuplicate(error: unknown, constraint: string): boolean {
  return (
    error instanceof postgres.PostgresError && (error.code === '23505' || error.code === '23P01') && error.constraint_name === constraint
  )
}

/** Runs several statements as one. For changes of more than one table that no single statement says; never on the hot path. */
export function inTransaction<T>(sql: Sql, act: (sql: Sql) => Promise<T>): Promise<T> {
  // A transaction answers to the same calls as the pool, but postgres.js has another type for it.
  return sql.begin(transaction => act(transaction as unknown as Sql)) as Promise<T>
}
