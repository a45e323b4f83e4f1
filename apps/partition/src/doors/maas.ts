// The metadata service of MAAS, for images whose cloud-init is made for it: version 2012-03-01, every request signed (OAuth 1.0 PLAINTEXT). The wire
// is the old one; what it gave away is not: nothing is served by a machine's id, nothing to anonymous callers, and a GET changes nothing.
import type { DoorEnv } from '@muster/server/http/incoming'
import { Refusal } from '@muster/shared/errors'
import type { Context, Hono } from 'hono'
import type { MachineRow } from '../db/machines.ts'
import { machineOfToken, receiveSignal } from '../domain/agent.ts'
import type { Core } from '../domain/core.ts'
import { failFirstBoot, phoneHome } from '../domain/first-boot.ts'
import { deploymentSecrets, instanceIdOf, userDataBytes, vendorData, yaml } from '../domain/metadata.ts'
import { type MetadataPlace, machineDoor, neverKept, reportIn, textOrBytes } from './machine-requests.ts'
import { tokenOfOauth } from './plaintext-oauth.ts'

const versions = new Set(['2012-03-01', 'latest'])

export function maasDoor(core: Core, options: MetadataPlace): Hono<DoorEnv> {
  const app = machineDoor(core, { name: 'maas', proxies: options.proxies }).use(neverKept)
  const tokenIn = (c: Context) => {
    // Real clients understand a 401 with this header, and mend their clock by its Date.
    c.header('www-authenticate', 'OAuth realm="MAAS"')
    return tokenOfOauth(c.req.header('authorization'), Date.now())
  }
  app.get('/metadata/*', async c => {
    const machine = await machineOfToken(core, 'metadata', tokenIn(c))
    const [version, ...rest] = partsOf(c.req.path)
    if (version === undefined) return c.text([...versions].join('\n'))
    const file = versions.has(version) ? files.get(rest.join('/')) : undefined
    const content = (await file?.({ core, machine, baseUrl: options.baseUrl })) ?? null
    if (content === null) throw new Refusal('not-found', `${c.req.path} is not part of this machine's metadata`)
    return typeof content === 'string' ? c.text(content) : textOrBytes(c, content)
  })
  app.post('/metadata/*', async c => {
    const token = tokenIn(c)
    const [version, id, ...rest] = partsOf(c.req.path)
    if (version === 'status' && id !== undefined && rest.length === 0) {
      // The machine is who signs; what the path says beside that must agree.
      if (!token.startsWith(`${id}.`)) throw new Refusal('unauthenticated', `this token does not speak for ${id}`)
      await options.firstBoots.receive(token, await reportIn(c.req))
      return c.body(null, 204)
    }
    const machine = await machineOfToken(core, 'metadata', token)
    if (version === undefined || !versions.has(version) || id !== undefined)
      throw new Refusal('not-found', `nothing is taken at ${c.req.path}`)
    const form = await formOf(c)
    const operation = c.req.query('op') ?? form.op
    const operate = operations.get(operation ?? '')
    if (!operate)
      throw new Refusal('malformed', `the operation is ${operation ?? 'not named'}, not one of ${[...operations.keys()].join(', ')}`)
    await operate(core, machine, form)
    return c.text('OK')
  })
  return app
}

/** The path behind /MAAS/metadata, in parts; a base URL that ends with a slash doubles it in what clients ask for. */
const partsOf = (path: string) => path.split('/').filter(Boolean).slice(2)

interface Asked {
  core: Core
  machine: MachineRow & { run: string }
  baseUrl: string
}

/** What is served under a version; null: the machine has none of it, which is a 404 to cloud-init. */
const files = new Map<string, (asked: Asked) => string | Promise<string | Buffer | null>>(
  Object.entries({
    '': () => 'meta-data\nuser-data',
    'meta-data': () => 'instance-id\nlocal-hostname\npublic-keys\nvendor-data',
    'meta-data/instance-id': ({ machine }) => instanceIdOf(machine),
    'meta-data/local-hostname': ({ machine }) => machine.hostname,
    'meta-data/public-keys': async ({ core, machine }) => (await deploymentSecrets(core, machine)).sshKeys.join('\n'),
    'meta-data/vendor-data': ({ machine, ...options }) => yaml({ 'cloud-init': vendorData(machine, { ...options, dataSource: 'maas' }) }),
    'user-data': async ({ core, machine }) => userDataBytes(await deploymentSecrets(core, machine)),
  }),
)

type Form = Record<string, string | undefined>

/** The texts of a form, urlencoded or multipart. Files (logs, results of scripts) are not kept. */
async function formOf(c: Context): Promise<Form> {
  try {
    const fields = Object.entries(await c.req.parseBody()).filter(([, value]) => typeof value === 'string')
    return Object.fromEntries(fields) as Form
  } catch (cause) {
    throw new Refusal('malformed', 'the body is not a form', {}, { cause })
  }
}

/** What a machine that is being deployed may say. There is no netboot_on: what a machine boots is the life cycle's business. */
const operations = new Map<string, (core: Core, machine: MachineRow, form: Form) => Promise<void>>(
  Object.entries({
    signal: async (core, machine, { status = '', error = '' }) => {
      if (status === 'OK') return phoneHome(core, machine)
      if (status === 'FAILED' || status === 'TIMEDOUT') return failFirstBoot(core, machine, plain(error) || `it signalled ${status}`)
      if (!working.has(status)) throw new Refusal('malformed', `the status is "${plain(status)}", which is none that clients of MAAS send`)
      if (machine.state !== 'deploying') return
      return receiveSignal(core, machine, { status: 'working', step: status.toLowerCase(), message: plain(error) })
    },
    // Said by an image that installs itself: from now on it boots from its disk.
    netboot_off: async (core, machine) => {
      if (machine.state === 'deploying') await receiveSignal(core, machine, { status: 'done', step: 'install', message: '' })
    },
  }),
)

const working = new Set(['WORKING', 'COMMISSIONING', 'TESTING', 'INSTALLING', 'APPLYING_NETCONF', 'DEPLOYING', 'RELEASING'])
/** As long as a fault may be, without the character that PostgreSQL cannot store. */
const plain = (text: string) => text.replaceAll('\0', '').slice(0, 4000)
