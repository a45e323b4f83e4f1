/** The Proxmox driver against a small cluster played by msw: its API, its tasks, its way of saying no in the status line. */
import { HttpResponse, http } from 'msw'
import { setupServer } from 'msw/node'
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { PowerSession } from '../src/driver.ts'
import { proxmox, proxmoxDriver } from '../src/proxmox.ts'
import { driverConformance } from './conformance.ts'

const base = 'https://pve1.example:8006'
const api = `${base}/api2/json`
const settings = { url: base, tokenId: 'muster@pve!power', tokenSecret: '0ba1d7c2-secret', vm: '104' }
const hasty = proxmoxDriver({ taskLookMs: 5 })

/** Statuses and their texts as Proxmox 8 sends them. */
const no = (status: number, statusText: string) => new HttpResponse('{"data":null}', { status, statusText })

interface FakeCluster {
  power: 'running' | 'stopped'
  /** Where the machine is. */
  node: string
  /** Looks at a task before it ends. */
  taskLooks: number
  /** What the next task ends with. */
  taskEnds: string
  /** Orders given, with their bodies. */
  orders: string[]
  looksForMachine: number
  handlers: ReturnType<typeof http.all>[]
}

function fakeCluster(): FakeCluster {
  let looks = 0
  const cluster: FakeCluster = {
    power: 'stopped',
    node: 'pve1',
    taskLooks: 1,
    taskEnds: 'OK',
    orders: [],
    looksForMachine: 0,
    handlers: [],
  }
  const isMissing = (node: unknown) => node !== cluster.node
  const missing = (node: unknown) => no(500, `Configuration file 'nodes/${node}/qemu-server/104.conf' does not exist`)
  cluster.handlers = [
    http.all(`${api}/*`, ({ request }) =>
      request.headers.get('authorization') === `PVEAPIToken=${settings.tokenId}=${settings.tokenSecret}`
        ? undefined
        : no(401, 'invalid token value!'),
    ),
    http.get(`${api}/cluster/resources`, () => {
      cluster.looksForMachine++
      return HttpResponse.json({
        data: [
          { id: 'lxc/101', type: 'lxc', vmid: 101, name: 'twin', node: 'pve1', status: 'running' },
          { id: 'qemu/104', type: 'qemu', vmid: 104, name: 'lon1-7', node: cluster.node, status: 'unknown' },
          { id: 'qemu/105', type: 'qemu', vmid: 105, name: 'twin', node: 'pve2', status: 'running' },
          { id: 'qemu/106', type: 'qemu', vmid: 106, name: 'twin', node: 'pve2', status: 'running' },
          { id: 'qemu/107', type: 'qemu', vmid: 107, name: '104', node: 'pve2', status: 'running' },
        ],
      })
    }),
    http.get(`${api}/nodes/:node/qemu/104/status/current`, ({ params }) =>
      isMissing(params.node)
        ? missing(params.node)
        : HttpResponse.json({ data: { status: cluster.power, qmpstatus: cluster.power, vmid: 104 } }),
    ),
    http.post(`${api}/nodes/:node/qemu/104/status/:order`, async ({ params, request }) => {
      if (isMissing(params.node)) return missing(params.node)
      const order = String(params.order)
      const body = await request.text()
      cluster.orders.push(body === '' ? order : `${order} ${body}`)
      if (cluster.taskEnds === 'OK') cluster.power = order === 'start' || order === 'reset' ? 'running' : 'stopped'
      looks = cluster.taskLooks
      return HttpResponse.json({ data: `UPID:${params.node}:0001A2B3:01C2D3E4:66F0A1B2:qm${order}:104:muster@pve!power:` })
    }),
    http.get(`${api}/nodes/:node/tasks/:upid/status`, () =>
      HttpResponse.json({ data: looks-- > 0 ? { status: 'running' } : { status: 'stopped', exitstatus: cluster.taskEnds } }),
    ),
  ]
  return cluster
}

const server = setupServer()
beforeAll(() => server.listen({ onUnhandledFrame: 'error' }))
afterEach(() => server.resetHandlers())
afterAll(() => server.close())

function start(): FakeCluster {
  const cluster = fakeCluster()
  server.use(...cluster.handlers)
  return cluster
}

function open(over: Record<string, unknown> = {}): PowerSession {
  const session = hasty.open(hasty.settings.parse({ ...settings, ...over }))
  onTestFinished(() => session.close())
  return session
}

driverConformance(proxmox, {
  start: async () => {
    const cluster = start()
    return {
      settings,
      wrongSettings: { ...settings, tokenSecret: 'wr0ng-secret' },
      power: async () => (cluster.power === 'running' ? 'on' : 'off'),
      [Symbol.asyncDispose]: async () => server.resetHandlers(),
    }
  },
})

describe('a machine of a cluster', () => {
  test('is found by number before name, and looked for once', async () => {
    const cluster = start()
    const session = open()
    await session.on()
    expect(await session.power()).toBe('on')
    expect(cluster.looksForMachine).toBe(1)
    expect(await open({ vm: 'lon1-7' }).power()).toBe('on')
  })

  test.each([
    ['nothing', /no such virtual machine/],
    ['101', /no such virtual machine/],
    ['twin', /2 machines have that name: 105, 106/],
  ])('called %s is not guessed', async (vm, got) => {
    start()
    await expect(open({ vm }).power()).rejects.toMatchObject({ kind: 'settings', got: expect.stringMatching(got) })
  })

  test('that has moved to another node is followed', async () => {
    const cluster = start()
    const session = open()
    await session.on()
    cluster.node = 'pve2'
    expect(await session.power()).toBe('on')
    await session.off({ how: 'hard' })
    expect(cluster.power).toBe('stopped')
  })

  test('is given no order that is fulfilled already', async () => {
    const cluster = start()
    const session = open()
    await session.off({ how: 'soft' })
    await session.on()
    await session.on()
    await session.capabilities.reset?.()
    await session.off({ how: 'soft' })
    await session.capabilities.reset?.()
    expect(cluster.orders).toEqual(['start', 'reset', 'shutdown', 'start'])
  })

  test('is stopped over a shutdown under way; older Proxmox, which does not know how, is asked plainly', async () => {
    const cluster = start()
    const session = open()
    await session.on()
    await session.off({ how: 'hard' })
    await session.on()
    server.use(
      http.post(`${api}/nodes/pve1/qemu/104/status/stop`, async ({ request }) =>
        (await request.clone().text()) === '' ? undefined : no(400, 'Parameter verification failed.'),
      ),
    )
    await session.off({ how: 'hard' })
    expect(cluster.orders).toEqual(['start', 'stop overrule-shutdown=1', 'start', 'stop'])
  })

  test('whose shutdown takes long is left to it', async () => {
    const cluster = start()
    const session = open()
    await session.on()
    cluster.taskLooks = 1e9
    await session.off({ how: 'soft' })
    expect(cluster.orders).toEqual(['start', 'shutdown'])
  })
})

describe('a task', () => {
  test.each([
    ["can't lock file '/var/lock/qemu-server/lock-104.conf' - got timeout", 'busy'],
    ['VM is locked (backup)', 'busy'],
    ['start failed: org.freedesktop.systemd1.UnitExists: Unit 104.scope already exists.', 'refused'],
  ])('that ends with "%s" is %s', async (taskEnds, kind) => {
    const cluster = start()
    cluster.taskEnds = taskEnds
    await expect(open().on()).rejects.toMatchObject({ kind, outcome: 'unknown', got: `the task start ended with "${taskEnds}"` })
  })

  test('that ends with warnings has done it', async () => {
    start().taskEnds = 'WARNINGS: 1'
    await open().on()
  })

  test('is left when the caller gives up', async () => {
    start().taskLooks = 1e9
    await expect(open().on({ signal: AbortSignal.timeout(200) })).rejects.toMatchObject({ kind: 'cancelled', outcome: 'unknown' })
  })
})

describe('an answer of the API', () => {
  test.each([
    [401, "no such token 'power' for user 'muster@pve'", 'authentication'],
    [403, 'Permission check failed (/vms/104, VM.PowerMgmt)', 'privilege'],
    [500, 'VM is locked (snapshot)', 'busy'],
    [595, 'No route to host', 'silent'],
    [501, "Method 'POST /nodes' not implemented", 'protocol'],
    [503, 'Service Unavailable', 'busy'],
  ])('%i "%s" is %s', async (status, text, kind) => {
    start()
    server.use(http.post(`${api}/nodes/pve1/qemu/104/status/start`, () => no(status, text)))
    await expect(open().on()).rejects.toMatchObject({ kind, got: `HTTP ${status} (${text})` })
  })

  test.each(['<html>login</html>', '{"data":{"status":7}}', '{}'])('that is %s makes no sense', async body => {
    start()
    server.use(http.get(`${api}/nodes/pve1/qemu/104/status/current`, () => new HttpResponse(body)))
    await expect(open().power()).rejects.toMatchObject({ kind: 'protocol', got: expect.stringContaining(body) })
  })
})

test.each([
  [{ url: 'http://pve1.example:8006' }, 'url'],
  [{ url: 'https://pve1.example:8006/api2/json' }, 'url'],
  [{ tokenId: 'muster@pve' }, 'tokenId'],
  [{ tokenId: 'muster@pve!power=x' }, 'tokenId'],
  [{ tokenSecret: 'a b' }, 'tokenSecret'],
  [{ vm: '104/../105' }, 'vm'],
])('settings with %o are refused', (wrong, field) => {
  const checked = proxmox.settings.safeParse({ ...settings, ...wrong })
  expect(checked.error?.issues.map(({ path }) => path[0])).toEqual([field])
})
