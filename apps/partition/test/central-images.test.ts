// Images that the global configuration describes, fetched by a partition from a real HTTP server: whole and right, or not at all and said why.
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { Refusal } from '@muster/shared/errors'
import { payloadOf } from '@muster/shared/global/copy'
import { type Change, changed, noDocuments } from '@muster/shared/global/documents'
import { expect, onTestFinished, test } from 'vitest'
import { keepGlobal } from '../src/db/global.ts'
import { CentralImages, imagesFor } from '../src/domain/central-images.ts'
import type { Core } from '../src/domain/core.ts'
import { deploy } from '../src/domain/machines.ts'
import { addMachine, operator, startCore, until } from './harness.ts'

const content = Buffer.alloc(300_000, 'a disk ')
const sha256 = createHash('sha256').update(content).digest('hex')
const never = new AbortController().signal
const noPauses = { firstMs: 1, mostMs: 1 }

/** One whose folder of files is its own, and empty. */
function startEmpty() {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-central-images-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return startCore({ folder })
}

async function serve(listener: RequestListener): Promise<string> {
  const server = createServer(listener)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/debian.img`
}

/** Puts these into force, as if a front had given them. */
async function describe(core: Core, put: Change['put']) {
  const outcome = changed(noDocuments, { put, delete: [] })
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  const generation = core.configuration.generation + 1
  const payload = payloadOf({ generation, changedAt: new Date().toISOString(), changedBy: 'test', note: '', documents: outcome.documents })
  await keepGlobal(core.sql, { generation, payload, signature: '', signed_by: '' }, core.configuration.generation)
  await core.configuration.reload()
}

const image = (url: string, more: object = {}) => ({
  kind: 'image' as const,
  name: 'bookworm',
  document: { os: 'debian/12', title: 'Debian 12', url, sha256, ...more },
})
const partition = (operatingSystems: string[]) => ({
  kind: 'partition' as const,
  name: 'lon1',
  document: { natsKey: `U${'A'.repeat(55)}`, operatingSystems, acceptedAt: '2026-11-01T00:00:00.000Z' },
})

const fetchAll = async (images: CentralImages) => {
  while ((await images.look(never)) === 'more');
}

test('an image that is described is fetched once, can be deployed, and another digest brings another', async () => {
  const core = await startEmpty()
  let requests = 0
  const url = await serve((_, answer) => {
    requests++
    answer.end(content)
  })
  const images = new CentralImages(core)
  await describe(core, [image(url)])
  await fetchAll(images)
  await fetchAll(images)
  expect([requests, images.problems, images.fetching]).toEqual([1, [], []])
  expect(core.catalogue.imageFor('debian/12', 'amd64')).toMatchObject({
    sha256,
    title: 'Debian 12',
    form: 'disk',
    sizeBytes: content.length,
  })

  // Another title costs no second transfer of the bytes.
  await describe(core, [image(url, { title: 'Bookworm' })])
  await fetchAll(images)
  expect([requests, core.catalogue.imageFor('debian/12', 'amd64')?.title]).toEqual([1, 'Bookworm'])
  // Bytes that were lost come again.
  const file = path.join(core.catalogue.folder, core.catalogue.imageFor('debian/12', 'amd64')?.path ?? '')
  writeFileSync(file, 'short')
  core.catalogue.refresh()
  await fetchAll(images)
  expect([requests, core.catalogue.imageFor('debian/12', 'amd64')?.sizeBytes]).toEqual([2, content.length])
  // What nobody describes any more stays.
  await describe(core, [])
  await fetchAll(images)
  expect(core.catalogue.imageFor('debian/12', 'amd64')).toBeDefined()
})

test('one that is another than was said, or cannot be had, is told of and tried again, later each time; the rest is fetched meanwhile', async () => {
  const core = await startEmpty()
  let isRight = false
  const url = await serve((request, answer) => {
    if (request.url?.startsWith('/absent')) return void answer.writeHead(404).end()
    answer.end(isRight || request.url?.startsWith('/other') ? content : Buffer.from('something else'))
  })
  const images = new CentralImages(core, { firstMs: 120_000, mostMs: 3_600_000 })
  const other = { kind: 'image' as const, name: 'trixie', document: { ...image(new URL('/other', url).href).document, os: 'debian/13' } }
  const absent = {
    kind: 'image' as const,
    name: 'absent',
    document: { ...image(new URL('/absent', url).href).document, os: 'ubuntu/24.04' },
  }
  await describe(core, [image(url), other, absent])
  await fetchAll(images)
  expect(images.problems).toEqual([
    expect.stringMatching(/^the image bookworm \(debian\/12, amd64\) .* has SHA-256 .* \(14 bytes\), not .*; tried again in [23] min$/),
    expect.stringMatching(/^the image absent \(ubuntu\/24\.04, amd64\) .* answers 404 /),
  ])
  expect(core.catalogue.images.map(({ os }) => os)).toEqual(['debian/13'])

  isRight = true
  await fetchAll(images)
  expect(core.catalogue.imageFor('debian/12', 'amd64')).toBeUndefined()
  const impatient = new CentralImages(core, noPauses)
  await describe(core, [image(url), other])
  await fetchAll(impatient)
  expect([impatient.problems, core.catalogue.images.map(({ os }) => os)]).toEqual([[], ['debian/12', 'debian/13']])
})

test('what is on its way is shown with its bytes; a partition that stops lets go of it', async () => {
  const core = await startEmpty()
  const url = await serve((_, answer) => void answer.write(content.subarray(0, 100_000)))
  const images = new CentralImages(core)
  await describe(core, [image(url)])
  const stopping = new AbortController()
  const look = images.look(stopping.signal)
  await until(async () => images.fetching[0]?.bytes === 100_000)
  expect(images.fetching).toEqual([{ name: 'bookworm', os: 'debian/12', arch: 'amd64', bytes: 100_000 }])
  stopping.abort()
  expect(await look).toBe('idle')
  expect([images.fetching, images.problems]).toEqual([[], []])
})

test('a partition has the images of what it may install; two of one name are refused where they are written', () => {
  const outcome = changed(noDocuments, { put: [image('https://images.example/12'), partition(['debian/13'])], delete: [] })
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  expect(imagesFor(outcome.documents, 'lon1')).toEqual([])
  expect(imagesFor(outcome.documents, 'par3').map(([name]) => name)).toEqual(['bookworm'])
  const twice = { ...image('https://images.example/12.1'), name: 'twelve' }
  expect(changed(noDocuments, { put: [image('https://images.example/12'), twice], delete: [] })).toEqual({
    problems: [{ field: 'image twelve', message: 'bookworm is an image of debian/12 for amd64 too' }],
  })
  expect(changed(noDocuments, { put: [image('ftp://images.example/12')], delete: [] })).toMatchObject({
    problems: [{ field: 'put.0.document.url' }],
  })
})

test('a deployment of what is not here says what it waits for, and whether asking again may help', async () => {
  const core = await startEmpty()
  const part = 2 ** 20 + 1
  const url = await serve((request, answer) => {
    if (request.url?.startsWith('/absent')) return void answer.writeHead(404).end()
    answer.write(Buffer.alloc(part))
  })
  const images = new CentralImages(core)
  const { id } = await addMachine(core, { state: 'allocated', owner: 'olga', allocation_id: 'a-000000000009' }, { powerDriver: 'manual' })
  const refused = async (os: string) => {
    const asked = deploy(core, operator, { id, os, sshKeys: [] }, (name, arch) => images.whyAway(name, arch))
    const { code, message } = await asked.then(
      () => expect.unreachable(),
      error => error as Refusal,
    )
    return [code, message.replace('partition lon1 cannot install ', '')]
  }
  expect(await refused('debian/12')).toEqual([
    'not-installable',
    'debian/12 on amd64: its image is not here, and no document describes one',
  ])

  const absent = {
    kind: 'image' as const,
    name: 'noble',
    document: { ...image(new URL('/absent', url).href).document, os: 'ubuntu/24.04' },
  }
  await describe(core, [image(url), absent, partition(['debian/12', 'ubuntu/24.04'])])
  core.catalogue.select(['debian/12', 'ubuntu/24.04'])
  expect(await refused('debian/12')).toEqual([
    'not-yet-installable',
    'debian/12 on amd64 yet: its image bookworm is to be fetched, and it is not its turn yet',
  ])
  const stopping = new AbortController()
  const look = images.look(stopping.signal)
  await until(async () => images.fetching[0]?.bytes === part)
  expect(await refused('debian/12')).toEqual([
    'not-yet-installable',
    'debian/12 on amd64 yet: its image bookworm is being fetched, 1 MiB so far',
  ])
  stopping.abort()
  await look
  await describe(core, [absent])
  await fetchAll(images)
  expect(await refused('ubuntu/24.04')).toEqual([
    'not-yet-installable',
    expect.stringMatching(/^ubuntu\/24\.04 on amd64 yet: its image noble could not be had: .* answers 404.*; tried again in [12] min$/),
  ])
  core.catalogue.select(['debian/12'])
  expect(await refused('ubuntu/24.04')).toEqual(['not-installable', 'ubuntu/24.04 on amd64: it was not selected for this partition'])
})
