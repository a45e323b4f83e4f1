// A partition for the rack's tests: the doors of libs/shared/src/agent.ts over a map of machines, with nothing behind them. What it gets
// is checked against the protocol's schemas and kept, so that tests can look at it.
import { createHash, randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import {
  type Enlistment,
  enlistment,
  type Inventory,
  inventory,
  type Job,
  kernelArguments,
  type Signal,
  signal,
} from '@muster/shared/agent'
import { Hono } from 'hono'

export interface KnownMachine {
  id: string
  state: 'new' | 'commissioning' | 'ready' | 'deploying' | 'deployed' | 'rescue' | 'failed'
  token: string
  /** Whether the installer said that it is done: from then on the machine boots from disk. */
  isInstalled: boolean
  enlistment: Enlistment
  inventory?: Inventory
  signals: Signal[]
  phoneHome?: Record<string, string>
}

export interface TestPartition extends AsyncDisposable {
  readonly url: string
  /** By boot MAC. */
  readonly machines: ReadonlyMap<string, KnownMachine>
  /** `GET /boot/ipxe/52:…` as they came. */
  readonly requests: readonly string[]
  /** Answers sent with these statuses before the honest ones, next request first. */
  readonly refuseWith: number[]
  image: Buffer
  /** What the job says the image's digest is; the true one where absent. */
  claimedSha256: string | undefined
  /** Bytes per second of the image; all at once where absent. */
  imageBytesPerSecond: number | undefined
  userData: string
  /** Replaces the honest scripts. */
  script: ((mac: string) => string) | undefined
  /** Gives a machine work; the caller sees to its power. */
  begin(mac: string, state: 'commissioning' | 'deploying' | 'rescue'): KnownMachine
}

/** Starts it on 127.0.0.1, by default at a free port. */
export async function startTestPartition({ port = 0 }: { port?: number } = {}): Promise<TestPartition> {
  const machines = new Map<string, KnownMachine>()
  const requests: string[] = []
  const byToken = (token: string | undefined) => [...machines.values()].find(machine => machine.token === token)
  const app = new Hono()
  const partition = {
    machines,
    requests,
    refuseWith: [] as number[],
    image: Buffer.alloc(300_000, 'image'),
    claimedSha256: undefined as string | undefined,
    imageBytesPerSecond: undefined as number | undefined,
    userData: '#cloud-config\nhostname: from-user-data\n',
    script: undefined as ((mac: string) => string) | undefined,
    begin: (mac: string, state: 'commissioning' | 'deploying' | 'rescue') => {
      const machine = machines.get(mac)
      if (!machine) throw new Error(`the test partition does not know ${mac}`)
      return Object.assign(machine, { state, token: randomUUID(), isInstalled: false, signals: [] })
    },
  }
  let url = ''

  app.use(async (c, next) => {
    requests.push(`${c.req.method} ${c.req.path}`)
    const status = partition.refuseWith.shift()
    if (status !== undefined) return c.text('not just now', status as 503)
    await next()
  })
  app.get('/boot/ipxe/:mac', c => {
    const mac = c.req.param('mac')
    if (partition.script) return c.text(partition.script(mac))
    const machine = machines.get(mac)
    const mode = machine ? { commissioning: 'commission', rescue: 'rescue', deploying: 'install' }[machine.state as string] : 'enlist'
    if (!mode || (machine?.state === 'deploying' && machine.isInstalled)) return c.text('#!ipxe\necho disk\nexit\n')
    const token = machine ? ` ${kernelArguments.token}=${machine.token}` : ''
    const words = `initrd=initrd ${kernelArguments.url}=${url} ${kernelArguments.mode}=${mode}${token} BOOTIF=01-\${net0/mac:hexhyp}`
    return c.text(
      `#!ipxe\nkernel ${url}/files/vmlinuz ${words} || goto failed\ninitrd --name initrd ${url}/files/initrd\nboot\n:failed\nexit 1\n`,
    )
  })
  app.get('/files/:name', c => c.body(Buffer.alloc(50_000)))
  app.get('/image', c => c.body(throttled(partition.image, partition.imageBytesPerSecond)))
  app.post('/agent/enlist', async c => {
    const said = enlistment.parse(await c.req.json())
    const mac = said.interfaces[0]?.mac ?? ''
    const known = machines.get(mac)
    if (known) return c.json({ id: known.id, outcome: 'known' })
    const id = `t1-${mac.replaceAll(':', '').slice(-8)}`
    machines.set(mac, { id, state: 'new', token: randomUUID(), isInstalled: false, enlistment: said, signals: [] })
    return c.json({ id, outcome: 'created' }, 201)
  })
  app.use('/agent/*', async (c, next) => {
    if (!byToken(bearerOf(c.req.header('authorization')))) return c.json({ title: 'no such token' }, 401)
    await next()
  })
  app.get('/agent/job', c => {
    const machine = byToken(bearerOf(c.req.header('authorization'))) as KnownMachine
    const job = jobOf(machine, { url, image: partition.image, sha256: partition.claimedSha256 })
    return job ? c.json(job) : c.json({ title: 'no job' }, 409)
  })
  app.post('/agent/inventory', async c => {
    const machine = byToken(bearerOf(c.req.header('authorization'))) as KnownMachine
    machine.inventory = inventory.parse(await c.req.json())
    return c.body(null, 204)
  })
  app.post('/agent/signal', async c => {
    const machine = byToken(bearerOf(c.req.header('authorization'))) as KnownMachine
    const said = signal.parse(await c.req.json())
    machine.signals.push(said)
    if (said.status === 'failed') machine.state = 'failed'
    if (said.status === 'done' && machine.state === 'commissioning') machine.state = 'ready'
    if (said.status === 'done' && machine.state === 'deploying') machine.isInstalled = true
    return c.body(null, 204)
  })
  app.get('/metadata/:token/:file', c => {
    const machine = byToken(c.req.param('token'))
    if (!machine) return c.json({ title: 'no such token' }, 401)
    const phoneHome = {
      url: `${url}/metadata/${machine.token}/phone-home`,
      post: ['instance_id', 'hostname', 'fqdn', 'pub_key_ed25519'],
      tries: 3,
    }
    const files: Record<string, string> = {
      'meta-data': `instance-id: "${machine.id}-${machine.token}"\nlocal-hostname: ${machine.enlistment.hostname}\n`,
      'user-data': partition.userData,
      'vendor-data': `#cloud-config\nphone_home: ${JSON.stringify(phoneHome)}\n`,
    }
    const text = files[c.req.param('file')]
    return text === undefined ? c.text('no such file', 404) : c.text(text)
  })
  app.post('/metadata/:token/phone-home', async c => {
    const machine = byToken(c.req.param('token'))
    if (!machine) return c.json({ title: 'no such token' }, 401)
    machine.phoneHome = Object.fromEntries(new URLSearchParams(await c.req.text()))
    machine.state = 'deployed'
    return c.body(null, 204)
  })

  const server = createServer((request, response) => {
    serve(app, request, response).catch((error: unknown) => response.destroy(error as Error))
  })
  await new Promise<void>(resolve => server.listen(port, '127.0.0.1', resolve))
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the test partition has no port')
  url = `http://127.0.0.1:${address.port}`
  return Object.assign(partition, {
    url,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      await new Promise<void>(resolve => server.close(() => resolve()))
    },
  })
}

function jobOf(machine: KnownMachine, facts: { url: string; image: Buffer; sha256: string | undefined }): Job | undefined {
  const common = { machine: machine.id, heartbeatMs: 200 }
  if (machine.state === 'commissioning') return { kind: 'commission', ...common, scripts: [] }
  if (machine.state === 'rescue') return { kind: 'rescue', sshKeys: [], ...common }
  if (machine.state !== 'deploying') return undefined
  const sha256 = facts.sha256 ?? createHash('sha256').update(facts.image).digest('hex')
  return {
    kind: 'install',
    ...common,
    hostname: machine.enlistment.hostname ?? machine.id,
    os: 'debian/12',
    image: { url: `${facts.url}/image`, sha256, sizeBytes: facts.image.length, form: 'disk' },
    seedUrl: `${facts.url}/metadata/${machine.token}/`,
    dataSource: 'nocloud',
  }
}

function bearerOf(header: string | undefined): string | undefined {
  return /^Bearer (\S+)$/.exec(header ?? '')?.[1]
}

function throttled(bytes: Buffer, bytesPerSecond: number | undefined): ReadableStream<Uint8Array> {
  let at = 0
  const chunkBytes = bytesPerSecond ? Math.max(1, Math.floor(bytesPerSecond / 50)) : 65_536
  return new ReadableStream({
    pull: async controller => {
      if (bytesPerSecond) await new Promise(resolve => setTimeout(resolve, 20))
      if (at >= bytes.length) return controller.close()
      controller.enqueue(bytes.subarray(at, at + chunkBytes))
      at += chunkBytes
    },
  })
}

/** Hono over node:http, as far as these doors need it. */
async function serve(app: Hono, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const method = request.method ?? 'GET'
  const init = { method, headers: request.headers as Record<string, string>, ...(method === 'POST' && { body: Buffer.concat(chunks) }) }
  const answer = await app.fetch(new Request(`http://${request.headers.host}${request.url}`, init))
  response.writeHead(answer.status, Object.fromEntries(answer.headers))
  for await (const chunk of answer.body ?? []) {
    if (response.destroyed) return
    response.write(chunk)
  }
  response.end()
}
