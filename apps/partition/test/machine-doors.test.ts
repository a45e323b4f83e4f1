// The role machine: each path of each door that machines come through × everybody who is not that machine in that run for that purpose. The paths are read from
// the doors themselves, so that a new one is asked for too.
import { expect, test } from 'vitest'
import { machineToken, type TokenPurpose } from '../src/domain/machine-token.ts'
import { eventsPath } from '../src/domain/power/events.ts'
import { agentDoor } from '../src/doors/agent.ts'
import { bmcEventsDoor } from '../src/doors/bmc-events.ts'
import { maasDoor } from '../src/doors/maas.ts'
import { metadataDoor } from '../src/doors/metadata.ts'
import { addMachine, reread, runPartition } from './harness.ts'

interface Door {
  readonly at: string
  readonly app: { readonly routes: readonly { readonly method: string; readonly path: string }[] }
  readonly purpose: TokenPurpose
  /** Where anybody may ask: a machine that is not known yet has no token. */
  readonly open?: readonly string[]
  /** Headers that carry a token; in the others it stands in the path. */
  readonly headers?: (token: string) => Record<string, string>
  /** What stands behind a path that ends with anything. */
  readonly behind?: Readonly<Record<string, readonly string[]>>
  /** How strangers are refused. */
  readonly status: number
}

const oauth = (token: string): Record<string, string> => {
  const [consumer, run, signature] = token.split('.')
  // A token of another make is sent as it is made.
  if (signature === undefined) return { authorization: `Bearer ${token}` }
  const fields = { consumer_key: consumer, token: run, signature_method: 'PLAINTEXT', signature: `&${signature}`, version: '1.0' }
  const list = Object.entries(fields).map(([name, value]) => `oauth_${name}="${encodeURIComponent(value ?? '')}"`)
  return { authorization: `OAuth ${list.join(', ')}` }
}

test('each path of a machine lets in that machine, in this run, for this purpose, and nobody else', async () => {
  const partition = await runPartition()
  const { core } = partition
  const deploying = { state: 'deploying', owner: 'alice', deployment: { os: 'debian/12' } } as const
  const add = (run: string, allocation: string) =>
    addMachine(core, { ...deploying, run, allocation_id: allocation, attention_at: null } as never, { powerDriver: 'manual' })
  const its = await add('run1', 'a-000000000001')
  const other = await add('run2', 'a-000000000002')

  const options = { baseUrl: partition.url, proxies: [], firstBoots: undefined as never, origins: { proxies: [] } as never }
  const doors: Door[] = [
    {
      at: '/agent',
      app: agentDoor(core, options),
      purpose: 'agent',
      open: ['POST /enlist'],
      headers: token => ({ authorization: `Bearer ${token}` }),
      status: 401,
    },
    {
      at: '/MAAS',
      app: maasDoor(core, options),
      purpose: 'metadata',
      headers: oauth,
      behind: {
        'GET /metadata/*': ['', 'latest/', 'latest/meta-data', 'latest/meta-data/public-keys', 'latest/user-data', '2012-03-01/user-data'],
        'POST /metadata/*': ['latest/?op=signal', 'latest/?op=netboot_off', `status/${its.id}`],
      },
      status: 401,
    },
    { at: '/metadata', app: metadataDoor(core, options), purpose: 'metadata', status: 401 },
    { at: '/bmc-events', app: bmcEventsDoor(core, options), purpose: 'agent', status: 404 },
  ]
  const asked = doors.flatMap(door => {
    const routes = door.app.routes.filter(({ method }) => method !== 'ALL')
    expect(routes.length).toBeGreaterThan(0)
    return routes
      .map(({ method, path }) => ({ method, route: `${method} ${path}`, path }))
      .filter(({ route }) => !door.open?.includes(route))
      .flatMap(({ method, route, path }) => {
        if (!path.endsWith('*')) return [{ door, method, path }]
        // Whoever adds a path that ends with anything says here what stands behind it.
        const behind = door.behind?.[route]
        if (!behind) throw new Error(`${door.at}: what stands behind ${route}?`)
        return behind.map(rest => ({ door, method, path: path.slice(0, -1) + rest }))
      })
  })

  const ask = ({ door, method, path }: (typeof asked)[number], token: string | undefined) =>
    partition.ask(method, door.at + path.replace(':token', token ?? '-').replace(':name', 'key'), {
      headers: token === undefined ? {} : (door.headers?.(token) ?? {}),
      // As cloud-init reports: whole, so that who asks decides, and nothing that the other paths could take for more than it is.
      ...(method === 'POST' && { body: { event_type: 'start', name: 'init-local' } }),
    })
  const tokenOf = (purpose: TokenPurpose, run = 'run1') => machineToken(core.seal, purpose, { id: its.id, run })
  const signatureOf = (token: string) => token.split('.').at(-1)
  const strangers = ({ at, purpose }: Door): Record<string, string | undefined> => ({
    'no token': undefined,
    "another machine's signature": `${its.id}.run1.${signatureOf(machineToken(core.seal, purpose, { id: other.id, run: 'run2' }))}`,
    "a dead run's": tokenOf(purpose, 'run0'),
    "another purpose's": tokenOf(purpose === 'agent' ? 'metadata' : 'agent'),
    ...(at !== '/bmc-events' && { "a BMC's": eventsPath(core.seal, its.id).replace('/bmc-events/', '') }),
    "a person's": partition.tokens.ada,
  })

  const before = [await reread(core, its.id), await reread(core, other.id)]
  const outcomes: string[] = []
  for (const each of asked)
    for (const [who, token] of Object.entries(strangers(each.door))) {
      const { status } = await ask(each, token)
      if (status !== each.door.status) outcomes.push(`${each.method} ${each.door.at}${each.path} with ${who}: ${status}`)
    }
  // What the machine itself signs says nothing for another.
  const headers = oauth(machineToken(core.seal, 'metadata', { id: other.id, run: 'run2' }))
  const body = { event_type: 'start', name: 'init-local' }
  expect((await partition.ask('POST', `/MAAS/metadata/status/${its.id}`, { headers, body })).status).toBe(401)
  expect(outcomes).toEqual([])
  expect([await reread(core, its.id), await reread(core, other.id)]).toEqual(before)

  // And the machine itself is let in everywhere, whatever it is told then of what it sent.
  for (const each of asked) {
    const right = each.door.at === '/bmc-events' ? eventsPath(core.seal, its.id).replace('/bmc-events/', '') : tokenOf(each.door.purpose)
    const { status } = await ask(each, right)
    if (status === 401 || (each.door.status === 404 && status !== 204))
      outcomes.push(`${each.method} ${each.door.at}${each.path}: ${status}`)
  }
  expect(outcomes).toEqual([])
})
