// Helpers that do the least an allocation over 50 partitions takes, and nothing else: a broadcast over bare NATS whose answers are parsed, and one
// PostgreSQL statement that claims a machine and writes its event. No HTTP, no checks, no holds, no memory to keep.
import { newAllocationId } from '@muster/shared/ids'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import postgres from 'postgres'
import { type Extent, repeat, type Slice } from './figures.ts'
import { request } from './fixture.ts'
import { beHelper } from './helper.ts'

const subject = 'bench.offer'
const answerLimitMs = 10_000
/** As a partition has by default. */
const connections = 12

interface Broker {
  url: string
  token: string | undefined
}

const open: (() => Promise<unknown>)[] = []
let bus: NatsConnection
let sql: postgres.Sql
let unclaimed: string[] = []
let subscribers = 0
const asked = new Map<string, (data: Uint8Array) => void>()
let count = 0
const decoder = new TextDecoder()

const dial = async ({ url, token }: Broker) => {
  const connection = await connect({ servers: url, ...(token !== undefined && { token }), noAsyncTraces: true })
  open.push(() => connection.close())
  return connection
}

const floor = {
  /** Becomes the partitions from `from` to `to`: each a connection that answers what a partition would. */
  subscribe: async ({ from, to, ...broker }: Broker & { from: number; to: number }): Promise<void> => {
    for (let number = from; number < to; number++) {
      const connection = await dial(broker)
      const partition = `p${number + 1}`
      connection.subscribe(subject, {
        queue: partition,
        callback: (_, message) => {
          const { id } = JSON.parse(decoder.decode(message.data)) as { id: string }
          const offered = { id: `${partition}-${id.slice(-6)}`, score: 16.96, rack: 'r17', zone: 'z2' }
          message.respond(Buffer.from(JSON.stringify({ v: 1, partition, replica: 'bench', epoch: 1, machines: [offered], matching: 1500 })))
        },
      })
      await connection.flush()
    }
  },

  /** Becomes the asker. */
  prepare: async (options: { broker: Broker | undefined; subscribers: number; databaseUrl: string; machines: number }): Promise<void> => {
    subscribers = options.subscribers
    if (options.broker) {
      bus = await dial(options.broker)
      bus.subscribe('bench.inbox.*', { callback: (_, message) => asked.get(message.subject)?.(message.data) })
      await bus.flush()
    }
    sql = postgres(options.databaseUrl, { max: connections, onnotice: () => {} })
    open.push(() => sql.end({ timeout: 5 }))
    await sql`
      create table if not exists machines (id text primary key, state text not null, owner text, allocation_id text,
        version bigint not null default 1) with (fillfactor = 70)`
    await sql`
      create table if not exists events (id bigint generated always as identity primary key, at timestamptz not null default clock_timestamp(),
        kind text not null, machine_id text, actor text not null, data jsonb not null)`
    await sql`
      insert into machines (id, state) select 'p1-' || lpad(to_hex(n), 6, '0'), 'ready' from generate_series(0, ${options.machines - 1}::integer) as n
      on conflict do nothing`
    await sql`analyze`
    await floor.reset(undefined)
  },

  reset: async (_: undefined): Promise<void> => {
    await sql`update machines set state = 'ready', owner = null, allocation_id = null, version = version + 1 where state <> 'ready'`
    await sql`truncate events`
    await sql`vacuum machines`
    unclaimed = (await sql<{ id: string }[]>`select id from machines order by id`).map(({ id }) => id)
  },

  /** Runs one slice; `both` is scatter, then claim. */
  run: async ({ kind, ...extent }: Extent & { kind: 'scatter' | 'claim' | 'both' }): Promise<Slice> => {
    const act = { scatter, claim, both: async () => (await scatter()) && (await claim()) }[kind]
    return repeat(extent, act)
  },
}

/** One broadcast; waits for all answers and takes the best, as an asker must. */
function scatter(): Promise<boolean> {
  const number = (count++).toString(36).padStart(6, '0')
  const inbox = `bench.inbox.${number}`
  return new Promise((resolve, reject) => {
    const limit = setTimeout(() => reject(new Error('a bare broadcast was not answered by all')), answerLimitMs)
    let missing = subscribers
    let best = Number.POSITIVE_INFINITY
    asked.set(inbox, data => {
      const { machines } = JSON.parse(decoder.decode(data)) as { machines: { score: number }[] }
      best = Math.min(best, machines[0]?.score ?? best)
      if (--missing > 0) return
      clearTimeout(limit)
      asked.delete(inbox)
      resolve(true)
    })
    const question = { v: 1, id: `bench~${number}`, deadline: Date.now() + 1000, caller: { name: 'admin', role: 'admin' }, count: 1 }
    bus.publish(subject, Buffer.from(JSON.stringify({ ...question, ...request('best'), purpose: 'take' })), { reply: inbox })
  })
}

/** One compare-and-set with its event, in one statement. */
async function claim(): Promise<boolean> {
  const id = unclaimed.pop()
  if (id === undefined) return false
  const allocation = newAllocationId()
  const [row] = await sql`
    with claimed as (
      update machines set state = 'allocated', owner = 'admin', allocation_id = ${allocation}, version = version + 1
      where id = ${id} and state = 'ready' returning id, version),
    noted as (
      insert into events (kind, machine_id, actor, data)
      select 'machine.moved', id, 'admin', jsonb_build_object('from', 'ready', 'to', 'allocated', 'allocation', ${allocation}::text) from claimed)
    select id, version from claimed`
  if (!row) throw new Error(`the bare claim of ${id} found it taken`)
  return true
}

export type Floor = typeof floor
beHelper<Floor>(floor, async () => {
  for (const close of open.reverse()) await close()
})
