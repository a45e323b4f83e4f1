import postgres from 'postgres'
import { describe, expect, test } from 'vitest'
import { freshDatabase } from '../src/test-postgres.ts'

async function rows(url: string, text: string): Promise<unknown[]> {
  const sql = postgres(url, { max: 1 })
  try {
    return [...(await sql.unsafe(text))]
  } finally {
    await sql.end()
  }
}

describe('databases for tests', () => {
  test('ten askers at once share one migration and nothing else', async () => {
    let migrations = 0
    const migrate = async (url: string) => {
      migrations++
      await rows(url, 'create table machine (id int primary key)')
    }
    const databases = await Promise.all(Array.from({ length: 10 }, () => freshDatabase({ template: 'ten', migrate })))
    expect(migrations).toBe(1)
    await Promise.all(databases.map(({ url }, index) => rows(url, `insert into machine values (${index})`)))
    const found = await Promise.all(databases.map(({ url }) => rows(url, 'select id from machine')))
    expect(found).toEqual(databases.map((_, index) => [{ id: index }]))
    await Promise.all(databases.map(database => database.drop()))
  })

  test('a failed migration is reported, and the next asker begins afresh', async () => {
    let attempt = 0
    const migrate = async (url: string) => {
      await rows(url, 'create table machine (id int primary key)')
      if (++attempt === 1) throw new Error('column missing')
    }
    await expect(freshDatabase({ template: 'flaky', migrate })).rejects.toThrow('column missing')
    await using database = await freshDatabase({ template: 'flaky', migrate })
    expect(await rows(database.url, 'select count(*)::int as n from machine')).toEqual([{ n: 0 }])
  })

  test('a migration that forgot a connection does not stop the copy', async () => {
    const forgotten: postgres.Sql[] = []
    const migrate = async (url: string) => {
      const sql = postgres(url, { max: 1 })
      forgotten.push(sql)
      await sql`select 1`
    }
    await using database = await freshDatabase({ template: 'forgetful', migrate })
    expect(await rows(database.url, 'select 1 as one')).toEqual([{ one: 1 }])
    await Promise.all(forgotten.map(sql => sql.end()))
  })

  test('a dropped database is gone, also with a session open, and dropping twice is harmless', async () => {
    const database = await freshDatabase()
    const sql = postgres(database.url, { max: 1 })
    await sql`select 1`
    await database.drop()
    await database.drop()
    await expect(rows(database.url, 'select 1')).rejects.toThrow('does not exist')
    await sql.end()
  })
})
