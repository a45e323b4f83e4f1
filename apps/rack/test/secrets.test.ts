// R17: secrets stay secret. Every kind of secret that people and machines give is planted in a federation, used rightly and wrongly, and then searched for in all that
// comes out: logs at their most talkative, answers of every call that looks, events, the audit log, metrics, webhooks, the command line, and the rows of every table.
import { execFile } from 'node:child_process'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { fileURLToPath } from 'node:url'
import { machineToken } from '@muster/partition/domain/machine-token'
import { createLog } from '@muster/server/log'
import { hashToken } from '@muster/server/tokens'
import { calls } from '@muster/shared/contract/contract'
import { hashPassword } from '@muster/shared/password'
import postgres from 'postgres'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { keysOfServers, makeReady, type Servers, startServers, until } from './servers.ts'

const lines: string[] = []
const cli = fileURLToPath(new URL('../../cli/src/main.ts', import.meta.url))
let servers: Servers
/** What webhooks were sent, headers and bodies. */
const told: string[] = []
let listener: Server

beforeAll(async () => {
  const log = createLog({ level: 'trace', name: 'all', destination: { write: line => void lines.push(line) } })
  servers = await startServers(['lon1', 'par2'], undefined, log)
  listener = createServer(async (request, response) => {
    told.push(`${JSON.stringify(request.headers)} ${(await request.toArray()).join('')}`)
    response.writeHead(204).end()
  })
  await new Promise<void>(resolve => listener.listen(0, '127.0.0.1', resolve))
}, 60_000)
afterAll(async () => {
  listener?.close()
  await servers?.[Symbol.asyncDispose]()
})

const planted = {
  bmc: 'planted-bmc-7q2xkd',
  bmcTooLong: 'planted-bmc-password-that-is-far-too-long-for-ipmi-3f9s',
  redfish: 'planted-redfish-4jd92k',
  join: 'planted-join-token-of-a-partition-6sk20dkq1',
  oneTime: 'planted-one-time-secret-81hd',
  userData: 'planted-user-data-k29d',
  password: 'planted-password-of-zoe-55sk',
  wrongPassword: 'planted-wrong-password-of-zoe-9dk2',
  plainPassword: 'planted-password-in-the-wrong-place-2kd8',
  webhook: Buffer.from('planted-webhook-secret-of-32-byte').toString('base64'),
  bearer: 'planted-bearer-token-nobody-gave-0dk2ls92k',
  queryToken: 'planted-token-in-a-query-8sk2m1',
}

/** As it stands, and as hex or base64 would hide it, whatever stands before it. */
function formsOf(secret: string | Buffer): string[] {
  const bytes = Buffer.from(secret)
  const shifted = [0, 1, 2].map(shift =>
    Buffer.concat([Buffer.alloc(shift, ' '), bytes])
      .toString('base64')
      .slice(shift === 0 ? 0 : 4, -4),
  )
  return [bytes.toString(), bytes.toString('hex'), ...shifted]
}

async function use(): Promise<{ machine: string; session: string; given: string[]; ofMachine: string[] }> {
  const { admin, operator } = servers.front.as
  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  const body = {
    partition: 'lon1',
    hostname: 'vault',
    arch: 'amd64' as const,
    cpus: 4,
    memoryMib: 4096,
    interfaces: [{ name: 'eth0', mac: '52:54:00:99:00:01' }],
    powerDriver: 'ipmi',
    // TEST-NET: nobody answers, so that the driver has something to complain about.
    powerSettings: { address: '192.0.2.77', user: 'root', password: planted.bmc },
  }
  const { id: machine } = await operator.machines.create(body)
  const tooLong = { ...body, hostname: 'other', powerSettings: { ...body.powerSettings, password: planted.bmcTooLong } }
  await expect(operator.machines.create(tooLong)).rejects.toMatchObject({ code: 'invalid-input' })
  // Nobody listens there, which is known at once.
  const redfish = { address: 'https://127.0.0.1:19', user: 'root', password: planted.redfish }
  const spoken = { powerDriver: 'redfish', powerSettings: redfish, interfaces: [{ name: 'eth0', mac: '52:54:00:99:00:02' }] }
  const { id: safe } = await operator.machines.create({ ...body, ...spoken, hostname: 'safe' })
  await operator.machines.commission({ id: safe })
  await makeReady(lon1, [machine])
  const { id } = await operator.allocations.create({ constraints: { machines: [machine] } })
  expect(id).not.toBeNull()
  const userData = `#cloud-config\npassword: ${planted.userData}\n`
  await operator.machines.deploy({ id: machine, os: 'debian/12', userData, secrets: { key: planted.oneTime } })

  const password = await hashPassword(planted.password)
  await admin.config.change({ put: [{ kind: 'user', name: 'zoe', document: { role: 'operator', password } }] })
  const plain = { kind: 'user' as const, name: 'zed', document: { role: 'user', password: planted.plainPassword } }
  await expect(admin.config.change({ put: [plain] })).rejects.toMatchObject({ code: 'invalid-input' })
  const hook = { url: `http://127.0.0.1:${(listener.address() as AddressInfo).port}/`, events: ['*'], secret: `whsec_${planted.webhook}` }
  await admin.config.change({ put: [{ kind: 'webhook', name: 'planted', document: hook }] })

  const [createdAt, expiresAt] = [0, 3_600_000].map(inMs => new Date(Date.now() + inMs).toISOString())
  const joining = { sha256: hashToken(planted.join), partition: 'rom3', createdAt, expiresAt }
  await admin.config.change({ put: [{ kind: 'join', name: 'j-000000000001', document: joining }] })
  const application = { version: '0', url: 'http://127.0.0.1:9', natsKey: `U${'A'.repeat(55)}`, operatingSystems: [] }
  for (const [name, token] of [
    ['rom3', planted.join],
    ['rom4', planted.join],
    ['rom4', `${planted.join}0`],
  ] as const)
    await servers.front.as.operator.enrolment.ask({ ...application, name, token }).catch(() => undefined)

  const ofMachine = await useMachineTokens(lon1, machine)
  const anybody = servers.front.as.operator
  const { token: session } = await anybody.session.login({ user: 'zoe', password: planted.password })
  await expect(anybody.session.login({ user: 'zoe', password: planted.wrongPassword })).rejects.toMatchObject({ code: 'unauthenticated' })
  for (const { url } of [servers.front, lon1]) {
    await fetch(`${url}/api/v1/whoami`, { headers: { authorization: `Bearer ${planted.bearer}` } })
    await fetch(`${url}/api/v1/whoami?token=${planted.queryToken}`, { headers: { authorization: `Bearer ${session}` } })
    await fetch(`${url}/trpc/machines.create`, {
      method: 'POST',
      headers: { authorization: `Bearer ${session}`, 'content-type': 'application/json' },
      body: JSON.stringify({ powerSettings: { password: planted.bmc } }),
    })
  }
  return { machine, session, given: Object.values(servers.front.tokens), ofMachine }
}

/** The tokens of a machine's run, used at every door of machines, rightly and wrongly. */
async function useMachineTokens({ url, core, databaseUrl }: Servers['partitions'][number], id: string): Promise<string[]> {
  const sql = postgres(databaseUrl, { max: 1 })
  const [row] = await sql<{ run: string }[]>`select run from machines where id = ${id}`
  await sql.end()
  const tokens = (['agent', 'metadata'] as const).map(purpose => machineToken(core.seal, purpose, { id, run: row?.run as string }))
  const statuses: number[] = []
  for (const token of tokens) {
    const headers = { authorization: `Bearer ${token}` }
    statuses.push((await fetch(`${url}/agent/job`, { headers })).status)
    statuses.push((await fetch(`${url}/agent/signal`, { method: 'POST', headers, body: '{' })).status)
    statuses.push((await fetch(`${url}/metadata/${token}/user-data`)).status)
    statuses.push((await fetch(`${url}/metadata/${token}/secrets/nothing`, { method: 'POST' })).status)
  }
  expect(statuses).toEqual([200, 400, 401, 401, 401, 401, 200, 409])
  return tokens.map(token => token.split('.').at(-1) as string)
}

/** What the command line says of it all, to an admin. */
async function saidByCli(machine: string): Promise<string[]> {
  const { url, tokens } = servers.front
  const env = { PATH: process.env.PATH, HOME: tmpdir(), MUSTER_URL: url, MUSTER_TOKEN: tokens.admin }
  const commands = [
    ['machine', 'get', machine, '-o', 'json'],
    ['machine', 'explain', machine],
    ['event', 'list'],
    ['config', 'get'],
    ['audit', 'list'],
    ['webhook', 'status'],
    ['--verbose', 'machine', 'deploy', machine, '--os', 'debian/12'],
  ]
  return Promise.all(
    commands.map(
      words =>
        new Promise<string>(resolve => {
          execFile(process.execPath, [cli, ...words], { env, timeout: 60_000 }, (_, stdout, stderr) =>
            resolve(`muster ${words.join(' ')}: ${stdout}${stderr}`),
          )
        }),
    ),
  )
}

/** What every call answers that only looks, at front and partition, with names filled in as far as there are any. */
async function answers(machine: string): Promise<string[]> {
  const [lon1] = servers.partitions as [Servers['partitions'][number]]
  const texts: string[] = []
  for (const { url, tokens } of [servers.front, lon1]) {
    const paths = [...calls]
      .filter(([, call]) => call.rest.method === 'GET' && call.kind !== 'stream')
      .map(([name, { rest }]) => {
        const of = name.startsWith('partitions') ? 'lon1' : 'planted'
        return `/api/v1${rest.path
          .replace('{id}', machine)
          .replace('{name}', of)
          .replace(/\{\w+\}/g, 'x')}`
      })
    const more = [
      '/api/v1/config/diff?from=0',
      '/metrics',
      '/healthz',
      '/readyz',
      '/api/v1/openapi.json',
      '/api/v1/docs',
      '/api/v1/nothing',
    ]
    for (const each of [...paths, ...more]) {
      const response = await fetch(url + each, { headers: { authorization: `Bearer ${tokens.admin}` } })
      texts.push(`${each} ${response.status} ${await response.text()}`)
    }
  }
  return texts
}

async function rowsOf(databaseUrl: string): Promise<string[]> {
  const sql = postgres(databaseUrl, { max: 1 })
  try {
    const tables = await sql<{ name: string }[]>`select table_name as name from information_schema.tables where table_schema = 'public'`
    const texts: string[] = []
    for (const { name } of tables) {
      const rows = await sql<{ row: string }[]>`select row_to_json(t)::text as row from ${sql(name)} t`
      texts.push(...rows.map(({ row }) => `${name} ${row}`))
    }
    return texts
  } finally {
    await sql.end()
  }
}

test('the search finds what hex and base64 hide, wherever in a text it stands', () => {
  const secret = 'planted-needle-3kd8'
  const isFound = (text: string) => formsOf(secret).some(form => text.includes(form))
  for (const before of ['', 'a', 'ab', 'abc']) {
    const hay = Buffer.from(`${before}${secret} and more`)
    expect([hay.toString(), hay.toString('hex'), hay.toString('base64')].map(isFound), before).toEqual([true, true, true])
  }
  expect(isFound('planted-needle-3kd')).toBe(false)
})

test('a planted secret is found in no log, event, answer or table', { timeout: 90_000 }, async () => {
  const { machine, session, given, ofMachine } = await use()
  // Until the BMC has been tried and complained of, and the changes are in the audit log.
  await until(() => lines.some(line => line.includes('192.0.2.77')))
  await until(async () => (await servers.front.as.admin.audit.list({})).items.some(({ call }) => call === 'machines.deploy'))

  const outputs = new Map<string, string[]>([
    ['log', lines],
    ['answer', await answers(machine)],
    ['table of the fronts', await rowsOf(servers.homeUrl)],
    ['webhook', told],
    ['word of the command line', await saidByCli(machine)],
  ])
  for (const { name, databaseUrl } of servers.partitions) outputs.set(`table of ${name}`, await rowsOf(databaseUrl))
  // Where nothing was looked at, nothing is found.
  expect(outputs.get('log')?.length).toBeGreaterThan(20)
  expect(outputs.get('answer')?.filter(text => / 200 /.test(text.slice(0, 200))).length).toBeGreaterThan(40)
  expect(outputs.get('answer')?.join('\n')).toContain('machines.deploy')
  await until(() => told.some(text => text.includes('machine.moved')))
  expect(outputs.get('word of the command line')?.join('\n')).toMatch(/vault.*machine\.moved.*zoe.*machines\.deploy.*deploying/s)
  expect(outputs.get('table of lon1')?.join('\n')).toContain('vault')
  expect(outputs.get('table of the fronts')?.join('\n')).toContain('zoe')

  const secrets = [
    ...Object.entries(planted),
    ['session', session] as const,
    ...['lon1', 'par2'].flatMap(name => Object.entries(keysOfServers(name))),
    ...ofMachine.map((token, index) => [`token of a machine ${index}`, token] as const),
    ...given.map((token, index) => [`token ${index}`, token] as const),
  ]
  const found: string[] = []
  for (const [where, texts] of outputs)
    for (const text of texts)
      for (const [name, secret] of secrets)
        if (formsOf(secret).some(form => text.includes(form))) found.push(`${name} in a ${where}: ${text.slice(0, 300)}`)
  expect(found).toEqual([])
})
