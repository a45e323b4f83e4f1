// One at a time builds the agent's image, and somebody who was killed while building holds nobody up. What is built is in agent.test.ts.
import { existsSync, mkdirSync, mkdtempSync, rmSync, utimesSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { alone } from '../src/built.ts'

let folder: string
let lock: string
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'muster-built-'))
  lock = path.join(folder, 'lock')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('of three who want to build at once, one does at a time, also after one that failed', async () => {
  let [within, most] = [0, 0]
  const build = async (name: string) => {
    most = Math.max(most, ++within)
    await sleep(50)
    within--
    if (name === 'b') throw new Error('a package is missing')
    return name
  }
  const outcomes = await Promise.allSettled(['a', 'b', 'c'].map(name => alone(lock, () => build(name))))
  expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled'])
  expect(most).toBe(1)
  expect(existsSync(lock)).toBe(false)
})

test('who has said nothing for half a minute is taken for dead', async () => {
  mkdirSync(lock)
  const longAgo = new Date(Date.now() - 31_000)
  utimesSync(lock, longAgo, longAgo)
  expect(await alone(lock, async () => 'built')).toBe('built')
})
