// A federation over a nats-server that was set up as the docs say: a key for each with `muster nats key`, permissions from `muster nats config`.
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { findProgram } from '@muster/embedded/find-program'
import { natsUrlIn } from '@muster/embedded/nats-server'
import { connectNats } from '@muster/server/bus/nats-bus'
import { type BusParty, inboxOf } from '@muster/shared/bus/permissions'
import { expect, onTestFinished, test, vi } from 'vitest'
import { makeReady, startServers } from './servers.ts'

const program = findProgram('nats-server')
if (program === undefined && process.env.CI) throw new Error('no nats-server on PATH; CI must prove its permissions')
if (program === undefined) console.warn('SKIPPED: no nats-server on PATH: its permissions are NOT TESTED here')

const main = fileURLToPath(new URL('../../cli/src/main.ts', import.meta.url))
const muster = (...words: string[]) => execFileSync(process.execPath, [main, 'nats', ...words], { encoding: 'utf8', stdio: 'pipe' })

test.skipIf(program === undefined)(
  'allocates, forwards and configures with each part allowed to speak for itself only',
  { timeout: 60_000 },
  async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'muster-nats-'))
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
    const seedFile = (party: BusParty) => path.join(folder, `${party.kind === 'front' ? 'front' : party.name}.nkey`)
    const key = (party: BusParty) => muster('key', '--out', seedFile(party)).trim()
    const names = ['lon1', 'par2']
    const front = key({ kind: 'front' })
    const partitions = names.map(name => `${name}=${key({ kind: 'partition', name })}`)
    expect(statSync(seedFile({ kind: 'front' })).mode & 0o777).toBe(0o600)
    expect(() => key({ kind: 'front' })).toThrow('is there already')
    expect(() => muster('config', '--front', front, '--partition', `lon1=${front}`)).toThrow('is given twice')
    const seed = readFileSync(seedFile({ kind: 'front' }), 'utf8').trim()
    expect(() => muster('config', '--front', seed, '--partition', ...partitions)).toThrow('that is a seed')

    writeFileSync(path.join(folder, 'auth.conf'), muster('config', '--front', front, '--partition', ...partitions))
    const config = path.join(folder, 'nats.conf')
    writeFileSync(config, `listen: "127.0.0.1:-1"\nports_file_dir: "${folder}"\ninclude ./auth.conf\n`)
    const server = spawn(program as string, ['-c', config], { stdio: 'ignore' })
    onTestFinished(() => void server.kill('SIGKILL'))
    const url = await vi.waitUntil(() => natsUrlIn(path.join(folder, `nats-server_${server.pid}.ports`)), { timeout: 10_000 })

    const warned: unknown[] = []
    const note = (fields: object, text: string) => warned.push({ ...fields, text })
    await using servers = await startServers(names, party =>
      connectNats({
        url,
        nkey: readFileSync(seedFile(party), 'utf8').trim(),
        inbox: inboxOf(party),
        name: party.kind,
        log: { info: () => {}, warn: note, error: note },
      }),
    )
    const { admin, operator, user } = servers.front.as
    for (const [index, partition] of servers.partitions.entries()) {
      const { id } = await operator.machines.create({
        partition: partition.name,
        hostname: `node${index}`,
        arch: 'amd64',
        cpus: 8,
        memoryMib: 16_384,
        interfaces: [{ name: 'eth0', mac: `52:54:00:77:00:0${index}` }],
      })
      await makeReady(partition, [id])
    }
    const { machines, coverage } = await user.allocations.create({ count: 2 })
    expect(coverage).toMatchObject({ asked: 2, answered: 2 })
    expect(machines.map(({ hostname }) => hostname).sort()).toEqual(['node0', 'node1'])
    expect((await operator.machines.get({ id: machines[0]?.id as string })).state).toBe('allocated')
    // Configuration goes down by notice and pull, without waiting for the schedule.
    const { generation } = await admin.config.change({ put: [{ kind: 'user', name: 'zoe', document: { role: 'user' } }] })
    for (const { core } of servers.partitions) await vi.waitUntil(() => core.configuration.generation === generation, { timeout: 10_000 })
    expect(warned).toEqual([])
  },
)
