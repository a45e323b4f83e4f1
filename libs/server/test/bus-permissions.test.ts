// Least privilege on the bus, enforced by a real nats-server with what `muster nats config` prints: whoever holds the key of one partition can
// answer, read and configure nothing for another.
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { natsUrlIn } from '@muster/embedded/nats-server'
import type { Bus } from '@muster/shared/bus/bus'
import { type BusParty, brokerAuthorization, frontGroup, inboxOf } from '@muster/shared/bus/permissions'
import { subjects } from '@muster/shared/bus/protocol'
import { nkeys } from '@nats-io/transport-node'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { connectNats } from '../src/bus/nats-bus.ts'
import { needs } from './needs.ts'

const encode = (text: string) => Buffer.from(text)
const decode = (data: Uint8Array) => Buffer.from(data).toString()
const quiet = { info: () => {}, warn: () => {}, error: () => {} }
const lon1: BusParty = { kind: 'partition', name: 'lon1' }
const par2: BusParty = { kind: 'partition', name: 'par2' }
const front: BusParty = { kind: 'front' }

describe.skipIf(needs('nats-server'))('nats-server with the permissions of Muster', () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-nats-'))
  const keys = new Map([front, lon1, par2].map(party => [party, nkeys.createUser()]))
  let server: ChildProcess
  let url: string

  beforeAll(async () => {
    const parties = [...keys].map(([party, key]) => ({ party, publicKey: key.getPublicKey() }))
    const config = path.join(folder, 'nats.conf')
    writeFileSync(
      config,
      `listen: "127.0.0.1:-1"\nports_file_dir: "${folder}"\nauthorization: ${JSON.stringify(brokerAuthorization(parties))}\n`,
    )
    server = spawn('nats-server', ['-c', config], { stdio: 'ignore', env: { PATH: `${process.env.PATH}:/usr/sbin` } })
    url = await vi.waitUntil(() => natsUrlIn(path.join(folder, `nats-server_${server.pid}.ports`)), { timeout: 10_000 })
  })
  afterAll(() => {
    server.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true })
  })

  /** A connection with the key of `key`, as `party` where that is somebody else. */
  async function as(key: BusParty, party = key): Promise<Bus> {
    const nkey = new TextDecoder().decode(keys.get(key)?.getSeed())
    const bus = await connectNats({ url, nkey, inbox: inboxOf(party), name: 'test', log: quiet })
    onTestFinished(() => bus.close())
    return bus
  }

  test('offers, calls, presence and configuration go their ways', async () => {
    const [fronts, lon, par] = await Promise.all([as(front), as(lon1), as(par2)])
    const heard: string[] = []
    await fronts.subscribe(subjects.presence('*'), {}, ({ subject }) => heard.push(subject))
    await fronts.subscribe(subjects.log('*'), {}, ({ subject }) => heard.push(subject))
    await fronts.subscribe(subjects.configurationCopy, { group: frontGroup }, ({ reply }) => reply?.(encode('copy')))
    const told: string[] = []
    for (const [name, bus] of [
      ['lon1', lon],
      ['par2', par],
    ] as const) {
      await bus.subscribe(subjects.offer, { group: name }, ({ reply }) => reply?.(encode(`offer of ${name}`)))
      await bus.subscribe(subjects.call(name), { group: name }, ({ reply }) => reply?.(encode(`answer of ${name}`)))
      for (const subject of [subjects.presenceAsk, subjects.cancel, subjects.configuration])
        await bus.subscribe(subject, {}, message => told.push(`${name} ${message.subject}`))
      bus.publish(subjects.presence(name), encode(''))
      bus.publish(subjects.log(name), encode(''))
    }
    const offers: string[] = []
    const onAnswer = (data: Uint8Array) => (offers.push(decode(data)) === 2 ? 'enough' : 'more')
    expect(await fronts.gather(subjects.offer, encode('?'), { timeoutMs: 5_000, onAnswer })).toBe('enough')
    expect(offers.sort()).toEqual(['offer of lon1', 'offer of par2'])
    expect(decode(await fronts.request(subjects.call('par2'), encode('?'), { timeoutMs: 5_000 }))).toBe('answer of par2')
    expect(decode(await lon.request(subjects.configurationCopy, encode('?'), { timeoutMs: 5_000 }))).toBe('copy')
    for (const subject of [subjects.presenceAsk, subjects.cancel, subjects.configuration]) fronts.publish(subject, encode(''))
    await expect.poll(() => told.length, { timeout: 5_000 }).toBe(6)
    await expect.poll(() => heard.length, { timeout: 5_000 }).toBe(4)
  })

  test('a thief with the key of lon1 answers nothing for par2, reads nothing of it, and configures nobody', async () => {
    const [fronts, par, thief] = await Promise.all([as(front), as(par2), as(lon1)])
    const heard: string[] = []
    await fronts.subscribe(subjects.presence('*'), {}, ({ subject }) => heard.push(subject))
    await par.subscribe(subjects.configuration, {}, () => heard.push('configured'))
    await par.subscribe(subjects.cancel, {}, () => heard.push('cancelled'))
    await par.subscribe(subjects.call('par2'), { group: 'par2' }, ({ reply }) => reply?.(encode('the true one')))

    const mute = () => heard.push('the thief')
    for (const [subject, group] of [
      [subjects.call('par2'), 'par2'],
      [subjects.call('par2'), undefined],
      [subjects.call('*'), undefined],
      [subjects.offer, 'par2'],
      [subjects.offer, undefined],
      [subjects.presence('*'), undefined],
      [subjects.configurationCopy, frontGroup],
      [`${inboxOf(par2)}>`, undefined],
      [`${inboxOf(front)}>`, undefined],
      ['>', undefined],
    ] as const)
      await expect(thief.subscribe(subject, group === undefined ? {} : { group }, mute), `${subject} ${group}`).rejects.toMatchObject({
        code: 'refused',
      })
    for (const subject of [subjects.call('par2'), subjects.offer])
      await expect(thief.request(subject, encode('?'), { timeoutMs: 2_000 }), subject).rejects.toMatchObject({ code: 'refused' })
    for (const subject of [subjects.presence('par2'), subjects.configuration, subjects.cancel, subjects.log('par2'), `${inboxOf(front)}x`])
      thief.publish(subject, encode('forged'))
    // What came through would be here before the answer to a question asked later.
    expect(decode(await fronts.request(subjects.call('par2'), encode('?'), { timeoutMs: 5_000 }))).toBe('the true one')
    await sleep(200)
    expect(heard).toEqual([])
  })

  test('answers cannot be had by asking under the name of another, and nobody comes in without a key', async () => {
    const [fronts, liar] = await Promise.all([as(front), as(lon1, par2)])
    await fronts.subscribe(subjects.configurationCopy, { group: frontGroup }, ({ reply }) => reply?.(encode('copy')))
    await expect(liar.request(subjects.configurationCopy, encode('?'), { timeoutMs: 500 })).rejects.toThrow()
    const stranger = new TextDecoder().decode(nkeys.createUser().getSeed())
    for (const given of [{}, { token: 'guess' }, { nkey: stranger }])
      await expect(connectNats({ url, name: 'stranger', log: quiet, ...given })).rejects.toMatchObject({ code: 'refused' })
  })
})
