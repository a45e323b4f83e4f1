// A connection that is lost in the middle of a transaction ends that transaction, and nothing else. The mend is loaded before every file of tests, as the
// servers load it: without it the first of these lines ends the process.
import { freshDatabase } from '@muster/embedded/test-postgres'
import postgres from 'postgres'
import { expect, test } from 'vitest'

const lossOf = expect.stringMatching(/^(CONNECTION_CLOSED|ECONNRESET|EPIPE|57P01)$/)

test('the backend of a transaction dies while nobody speaks to it: the transaction fails, and all connections serve again', async () => {
  await using database = await freshDatabase()
  const sql = postgres(database.url, { max: 2, onnotice: () => {} })
  const killer = postgres(database.url, { max: 1 })
  for (let round = 0; round < 4; round++) {
    const lost = sql.begin(async transaction => {
      const [mine] = await transaction<{ pid: number }[]>`select pg_backend_pid() as pid`
      await killer`select pg_terminate_backend(${mine?.pid ?? 0})`
      await new Promise(resolve => setTimeout(resolve, 30))
      await transaction`select ${round}::int as round`
    })
    await expect(lost).rejects.toMatchObject({ code: lossOf })
  }
  const answers = await Promise.all(
    [1, 2, 3, 4].map(async number => (await sql`select ${number}::int as number, pg_sleep(0.02)`)[0]?.number),
  )
  expect(answers).toEqual([1, 2, 3, 4])
  await Promise.all([sql.end(), killer.end()])
})

test('whatever was on its way when a server stops is refused, and the same pool serves when it is back', async () => {
  await using database = await freshDatabase()
  const sql = postgres(database.url, { max: 3, onnotice: () => {}, connect_timeout: 3, backoff: () => 0.05 })
  const killer = postgres(database.url, { max: 1 })
  const codes = new Set<string>()
  let isOver = false
  const worker = async () => {
    for (let number = 0; !isOver; number++)
      await sql
        .begin(async transaction => {
          await transaction`select ${number}::int`
          await transaction`select 1`
        })
        .catch(error => codes.add(error.code))
  }
  const work = Promise.all([worker(), worker(), worker(), worker()])
  for (let round = 0; round < 25; round++) {
    await killer`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`
    await new Promise(resolve => setTimeout(resolve, 15))
  }
  isOver = true
  await work
  for (const code of codes) expect(code).toEqual(lossOf)
  expect(codes.size).toBeGreaterThan(0)
  const answers = await Promise.all(
    [1, 2, 3, 4].map(async number => (await sql`select ${number}::int as number, pg_sleep(0.02)`)[0]?.number),
  )
  expect(answers).toEqual([1, 2, 3, 4])
  await Promise.all([sql.end(), killer.end()])
}, 20_000)
