// An installed operating system's boot, as cloud-init plays it: reads the seed (NoCloud) or the metadata service (MAAS), reports its stages, and on the
// first boot of an instance phones home.
import { randomUUID } from 'node:crypto'
import type { MetadataCredentials } from '@muster/shared/cloud-init'
import type { Boot, DiskContent } from './boot.ts'
import { type PhoneHome, phoneHomeOf, topLevelValue, type Webhook, webhookOf } from './cloud-config.ts'
import { fewAttempts, HttpFailure } from './http.ts'
import { seededBytes } from './random.ts'

export type InstalledDisk = DiskContent & { kind: 'installed' }

/** Boots the disk's OS and leaves it running. Rejects only when the power goes. */
export async function bootOperatingSystem(boot: Boot, disk: InstalledDisk): Promise<void> {
  boot.enter('operating system')
  await boot.pacer.stage('osBoot', boot.signal)
  const seed = await readMetadata(boot, disk)
  boot.note('os booted', { os: disk.os })
  if (!seed) return
  // User-data goes before vendor-data, as cloud-init merges them.
  const phoneHome = phoneHomeOf(seed.userData) ?? phoneHomeOf(seed.vendorData)
  const webhook = webhookOf(seed.userData) ?? webhookOf(seed.vendorData)
  // Every boot reports, whatever an earlier one has done.
  const report = (reports: readonly Report[]) => (webhook ? sendReports(boot, webhook, reports) : Promise.resolve())
  await report(beforePhoningHome(boot.behaviour.firstBoot))
  if (boot.behaviour.phoneHome === 'never') return
  // Once per instance, and noted before it is done: a machine that loses its power just then does not phone home again either.
  if (seed.instanceId !== disk.instanceId) {
    boot.writeDisk({ ...disk, instanceId: seed.instanceId })
    if (phoneHome) await sendPhoneHome(boot, phoneHome, seed)
  }
  await report(afterPhoningHome(boot.behaviour.firstBoot))
}

/** An event of cloud-init's reporting, without its time. */
interface Report {
  event_type: 'start' | 'finish'
  name: string
  description: string
  result?: 'SUCCESS' | 'FAIL'
}

const userScripts = 'modules-final/config-scripts-user'

/** The stages that can be reported: those that run when the vendor-data is known. Of their some forty steps, a few. */
function beforePhoningHome(firstBoot: 'a step fails' | undefined): Report[] {
  return [
    { event_type: 'start', name: 'modules-config', description: 'running modules for config' },
    { event_type: 'finish', name: 'modules-config/config-locale', description: 'config-locale ran successfully', result: 'SUCCESS' },
    { event_type: 'finish', name: 'modules-config', description: 'running modules for config', result: 'SUCCESS' },
    { event_type: 'start', name: 'modules-final', description: 'running modules for final' },
    firstBoot === 'a step fails'
      ? { event_type: 'finish', name: userScripts, description: 'running config-scripts-user', result: 'FAIL' }
      : { event_type: 'finish', name: userScripts, description: 'config-scripts-user ran successfully', result: 'SUCCESS' },
  ]
}

function afterPhoningHome(firstBoot: 'a step fails' | undefined): Report[] {
  return [
    {
      event_type: 'finish',
      name: 'modules-final',
      description: 'running modules for final',
      result: firstBoot === undefined ? 'SUCCESS' : 'FAIL',
    },
  ]
}

/** One after the other, each tried twice, as the webhook's own thread does. What is lost is lost. */
async function sendReports(boot: Boot, webhook: Webhook, reports: readonly Report[]): Promise<void> {
  let heard = 0
  for (const report of reports) {
    const body = JSON.stringify({ ...report, origin: 'cloudinit', timestamp: Date.now() / 1000 })
    const { endpoint: url, consumer_key: consumerKey, token_key: tokenKey, token_secret: tokenSecret } = webhook
    const isSigned = consumerKey !== undefined && tokenKey !== undefined && tokenSecret !== undefined
    const authorization = isSigned ? signature({ consumerKey, tokenKey, tokenSecret }) : {}
    const headers = { 'content-type': 'application/json', 'user-agent': userAgent, ...authorization }
    try {
      await boot.http.ask({ method: 'POST', url, headers, body, attempts: 2, signal: boot.signal })
      heard++
    } catch (error) {
      if (!(error instanceof HttpFailure)) throw error
    }
  }
  boot.note('reported', { reports: reports.length, heard, last: reports.at(-1)?.name ?? '' })
}

const userAgent = 'Cloud-Init/23.4'

interface Seed {
  instanceId: string
  hostname: string
  userData: string
  vendorData: string
}

/** Without its metadata cloud-init finds no data source and does nothing. */
async function readMetadata(boot: Boot, { seedUrl, metadata }: InstalledDisk): Promise<Seed | undefined> {
  const url = metadata?.url ?? seedUrl
  try {
    const seed = metadata ? await readMaas(boot, metadata) : await readNoCloud(boot, seedUrl)
    if (typeof seed === 'string') boot.note('seed missing', { url, why: seed })
    else return seed
  } catch (error) {
    if (!(error instanceof HttpFailure)) throw error
    boot.note('seed missing', { url, why: error.message })
  }
  return undefined
}

/** One file of the metadata; undefined where there is none of that name. */
async function fetchFile(boot: Boot, url: string, headers: Record<string, string>): Promise<string | undefined> {
  const answer = await boot.http.ask({ url, headers, attempts: fewAttempts, accept: [404], signal: boot.signal })
  return answer.status === 404 ? undefined : answer.body.toString('utf8')
}

/** meta-data and user-data must be there, the other two may be missing. Answers what is missing, in words. */
async function readNoCloud(boot: Boot, seedUrl: string): Promise<Seed | string> {
  const fetch = (file: string) => fetchFile(boot, `${seedUrl}${file}`, {})
  const metaData = await fetch('meta-data')
  const userData = metaData === undefined ? undefined : await fetch('user-data')
  if (metaData === undefined || userData === undefined) return `${metaData === undefined ? 'meta-data' : 'user-data'}: 404`
  const vendorData = (await fetch('vendor-data')) ?? ''
  const networkConfig = await fetch('network-config')
  const instanceId = topLevelValue(metaData, 'instance-id') ?? 'nocloud'
  const hostname = topLevelValue(metaData, 'local-hostname') ?? 'localhost'
  const sizes = { userDataBytes: userData.length, vendorDataBytes: vendorData.length, networkConfigBytes: networkConfig?.length ?? 0 }
  boot.note('seed read', { instanceId, hostname, ...sizes })
  return { instanceId, hostname, userData, vendorData }
}

/** In the order in which cloud-init asks; only the first two must be there. */
async function readMaas(boot: Boot, metadata: MetadataCredentials): Promise<Seed | string> {
  // As cloud-init joins them: one slash at the end is taken away.
  const base = `${metadata.url.replace(/\/$/, '')}/2012-03-01`
  const fetch = (file: string) => fetchFile(boot, `${base}/${file}`, signature(metadata))
  const instanceId = await fetch('meta-data/instance-id')
  const hostname = instanceId === undefined ? undefined : await fetch('meta-data/local-hostname')
  if (instanceId === undefined || hostname === undefined) return `${instanceId === undefined ? 'instance-id' : 'local-hostname'}: 404`
  await fetch('meta-data/public-keys')
  const vendorData = topLevelValue((await fetch('meta-data/vendor-data')) ?? '', 'cloud-init') ?? ''
  const userData = (await fetch('user-data')) ?? ''
  boot.note('seed read', { instanceId, hostname, userDataBytes: userData.length, vendorDataBytes: vendorData.length, dataSource: 'maas' })
  return { instanceId, hostname, userData, vendorData }
}

/** OAuth 1.0, PLAINTEXT, with an empty consumer secret: the header of a signed request. */
function signature({ consumerKey, tokenKey, tokenSecret }: Omit<MetadataCredentials, 'url'>): { authorization: string } {
  const fields = {
    oauth_nonce: randomUUID(),
    oauth_timestamp: String(Math.floor(Date.now() / 1000)),
    oauth_version: '1.0',
    oauth_signature_method: 'PLAINTEXT',
    oauth_consumer_key: consumerKey,
    oauth_token: tokenKey,
    oauth_signature: `&${tokenSecret}`,
  }
  const list = Object.entries(fields).map(([name, value]) => `${name}="${encodeURIComponent(value)}"`)
  return { authorization: `OAuth ${list.join(', ')}` }
}

async function sendPhoneHome(boot: Boot, phoneHome: PhoneHome, seed: Seed): Promise<void> {
  const url = phoneHome.url.replaceAll(/\$\{?INSTANCE_ID\}?/g, encodeURIComponent(seed.instanceId))
  const form = new URLSearchParams()
  const values = formValues(boot, seed)
  const fields = phoneHome.post === 'all' ? Object.keys(values) : phoneHome.post
  // cloud-init says N/A for what it does not have.
  for (const field of fields) form.set(field, values[field] ?? 'N/A')
  try {
    await boot.http.ask({
      method: 'POST',
      url,
      headers: { 'content-type': 'application/x-www-form-urlencoded', 'user-agent': userAgent },
      body: form.toString(),
      attempts: phoneHome.tries,
      signal: boot.signal,
    })
    boot.note('phoned home', { url, fields: fields.join(',') })
  } catch (error) {
    if (!(error instanceof HttpFailure)) throw error
    boot.note('phone home failed', { why: error.message })
  }
}

function formValues(boot: Boot, { hostname, instanceId }: Seed): Record<string, string> {
  const [short = hostname] = hostname.split('.')
  return {
    pub_key_rsa: 'N/A',
    pub_key_ecdsa: 'N/A',
    pub_key_ed25519: hostKey(boot.facts.uuid, instanceId, short),
    instance_id: instanceId,
    hostname: short,
    fqdn: hostname.includes('.') ? hostname : `${hostname}.localdomain`,
  }
}

/** An ed25519 host key as sshd prints it: made anew for each instance, and the same whenever this instance boots. */
function hostKey(uuid: string, instanceId: string, host: string): string {
  const type = Buffer.from('ssh-ed25519')
  const length = (bytes: Buffer) => {
    const field = Buffer.alloc(4)
    field.writeUInt32BE(bytes.length)
    return field
  }
  const key = seededBytes(32, 'host key', uuid, instanceId)
  return `ssh-ed25519 ${Buffer.concat([length(type), type, length(key), key]).toString('base64')} root@${host}`
}
