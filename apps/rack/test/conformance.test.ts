// The conformance suite passes our own partition, and finds each lie of one that breaks a single promise.
import { spawn } from 'node:child_process'
import path from 'node:path'
import { startBroker } from '@muster/embedded/broker'
import { connectNats } from '@muster/server/bus/nats-bus'
import type { Bus } from '@muster/shared/bus/bus'
import { inboxOf } from '@muster/shared/bus/permissions'
import { subjects } from '@muster/shared/bus/protocol'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { checks } from '../src/conformance/checks.ts'
import { Broken, FarEnd } from '../src/conformance/far-end.ts'
import { makeReady, type Servers, startServers, until } from './servers.ts'

let broker: Awaited<ReturnType<typeof startBroker>>
let servers: Servers
/** What the liar does to what it hears and says; nothing while it behaves. */
let lie: Lie = {}

interface Lie {
  heard?: (message: Record<string, unknown>) => unknown
  said?: (answer: Record<string, unknown>, subject: string) => unknown
}

const connect = (name: string, inbox: string) =>
  connectNats({ url: broker.url, token: broker.token, name, inbox, log: { info: () => {}, warn: () => {}, error: () => {} } })

beforeAll(async () => {
  broker = await startBroker({})
  servers = await startServers(['good1', 'liar1'], async party => {
    const bus = await connect(party.kind, inboxOf(party))
    return party.kind === 'partition' && party.name === 'liar1' ? lying(bus) : bus
  })
  const { generation } = await servers.front.as.admin.config.change({ put: [{ kind: 'user', name: 'ann', document: { role: 'user' } }] })
  await until(() => servers.partitions.every(({ core }) => core.configuration.generation === generation))
  for (const [index, partition] of servers.partitions.entries()) {
    const made = await Promise.all(
      [0, 1, 2].map(number =>
        servers.front.as.operator.machines.create({
          partition: partition.name,
          hostname: `m${index}${number}`,
          arch: 'amd64',
          cpus: 8,
          memoryMib: 16_384,
          interfaces: [{ name: 'eth0', mac: `52:54:00:78:0${index}:0${number}` }],
        }),
      ),
    )
    await makeReady(
      partition,
      made.map(({ id }) => id),
    )
  }
}, 60_000)
afterAll(async () => {
  await servers?.[Symbol.asyncDispose]()
  await broker?.close()
})

/** The bus of a partition, through which it hears and says what it likes. */
function lying(bus: Bus): Bus {
  const change = (data: Uint8Array, by: ((content: Record<string, unknown>) => unknown) | undefined) => {
    if (!by) return data
    try {
      return Buffer.from(JSON.stringify(by(JSON.parse(Buffer.from(data).toString()))))
    } catch {
      return data // not JSON: a check sends that too
    }
  }
  return new Proxy(bus, {
    get(target, name) {
      if (name === 'publish')
        return (subject: string, data: Uint8Array) => target.publish(subject, change(data, lie.said && (each => lie.said?.(each, subject))))
      if (name === 'subscribe')
        return ((subject, options, handle) =>
          target.subscribe(subject, options, message => {
            const { reply } = message
            handle({
              ...message,
              data: change(message.data, lie.heard),
              ...(reply && { reply: data => reply(change(data, lie.said && (each => lie.said?.(each, subject)))) }),
            })
          })) satisfies Bus['subscribe']
      const value = Reflect.get(target, name)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

/** The promises that the partition breaks, of those whose names begin so. */
async function brokenOf(partition: string, beginning = ''): Promise<string[]> {
  const bus = await connect('conformance', inboxOf({ kind: 'front' }))
  try {
    const far = new FarEnd(bus, partition)
    const broken: string[] = []
    for (const check of checks.filter(({ name }) => name.startsWith(beginning))) {
      const outcome = await check.run(far).catch((error: Error) => error)
      if (outcome instanceof Broken) broken.push(`${check.name}: ${outcome.message}`)
      else expect(outcome, check.name).toBeUndefined()
    }
    return broken
  } finally {
    await bus.close()
  }
}

let holds = 0
const callOnly = (subject: string) => subject === subjects.call('liar1')
const lies: Record<string, { lie: Lie; broken: string }> = {
  'under another name': {
    lie: { said: (each, subject) => (subject === subjects.presence('liar1') ? { ...each, partition: 'good1' } : each) },
    broken: 'says that it is there',
  },
  'to those who are too late': {
    lie: { heard: each => ({ ...each, deadline: Date.now() + 9_000 }) },
    broken: 'does not answer a question whose',
  },
  'to whoever asks, whatever the role': {
    lie: { heard: each => ({ ...each, caller: { name: 'root', role: 'admin' } }) },
    broken: 'believes no check of roles but its own',
  },
  'with half an offer': {
    lie: { said: (each, subject) => (subject === subjects.offer ? { ...each, matching: undefined } : each) },
    broken: 'offers once',
  },
  'about events, leaving some out': {
    lie: { said: (each, subject) => (callOnly(subject) ? withoutSecondEvent(each) : each) },
    broken: 'numbers its events without gaps',
  },
  'about its configuration, handing out a copy that nobody signed so': {
    lie: {
      said: (each, subject) => {
        const ok = each.ok as { text?: string } | undefined
        return callOnly(subject) && ok?.text ? { ...each, ok: { ...ok, text: ok.text.replace('ann', `ann${holds++}`) } } : each
      },
    },
    broken: 'hands out the copy of the configuration',
  },
  'about holds, with another machine each time': {
    lie: {
      said: (each, subject) => {
        const ok = each.ok as { machines?: { id: string }[] } | undefined
        const isHold = callOnly(subject) && ok?.machines?.length === 1 && Object.keys(ok).length === 1
        return isHold ? { ...each, ok: { machines: [{ id: `liar1-zzzzz${holds++ % 10}` }] } } : each
      },
    },
    broken: 'holds a machine once',
  },
}

function withoutSecondEvent(each: Record<string, unknown>): unknown {
  const items = (each.ok as { items?: { seq?: number }[] } | undefined)?.items
  return items?.[0]?.seq === undefined ? each : { ...each, ok: { ...(each.ok as object), items: items.filter((_, index) => index !== 1) } }
}

test('our own partition keeps every promise, and so does the liar while it behaves', { timeout: 60_000 }, async () => {
  expect(await brokenOf('good1')).toEqual([])
  for (const { broken } of Object.values(lies)) expect(await brokenOf('liar1', broken)).toEqual([])
})

test.each(Object.entries(lies))('a partition that lies %s is found out', { timeout: 60_000 }, async (_, { lie: told, broken }) => {
  lie = told
  try {
    expect(await brokenOf('liar1', broken)).toHaveLength(1)
  } finally {
    lie = {}
  }
})

test('the program tells people and scripts, and its exit code is the verdict', { timeout: 90_000 }, async () => {
  const ended = await conformance('--partition', 'good1', '--no-take', '--json')
  expect(ended.code, ended.stderr).toBe(0)
  const { results } = JSON.parse(ended.stdout) as { results: { check: string; outcome: string }[] }
  expect(results.map(({ outcome }) => outcome)).toEqual(checks.map(({ takes }) => (takes ? 'skipped' : 'passed')))
  const nobody = await conformance('--partition', 'nowhere')
  expect(nobody).toMatchObject({ code: 1, stderr: expect.stringContaining('Nobody answers under the name nowhere') })
  expect(await conformance('--partition', 'Not A Name')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('not the name of a partition'),
  })
})

async function conformance(...words: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const program = path.resolve(import.meta.dirname, '../src/conformance/main.ts')
  const url = broker.url.replace('//', `//${broker.token}@`)
  const child = spawn(process.execPath, [program, '--nats', url, ...words], { stdio: ['ignore', 'pipe', 'pipe'] })
  const output = { stdout: '', stderr: '' }
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream].on('data', (text: Buffer) => {
      output[stream] += text.toString()
    })
  const code = await new Promise<number | null>(resolve => child.once('close', resolve))
  return { code, ...output }
}
