// Every route of a real partition and of a real front over two, fuzzed by its schema: no 500, no crash, every answer as declared.
import { afterAll, beforeAll, expect, test } from 'vitest'
import { fuzzRoutes } from '../../../libs/server/test/fuzz.ts'
import { makeReady, type Server, type Servers, startServers } from './servers.ts'

const seed = Number(process.env.FUZZ_SEED ?? Date.now() % 1_000_000)
const runs = Number(process.env.FUZZ_RUNS ?? 30)
let servers: Servers

beforeAll(async () => {
  servers = await startServers(['fuzz1', 'fuzz2'])
  for (const [index, partition] of servers.partitions.entries()) {
    const ids: string[] = []
    for (let number = 0; number < 8; number++) {
      const interfaces = [{ mac: `02:00:00:00:0${index}:0${number}` }]
      ids.push((await partition.as.operator.machines.create({ interfaces, cpus: 4, memoryMib: 8192, tags: ['a'] })).id)
    }
    await makeReady(partition, ids)
  }
})
afterAll(async () => {
  await servers?.[Symbol.asyncDispose]()
})

test.each([
  { title: 'a partition', pick: (): Server => servers.partitions[0] as Server },
  { title: 'a front', pick: (): Server => servers.front },
])(`$title answers every route as declared, whatever it is sent (seed ${seed})`, { timeout: 120_000 }, async ({ pick }) => {
  const server = pick()
  const report = await fuzzRoutes({ url: server.url, token: server.tokens.admin as string, seed, runs })
  // Not all refused at the door: some got through to the domain, and some were right.
  expect(report.statuses[200] ?? 0).toBeGreaterThan(20)
  expect(report.statuses[422] ?? 0).toBeGreaterThan(20)
  expect(report.statuses[404] ?? 0).toBeGreaterThan(5)
  expect((await fetch(`${server.url}/readyz`)).status).toBe(200)
})
