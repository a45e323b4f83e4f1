import { setTimeout as sleep } from 'node:timers/promises'
import type { CallName } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import { addReady, testDoor, tokenOf } from './door-for-tests.ts'
import { fuzzRoutes } from './fuzz.ts'
import type { ModelBackend } from './model-backend.ts'

test('every route answers every input by the contract', { timeout: 180_000 }, async () => {
  const door = await testDoor()
  addReady(door.backend, 200)
  for (let index = 0; index < 5; index++) await door.send('POST', '/allocations', { body: { count: 2 } })
  const seed = Number(process.env.FUZZ_SEED ?? Date.now() % 1_000_000_000)
  const report = await fuzzRoutes({ url: door.url, token: tokenOf('admin'), seed, runs: Number(process.env.FUZZ_RUNS ?? 60) })
  if (process.env.FUZZ_RUNS) console.log(report)
  // A fuzz that only ever meets refusals at the first hurdle would prove little.
  expect(report.statuses[200], `seed ${seed}`).toBeGreaterThan(report.requests / 10)
  expect(report.statuses[201]).toBeGreaterThan(3)
  expect(report.statuses[202]).toBeGreaterThan(10)
  expect(report.codes['invalid-input']).toBeGreaterThan(report.requests / 10)
  expect(report.codes['wrong-state']).toBeGreaterThan(10)
  while (door.backend.listeners() > 0) await sleep(10)
})

test('the fuzz finds what breaks the contract', async () => {
  const fuzz = async (name: CallName, prepare: (backend: ModelBackend) => void) => {
    const door = await testDoor({ check: 'nothing' })
    prepare(door.backend)
    return fuzzRoutes({ url: door.url, token: tokenOf('admin'), seed: 1, runs: 20, only: [name] }).then(
      () => 'nothing found',
      error => (error as Error).message,
    )
  }
  const mistake = await fuzz('zones.put', backend =>
    backend.instead.set('zones.put', () => {
      throw new TypeError('oops')
    }),
  )
  expect(mistake).toMatch(/fuzz of zones\.put, seed 1: PUT \/zones\/.*\n.*→ 500/)
  const misfit = await fuzz('partitions.status', backend => backend.instead.set('partitions.status', () => ({ machines: { happy: 1 } })))
  expect(misfit).toContain('fuzz of partitions.status, seed 1: GET /status')
  const undeclared = await fuzz('tags.list', backend =>
    backend.instead.set('tags.list', () => {
      throw new Refusal('locked', 'no')
    }),
  )
  expect(undeclared).toContain("locked is not among the call's errors")
})
