// Taking images in: whole and checked, or not at all. Real files, a real HTTP server, a disk that is really full.
import { execFile, execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, onTestFinished, test } from 'vitest'
import { Catalogue } from '../src/domain/catalogue.ts'
import { removeImage, takeImage } from '../src/domain/image-store.ts'
import { listeningLog } from './harness.ts'

const digestOf = (content: Buffer) => createHash('sha256').update(content).digest('hex')

function places() {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-images-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const files = path.join(folder, 'files')
  const place = path.join(files, 'images', 'debian', '12', 'amd64')
  const source = path.join(folder, 'source')
  const put = (content: Buffer) => {
    writeFileSync(source, content)
    return { files, os: 'debian/12', arch: 'amd64', title: 'Debian', source, sha256: digestOf(content) }
  }
  const catalogue = () => new Catalogue({ partition: 'lon1', folder: files, log: listeningLog().log }).images
  return { folder, files, place, source, put, catalogue }
}

test('an image is there with its digest; again changes nothing; a newer one keeps the one before for who has begun', async () => {
  const { place, put, catalogue } = places()
  const contents = [randomBytes(100_000), randomBytes(90_000), randomBytes(80_000)] as const
  expect(await takeImage(put(contents[0]))).toBe('taken')
  expect(await takeImage(put(contents[0]))).toBe('known')
  expect(catalogue()).toMatchObject([
    { os: 'debian/12', arch: 'amd64', sha256: digestOf(contents[0]), sizeBytes: 100_000, dataSource: 'nocloud' },
  ])
  for (const content of contents.slice(1)) {
    const before = catalogue()[0]?.path as string
    expect(await takeImage({ ...put(content), dataSource: 'maas' })).toBe('taken')
    expect(catalogue()).toMatchObject([{ sha256: digestOf(content), dataSource: 'maas' }])
    expect(readdirSync(place)).toHaveLength(3)
    expect(readdirSync(place)).toContain(path.basename(before))
  }
})

test('a new title keeps the image before it, and a description that is broken is no hindrance to taking the image in or away', async () => {
  const { place, put, catalogue, files } = places()
  for (const content of [randomBytes(9_000), randomBytes(8_000)]) await takeImage(put(content))
  const content = randomBytes(7_000)
  await takeImage(put(content))
  const before = readdirSync(place)
  expect(await takeImage({ ...put(content), title: 'Debian 12' })).toBe('taken')
  expect([readdirSync(place), catalogue()[0]?.title]).toEqual([before, 'Debian 12'])
  for (const broken of ['', '{"file": ', 'null', '[]']) {
    writeFileSync(path.join(place, 'image.json'), broken)
    expect(catalogue()).toEqual([])
    expect(await takeImage(put(content))).toBe('taken')
    expect(catalogue()).toHaveLength(1)
  }
  writeFileSync(path.join(place, 'image.json'), '')
  expect(await removeImage(files, 'debian/12', 'amd64')).toBe('removed')
  expect(existsSync(place)).toBe(false)
})

test('a wrong digest, a source that is not there, and a broken connection leave everything as it was', async () => {
  const { folder, place, put, catalogue } = places()
  const content = randomBytes(50_000)
  await takeImage(put(content))
  const before = [readdirSync(place), catalogue()]
  const wrong = { ...put(randomBytes(1_000)), sha256: 'f'.repeat(64) }
  await expect(takeImage(wrong)).rejects.toThrow(`(1000 bytes), not ${'f'.repeat(64)}`)
  await expect(takeImage({ ...wrong, source: path.join(folder, 'absent') })).rejects.toThrow('ENOENT')
  const server = createServer((request, response) => {
    if (request.url === '/absent') return void response.writeHead(404).end()
    response.writeHead(200, { 'content-length': 1_000 })
    if (request.url === '/whole') return void response.end(Buffer.alloc(1_000, 7))
    response.write(Buffer.alloc(500))
    setTimeout(() => response.destroy(), 50)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void server.close())
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  await expect(takeImage({ ...wrong, source: `${url}/absent` })).rejects.toThrow('answers 404')
  await expect(takeImage({ ...wrong, source: `${url}/broken` })).rejects.toThrow()
  expect([readdirSync(place), catalogue()]).toEqual(before)
  const whole = Buffer.alloc(1_000, 7)
  expect(await takeImage({ ...wrong, source: `${url}/whole`, sha256: digestOf(whole) })).toBe('taken')
})

test('two that take it in at once leave one whole image', async () => {
  const { place, put, catalogue } = places()
  const image = put(randomBytes(2_000_000))
  await Promise.all(Array.from({ length: 4 }, () => takeImage(image)))
  expect(catalogue()).toMatchObject([{ sha256: image.sha256, sizeBytes: 2_000_000 }])
  expect(readdirSync(place)).toHaveLength(2)
})

const isRoot = process.getuid?.() === 0 && existsSync('/usr/bin/unshare')
test.skipIf(!isRoot)('a full disk is told as one, and leaves nothing behind', async () => {
  const { folder, put } = places()
  const small = path.join(folder, 'small')
  mkdirSync(small)
  const image = put(randomBytes(3 * 2 ** 20))
  // A file system of a MiB, in a name space of its own.
  const script = `mount -t tmpfs -o size=1M none ${small} && exec ${process.execPath} ${fileURLToPath(new URL('../src/images.ts', import.meta.url))} add debian/12 ${image.source} --sha256 ${image.sha256} --files ${small}; find ${small}`
  const failure = await promisify(execFile)('unshare', ['--mount', 'sh', '-c', `${script.replace('exec ', '')}`]).catch(error => error)
  expect(failure.stderr).toMatch(/was full after \d+ bytes/)
  expect(failure.stdout).not.toContain('.incoming')
})

test('the command takes in, lists, removes, and refuses what it does not understand', () => {
  const { files, put, catalogue } = places()
  const image = put(randomBytes(5_000))
  const program = fileURLToPath(new URL('../src/images.ts', import.meta.url))
  const images = (...words: string[]) => execFileSync(process.execPath, [program, ...words, '--files', files], { stdio: 'pipe' }).toString()
  images('add', 'debian/12', image.source, '--sha256', image.sha256, '--title', 'Debian, tried')
  expect(images('list')).toBe(`debian/12\tamd64\t0.0 MiB\t${image.sha256.slice(0, 16)}\tDebian, tried\n`)
  expect(readFileSync(path.join(files, catalogue()[0]?.path as string)).length).toBe(5_000)
  images('remove', 'debian/12')
  expect(images('list')).toBe('')
  expect(() => images('remove', 'debian/12')).toThrow('there is no image debian/12')
  expect(() => images('add', 'debian', image.source, '--sha256', image.sha256)).toThrow('<family>/<release>')
  expect(() => images('add', 'debian/12', image.source, '--sha256', 'abc')).toThrow('64 hexadecimal digits')
})

test('removing what is not there says so', async () => {
  expect(await removeImage(places().files, 'debian/12', 'amd64')).toBe('absent')
})
