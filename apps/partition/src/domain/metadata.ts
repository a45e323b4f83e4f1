// What a deployed machine is told, and what it may take: one set of facts, which the NoCloud and the MAAS door write in their own forms.
import type { DataSource, MetadataCredentials } from '@muster/shared/cloud-init'
import { Refusal } from '@muster/shared/errors'
import type { Deployment } from '@muster/shared/machine'
import * as db from '../db/machines.ts'
import type { Core } from './core.ts'
import { licenceScript, licencesFor } from './licences.ts'
import { machineToken } from './machine-token.ts'
import { noteChange } from './move.ts'

/** What the user gave for a deployment; sealed while it lasts, forgotten at release. */
export interface DeploymentSecrets {
  /** Text; with `userDataEncoding`, other bytes. */
  userData: string | null
  userDataEncoding?: 'base64'
  sshKeys: string[]
  /** Handed out once each; null: it was. */
  oneTime?: Record<string, string | null>
}

const deploymentContext = (machine: string) => `deployment ${machine}`

export function sealDeployment(core: Core, machine: string, secrets: DeploymentSecrets): Buffer {
  return core.seal.seal(secrets, deploymentContext(machine))
}

/** What the user gave for the machine's deployment. */
export async function deploymentSecrets(core: Core, machine: Pick<db.MachineRow, 'id' | 'run'>): Promise<DeploymentSecrets> {
  const sealed = await db.findDeploymentSecrets(core.sql, machine)
  if (sealed === null) return { userData: null, sshKeys: [] }
  return core.seal.open(sealed, deploymentContext(machine.id)) as DeploymentSecrets
}

/** The bytes of the user-data, exactly as the user has them; null where there is none. */
export function userDataBytes({ userData, userDataEncoding }: DeploymentSecrets): Buffer | null {
  return userData === null ? null : Buffer.from(userData, userDataEncoding ?? 'utf8')
}

/**
 * User-data as it is kept. Base64 is taken for what it encodes, as MAAS does, but only where that is user-data by cloud-init's own signs: a text
 * that merely could be base64 stays what it is.
 */
export function readUserData(given: string | undefined): Pick<DeploymentSecrets, 'userData' | 'userDataEncoding'> {
  if (given === undefined || given === '') return { userData: null }
  const packed = given.replace(/\s/g, '')
  if (packed.length % 4 !== 0 || !/^[A-Za-z0-9+/]+={0,2}$/.test(packed)) return { userData: given }
  const bytes = Buffer.from(packed, 'base64')
  if (!isUserData(bytes)) return { userData: given }
  const text = bytes.toString('utf8')
  return Buffer.from(text).equals(bytes) && !text.includes('\0')
    ? { userData: text }
    : { userData: bytes.toString('base64'), userDataEncoding: 'base64' }
}

/** gzip, a MIME message, or one of the `#…` and `## template` first lines. */
function isUserData(bytes: Buffer): boolean {
  return (bytes[0] === 0x1f && bytes[1] === 0x8b) || /^(#|content-type:|mime-version:|from )/i.test(bytes.toString('latin1', 0, 16))
}

/** The data source of a deployment: as asked for, else as its image wants it. */
export const dataSourceOf = (deployment: Deployment | null): DataSource => deployment?.dataSource ?? 'nocloud'

/**
 * What the MAAS data source of this machine's deployment is configured with. The same token as the NoCloud seed's, in three parts: it dies with
 * the machine's run.
 */
export function metadataCredentials(core: Core, machine: { id: string; run: string }, baseUrl: string): MetadataCredentials {
  const [consumerKey, tokenKey, tokenSecret] = machineToken(core.seal, 'metadata', machine).split('.') as [string, string, string]
  return { url: `${baseUrl}/MAAS/metadata/`, consumerKey, tokenKey, tokenSecret }
}

/** Bound to the deployment: a new one makes cloud-init run its per-instance steps again. */
export const instanceIdOf = (machine: db.MachineRow) => `${machine.id}-${machine.run}`

/** The fields of a phone-home that hold SSH host keys, by the beginning of the key's type. */
const hostKeyFields = { 'ssh-rsa': 'pub_key_rsa', 'ecdsa-': 'pub_key_ecdsa', 'ssh-ed25519': 'pub_key_ed25519' }
const longestHostKey = 2_000

/** The SSH host keys in a phone-home's form, without their comments. What is missing reads N/A there. */
export function hostKeysIn(form: Record<string, unknown>): string[] {
  return Object.entries(hostKeyFields).flatMap(([type, field]) => {
    const key = /^(\S+ [A-Za-z0-9+/]+={0,2})(?:\s|$)/.exec(String(form[field] ?? ''))?.[1]
    return key?.startsWith(type) && key.length <= longestHostKey ? [key] : []
  })
}

/** How the first boot tells its end, and its progress, as a cloud-config below the user's own; with the licence keys of its operating system in a script beside it. */
export function vendorData(
  machine: { id: string; run: string; deployment: Deployment | null },
  options: { core: Core; baseUrl: string; dataSource: DataSource },
): string {
  const { core, baseUrl } = options
  const place = `${baseUrl}/metadata/${machineToken(core.seal, 'metadata', machine)}`
  const { url, consumerKey, tokenKey, tokenSecret } = metadataCredentials(core, machine, baseUrl)
  const webhook =
    options.dataSource === 'nocloud'
      ? { endpoint: `${place}/report` }
      : { endpoint: `${url}status/${machine.id}`, consumer_key: consumerKey, token_key: tokenKey, token_secret: tokenSecret }
  // Three seconds and one more try: cloud-init waits for the last of its reports before it ends.
  const reporting = { muster: { type: 'webhook', ...webhook, timeout: 3, retries: 1 } }
  // Three seconds apart: a partition may be away for as long as an upgrade takes.
  const phoneHome = { url: `${place}/phone-home`, post: ['instance_id', 'hostname', 'fqdn', ...Object.values(hostKeyFields)], tries: 60 }
  const config = `#cloud-config\n${yaml({ phone_home: phoneHome, reporting })}`
  const licences = licencesFor(core, machine.deployment?.os)
  return licences.length === 0 ? config : multipart({ 'text/cloud-config': config, 'text/x-shellscript': licenceScript(licences) })
}

/** Several parts in one, as cloud-init takes them (MIME, RFC 2046). None of ours has a line that begins with two dashes. */
function multipart(parts: Readonly<Record<string, string>>): string {
  const boundary = 'part-of-muster'
  const texts = Object.entries(parts).map(([type, text]) => `--${boundary}\nContent-Type: ${type}; charset="us-ascii"\n\n${text}`)
  return `Content-Type: multipart/mixed; boundary="${boundary}"\nMIME-Version: 1.0\n\n${texts.join('\n')}\n--${boundary}--\n`
}

/** YAML 1.2 contains JSON, so a line per member with its value as JSON needs no YAML writer and quotes everything rightly. */
export function yaml(members: Record<string, unknown>): string {
  return `${Object.entries(members)
    .map(([name, value]) => `${name}: ${JSON.stringify(value)}`)
    .join('\n')}\n`
}

/**
 * Hands a secret of the deployment to its machine, once: whoever reads the metadata later, another program on the machine say, finds it gone, and
 * the event tells that it was taken. Throws not-found, already-taken, and wrong-state before the system is installed.
 */
export async function takeSecret(core: Core, machine: db.MachineRow, name: string): Promise<string> {
  for (let row: db.MachineRow | undefined = machine; row?.run === machine.run; row = await db.findMachine(core.sql, machine.id)) {
    const isInstalled = row.state === 'deployed' || (row.state === 'deploying' && !row.netboot)
    if (!isInstalled)
      throw new Refusal('wrong-state', `${row.id} is ${row.state}; only its installed system is given secrets`, { state: row.state })
    // Read after the row: they change with its version only, so what is written back is of the version that was read.
    const secrets = await deploymentSecrets(core, row)
    const value = Object.hasOwn(secrets.oneTime ?? {}, name) ? secrets.oneTime?.[name] : undefined
    if (value === undefined) throw new Refusal('not-found', `the deployment of ${row.id} has no secret ${name}`)
    if (value === null) throw new Refusal('already-taken', `the secret ${name} of ${row.id} was handed out before; see its events for when`)
    const changed = await db.changeMachine(core.sql, {
      id: row.id,
      version: row.version,
      patch: { deployment_secrets: sealDeployment(core, row.id, { ...secrets, oneTime: { ...secrets.oneTime, [name]: null } }) },
      actor: 'machine',
      events: [{ kind: 'machine.secret-taken', data: { name } }],
    })
    if (!changed) continue
    noteChange(core, changed)
    return value
  }
  throw new Refusal('unauthenticated', 'the run of this machine token is over')
}
