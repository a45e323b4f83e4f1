// The metadata of a partition, read by Debian's cloud-init: its own data sources, its webhook, its way of phoning home. See cloud-init.py.
import { execFile, execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { createSharedSealer, sealText } from '@muster/server/global/sealed'
import { createSigner } from '@muster/server/global/signature'
import { payloadOf } from '@muster/shared/global/copy'
import { type Documents, noDocuments } from '@muster/shared/global/documents'
import { Secret } from '@muster/shared/secret'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { parse } from 'yaml'
import type { MachineRow } from '../src/db/machines.ts'
import { machineToken } from '../src/domain/machine-token.ts'
import { metadataCredentials } from '../src/domain/metadata.ts'
import { addMachine, reread, runPartition, type TestPartition, until } from './harness.ts'

const sharedKey = Buffer.alloc(32, 'shared')
const script = fileURLToPath(new URL('cloud-init.py', import.meta.url))

/** As needs() for programs: a silent skip in CI would hide a hole. */
function needsModules(): boolean {
  const missing = ['cloudinit', 'oauthlib'].filter(name => !existsSync(`/usr/lib/python3/dist-packages/${name}`))
  if (missing.length === 0) return false
  const message = `${missing.join(' and ')} missing: what reads metadata is NOT TESTED here (apt-get install -y cloud-init python3-oauthlib)`
  if (process.env.CI) throw new Error(message)
  console.warn(`SKIPPED: ${message}`)
  return true
}

describe.skipIf(needsModules())('cloud-init', { timeout: 180_000 }, () => {
  let partition: TestPartition
  let folder: string
  const ends: (() => Promise<void>)[] = []
  beforeAll(async () => {
    partition = await runPartition({ sharedKey }, end => void ends.push(end))
    folder = mkdtempSync(path.join(tmpdir(), 'muster-cloud-init-'))
  })
  afterAll(async () => {
    for (const end of ends.reverse()) await end()
    rmSync(folder, { recursive: true, force: true })
  })

  let runs = 0
  async function cloudInit<Answer = unknown>(...words: string[]): Promise<Answer> {
    const { stdout } = await promisify(execFile)('/usr/bin/python3', [script, path.join(folder, String(runs++)), ...words], {
      timeout: 60_000,
      maxBuffer: 32 * 1024 * 1024,
    })
    return JSON.parse(stdout) as Answer
  }

  interface Read {
    instanceId: string
    hostname: string
    keys: string[]
    userDataRaw: string
    userData: { type: string; content: string }[]
    vendorData: { type: string; content: string }[]
    metadata: Record<string, unknown>
    skew?: Record<string, number>
  }

  const owned = { owner: 'alice', allocation_id: 'a-0123456789bcdfgh' }
  /** A machine that a person deployed through the API, and whose agent has just said that it is installed. */
  async function installed(
    input: { userData?: string; sshKeys?: string[]; secrets?: Record<string, string> } = {},
  ): Promise<MachineRow & { run: string }> {
    const added = await addMachine(partition.core, { state: 'allocated', attention_at: null, ...owned }, { powerDriver: 'manual' })
    await partition.as('alice').machines.deploy({ id: added.id, os: 'debian/12', ...input })
    await partition.sql`update machines set netboot = false, attention_at = null, version = version + 1 where id = ${added.id}`
    return (await reread(partition.core, added.id)) as MachineRow & { run: string }
  }
  const seedOf = (machine: { id: string; run: string }) =>
    `${partition.url}/metadata/${machineToken(partition.core.seal, 'metadata', machine)}/`
  const readNoCloud = (machine: { id: string; run: string }) => cloudInit<Read>('nocloud', seedOf(machine))
  const readMaas = (machine: { id: string; run: string }, ...shift: string[]) => {
    const { url, consumerKey, tokenKey, tokenSecret } = metadataCredentials(partition.core, machine, partition.url)
    return cloudInit<Read>('maas', url, consumerKey, tokenKey, tokenSecret, ...shift)
  }
  const vendorOf = ({ vendorData }: Read) =>
    parse(Buffer.from(vendorData[0]?.content ?? '', 'base64').toString()) as {
      phone_home: { url: string }
      reporting: { muster: Record<string, unknown> }
    }
  const sources = { nocloud: readNoCloud, maas: readMaas }
  /** Has the partition know one licence key, for Debian, until the test ends. */
  async function withLicence(key: string): Promise<void> {
    const signer = createSigner('09'.repeat(32))
    const { configuration } = partition.core
    configuration.trust([signer.publicKey])
    const use = async (licence: Documents['licence']) => {
      const head = { generation: configuration.generation + 1, changedAt: new Date().toISOString(), changedBy: 'test', note: '' }
      await configuration.take(signer.sign(payloadOf({ ...head, documents: { ...noDocuments, licence } })))
    }
    const place = { kind: 'licence', name: 'debian', field: 'key' } as const
    const sealed = sealText(createSharedSealer(sharedKey), place, new Secret(key))
    await use({ debian: { description: '', operatingSystems: ['debian/12'], key: sealed } })
    onTestFinished(() => use({}))
  }
  const eventsOf = (id: string) =>
    partition.sql<{ kind: string; data: { reports: number; ended: { name: string }[] } }[]>`
      select kind, data from events where machine_id = ${id} and kind = 'machine.cloud-init' order by id`

  describe.each(['nocloud', 'maas'] as const)('with the data source %s', source => {
    test('reads who the machine is, its keys, and what its user wants', async () => {
      const sshKeys = ['ssh-ed25519 AAAAC3Nz alice@desk', 'ssh-rsa AAAAB3 odd "comment": # & *']
      const userData = '#cloud-config\npackages: [htop]\n# ü €\n'
      const machine = await installed({ userData, sshKeys })
      const read = await sources[source](machine)
      expect(read).toMatchObject({ instanceId: `${machine.id}-${machine.run}`, hostname: machine.hostname, keys: sshKeys })
      expect(Buffer.from(read.userDataRaw, 'base64').toString()).toBe(userData)
      expect(read.userData).toMatchObject([{ type: 'text/cloud-config' }])
      expect(read.vendorData).toMatchObject([{ type: 'text/cloud-config' }])
      expect(vendorOf(read).phone_home.url).toBe(`${seedOf(machine)}phone-home`)
    })

    test('reads a machine nobody gave anything', async () => {
      const read = await sources[source](await installed())
      expect(read.keys).toEqual([])
      // NoCloud must find a file; MAAS's 404 is no user-data.
      expect(Buffer.from(read.userDataRaw, 'base64').toString()).toBe(source === 'nocloud' ? '#cloud-config\n{}\n' : '')
    })

    test("is given the licence keys of its operating system in a script, beside the user's own", async () => {
      const key = 'PLANTED LICENCE --KEY'
      await withLicence(key)
      const read = await sources[source](await installed({ userData: '#!/bin/sh\necho mine\n' }))
      expect(read.vendorData.map(({ type }) => type)).toEqual(['text/cloud-config', 'text/x-shellscript'])
      expect(vendorOf(read).phone_home.url).toContain('/metadata/')
      const script = Buffer.from(read.vendorData[1]?.content ?? '', 'base64').toString()
      expect(script).toMatch(/^#!\/bin\/sh\n/)
      expect(script).toContain(`printf %s ${Buffer.from(key).toString('base64')} | base64 -d > "$folder/debian"`)
      expect(read.userData).toMatchObject([{ type: 'text/x-shellscript' }])
    })

    test('takes compressed and multipart user-data, byte for byte', async () => {
      const parts = `Content-Type: multipart/mixed; boundary="x"\nMIME-Version: 1.0\n\n--x\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho hello\n--x\nContent-Type: text/cloud-config\n\n#cloud-config\nhostname: h\n--x--\n`
      const packed = gzipSync(parts)
      const machine = await installed({ userData: packed.toString('base64') })
      const read = await sources[source](machine)
      expect(Buffer.from(read.userDataRaw, 'base64').equals(packed)).toBe(true)
      expect(read.userData.map(({ type }) => type)).toEqual(['text/x-shellscript', 'text/cloud-config'])
      expect(Buffer.from(read.userData[0]?.content ?? '', 'base64').toString()).toBe('#!/bin/sh\necho hello')
    })

    test('reports and phones home as the vendor-data tells it', async () => {
      const machine = await installed()
      const { phone_home, reporting } = vendorOf(await sources[source](machine))
      const steps = Array.from({ length: 20 }, (_, index) => `modules-config/config-step${index}`)
      const reports = [
        ['start', 'modules-config', 'running modules for config', null],
        ...steps.flatMap(name => [
          ['start', name, `running ${name}`, null],
          ['finish', name, `running ${name}`, 'SUCCESS'],
        ]),
      ]
      await cloudInit('report', JSON.stringify(reporting.muster), JSON.stringify(reports))
      await until(async () => (await reread(partition.core, machine.id)).deployment?.firstBoot?.step === steps.at(-1))
      // Forty-one reports: a handful of changes.
      const before = await eventsOf(machine.id)
      expect(before.reduce((sum, { data }) => sum + data.reports, 0)).toBe(41)
      expect(before.length).toBeLessThan(15)
      expect(await partition.as('alice').machines.explain({ id: machine.id })).toMatchObject({
        state: 'deploying',
        waitingFor: expect.stringContaining('config-step19'),
        lastFault: null,
      })
      await cloudInit('phone-home', JSON.stringify(phone_home), `${machine.id}-${machine.run}`, machine.hostname)
      expect(await reread(partition.core, machine.id)).toMatchObject({
        state: 'deployed',
        fault: null,
        deployment: { deployedAt: expect.any(String) },
      })
    })

    test('finds nothing once the deployment was given up', async () => {
      const machine = await installed({ userData: '#cloud-config\n{}\n' })
      await partition.as('alice').machines.abort({ id: machine.id })
      const { url } = metadataCredentials(partition.core, machine, partition.url)
      const place = source === 'nocloud' ? `${seedOf(machine)}meta-data` : `${url}2012-03-01/meta-data/instance-id`
      const { consumerKey, tokenKey, tokenSecret } = metadataCredentials(partition.core, machine, partition.url)
      const authorization = `OAuth oauth_consumer_key="${consumerKey}", oauth_token="${tokenKey}", oauth_signature_method="PLAINTEXT", oauth_signature="%26${tokenSecret}"`
      expect((await fetch(place, { headers: { authorization } })).status).toBe(401)
    })
  })

  test('mends a wrong clock by the Date of the refusal', async () => {
    const machine = await installed()
    const read = await readMaas(machine, '-86400')
    expect(read.instanceId).toBe(`${machine.id}-${machine.run}`)
    expect(Math.abs(read.skew?.[new URL(partition.url).host] ?? 99)).toBeLessThan(30)
  })

  test('that ends its last stage without phoning home has deployed the machine all the same, and failures are its fault', async () => {
    const machine = await installed()
    const { reporting } = vendorOf(await readNoCloud(machine))
    const say = (...reports: unknown[]) => cloudInit('report', JSON.stringify(reporting.muster), JSON.stringify(reports))
    await say(
      ['start', 'modules-final', 'running modules for final', null],
      ['finish', 'modules-final/config-scripts-user', 'running scripts-user', 'FAIL'],
    )
    const fault = { code: 'cloud-init-failed', message: expect.stringContaining('modules-final/config-scripts-user') }
    expect(await partition.as('alice').machines.explain({ id: machine.id })).toMatchObject({
      state: 'deploying',
      waitingFor: expect.stringContaining('failed so far: modules-final/config-scripts-user'),
      lastFault: fault,
    })
    await say(['finish', 'modules-final', 'running modules for final', 'FAIL'])
    const after = await reread(partition.core, machine.id)
    expect(after).toMatchObject({
      state: 'deployed',
      fault,
      deployment: { firstBoot: { failures: ['modules-final/config-scripts-user'] } },
    })
    // Every later boot sends its reports too.
    await say(['start', 'init-network', '', null], ['finish', 'init-network/config-x', '', 'FAIL'], ['finish', 'modules-final', '', 'FAIL'])
    expect((await reread(partition.core, machine.id)).version).toBe(after.version)
  })

  describe.skipIf(cannotBoot())('booting, all its stages', () => {
    /** Boots this system's own cloud-init, and answers the lines that the boot left. */
    async function boot(configuration: object): Promise<string[]> {
      const place = mkdtempSync(path.join(folder, 'boot-'))
      const child = execFile('/usr/bin/unshare', [...namespaces, fileURLToPath(new URL('first-boot.sh', import.meta.url)), place], {
        timeout: 120_000,
      })
      child.stdin?.end(JSON.stringify(configuration))
      let text = ''
      child.stdout?.on('data', more => {
        text += more
      })
      await once(child, 'close')
      return text.split('\n')
    }
    const configurations = {
      nocloud: (machine: { id: string; run: string }) => ({
        datasource_list: ['NoCloud', 'None'],
        datasource: { NoCloud: { seedfrom: seedOf(machine), fs_label: null } },
      }),
      maas: (machine: { id: string; run: string }) => {
        const { url, consumerKey, tokenKey, tokenSecret } = metadataCredentials(partition.core, machine, partition.url)
        const keys = { metadata_url: url, consumer_key: consumerKey, token_key: tokenKey, token_secret: tokenSecret }
        return { datasource_list: ['MAAS', 'None'], datasource: { MAAS: keys } }
      },
    }

    test.each(['nocloud', 'maas'] as const)('sets the machine up with %s, reports, and phones home', async source => {
      const sshKeys = ['ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJrYgxpLkiMnWmVlpgt7fVOR7WHmpMhXZCCgcZbtHP4X alice@desk']
      const userData = '#cloud-config\nruncmd: [[sh, -c, "echo ran > /root/user.seen"]]\n'
      const machine = await installed({ userData, sshKeys })
      const lines = await boot(configurations[source](machine))
      expect(lines, lines.join('\n')).toEqual(
        expect.arrayContaining([`hostname ${machine.hostname}`, `authorized ${sshKeys[0]}`, 'user.seen ran']),
      )
      const after = await until(async () => {
        const row = await reread(partition.core, machine.id)
        return row.deployment?.firstBoot?.endedAt ? row : undefined
      })
      expect(after).toMatchObject({
        state: 'deployed',
        fault: null,
        deployment: { deployedAt: expect.any(String), firstBoot: { step: 'modules-final', failures: [] } },
      })
      expect(after.deployment?.hostKeys?.some(key => key.startsWith('ssh-ed25519 '))).toBe(true)
      const steps = (await eventsOf(machine.id)).flatMap(({ data }) => data.ended.map(({ name }) => name))
      expect(steps).toEqual(expect.arrayContaining(['modules-config', 'modules-final', 'modules-final/config-phone-home']))
    })

    test('takes its secret once, and a script that fails is the machine’s fault', async () => {
      const take = (times: number) =>
        `for i in ${'x '.repeat(times)}; do curl -fsS -X POST {{ ds.meta_data.secrets_url }}/join >> /root/secret.seen; done`
      const userData = `## template: jinja\n#cloud-config\nruncmd:\n- ['sh', '-ec', '${take(2)}']\n- ['sh', '-c', 'exit 3']\n`
      const machine = await installed({ userData, secrets: { join: 'hush' } })
      const lines = await boot(configurations.nocloud(machine))
      expect(
        lines.filter(line => line.startsWith('secret.seen')),
        lines.join('\n'),
      ).toEqual(['secret.seen hush'])
      const failing = await until(async () => {
        const row = await reread(partition.core, machine.id)
        return row.deployment?.firstBoot?.endedAt ? row : undefined
      })
      expect(failing).toMatchObject({
        state: 'deployed',
        fault: { code: 'cloud-init-failed', message: expect.stringContaining('modules-final/config-scripts-user') },
      })
    })
  })
})

const namespaces = ['--mount', '--uts', '--ipc', '--pid', '--fork', '--kill-child']

/** Booting needs root, namespaces and an overlay, which a container may not be given: then only that part is left out, and said. */
function cannotBoot(): boolean {
  const place = mkdtempSync(path.join(tmpdir(), 'muster-overlay-'))
  try {
    const probe = 'mount -t tmpfs t . && mkdir a b c && mount -t overlay o -o lowerdir=/,upperdir=a,workdir=b c'
    execFileSync('/usr/bin/unshare', [...namespaces, 'sh', '-c', probe], { cwd: place, stdio: 'ignore' })
    return false
  } catch {
    console.warn('SKIPPED: no root, or no namespaces and overlays: whole first boots by cloud-init are NOT TESTED here')
    return true
  } finally {
    rmSync(place, { recursive: true })
  }
}
