// The agent's fetching of images by itself: its shell, run by busybox on this computer, against a server that breaks off in the middle.
import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const missing = missingPrograms(['busybox', 'curl'], 'busybox-static curl')
const script = fileURLToPath(new URL('../root/muster/fetch.sh', import.meta.url))
const pieceBytes = 64 * 1024
const image = randomBytes(10 * pieceBytes + 123)
const sha256 = (content: Buffer) => createHash('sha256').update(content).digest('hex')

let folder: string
let server: Server
let url: string
let asked: (string | undefined)[]
let answer: (request: IncomingMessage, response: ServerResponse) => void

beforeEach(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'muster-fetch-'))
  asked = []
  server = createServer((request, response) => {
    asked.push(request.headers.range)
    answer(request, response)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/image`
})
afterEach(async () => {
  server.closeAllConnections()
  await new Promise(resolve => server.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

/** What `fetch_image` gave, how it ended, and the percents it told. */
async function fetchImage(retries = 20): Promise<{ content: Buffer; status: number | null; percents: number[] }> {
  const told = path.join(folder, 'percents')
  const text = `. "$1"; stand() { echo "$3" >>"${told}"; }; : >"${told}"; fetch_image "$2" 60`
  const child = spawn('busybox', ['sh', '-c', text, 'sh', script, url], {
    env: { PATH: process.env.PATH, RUN: folder, PIECE: String(pieceBytes), RETRIES: String(retries) },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const chunks: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
  const status = await new Promise<number | null>(resolve => child.on('close', resolve))
  const percents = readFileSync(told, 'utf8').split('\n').filter(Boolean).map(Number)
  return { content: Buffer.concat(chunks), status, percents }
}

function part(request: IncomingMessage): { start: number; end: number } {
  const [, start, end] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') as RegExpExecArray
  return { start: Number(start), end: Number(end) }
}

function serve(response: ServerResponse, { start, end }: { start: number; end: number }): ServerResponse {
  response.writeHead(206, { 'content-length': end - start + 1, 'content-range': `bytes ${start}-${end}/${image.length}` })
  return response
}

test.skipIf(missing !== undefined)(
  'connections that break and a server that is busy cost time, not bytes',
  async () => {
    let count = 0
    answer = (request, response) => {
      const { start, end } = part(request)
      count++
      if (count % 5 === 0) return void response.writeHead(503, { 'retry-after': '1' }).end()
      if (count % 4 === 0) {
        const half = start + Math.floor((end - start) / 2)
        return void serve(response, { start, end }).write(image.subarray(start, half), () => response.destroy())
      }
      serve(response, { start, end }).end(image.subarray(start, end + 1))
    }
    const { content, status, percents } = await fetchImage()
    expect(status).toBe(0)
    expect(sha256(content)).toBe(sha256(image))
    expect(asked.length).toBeGreaterThan(12)
    expect(percents).toEqual(percents.toSorted((a, b) => a - b))
    expect(percents.at(-1)).toBe(60)
  },
  60_000,
)

test.skipIf(missing !== undefined)(
  'a server that knows no ranges gives the whole at once',
  async () => {
    answer = (_request, response) => void response.writeHead(200, { 'content-length': image.length }).end(image)
    const { content, status } = await fetchImage()
    expect(status).toBe(0)
    expect(sha256(content)).toBe(sha256(image))
  },
  60_000,
)

test.skipIf(missing !== undefined)(
  'an image that goes away in between ends the fetch with the reason, and nothing that is not the image is passed on',
  async () => {
    answer = (request, response) => {
      const { start, end } = part(request)
      // As a file that was replaced by another that is larger than what was asked for.
      if (start >= pieceBytes * 2) return void response.writeHead(200, { 'content-length': image.length }).end(image)
      serve(response, { start, end }).end(image.subarray(start, end + 1))
    }
    const { content, status } = await fetchImage(1)
    expect(status).not.toBe(0)
    expect(content.equals(image.subarray(0, pieceBytes * 2))).toBe(true)
    expect(readFileSync(path.join(folder, 'trouble'), 'utf8')).toContain('Maximum file size exceeded')
  },
  60_000,
)

test.skipIf(missing !== undefined)('a server that says no is believed at once', async () => {
  answer = (_request, response) => void response.writeHead(404).end()
  const { content, status } = await fetchImage()
  expect([status, content.length]).toEqual([22, 0])
  // Once for its size, and once for all of it.
  expect(asked).toHaveLength(2)
  expect(readFileSync(path.join(folder, 'trouble'), 'utf8')).toContain('404')
})

interface Put {
  readonly how: 'write_while_fetching' | 'fetch_then_write'
  readonly digest?: string
  /** What the disk says that it has. */
  readonly diskBytes?: number
  /** What it takes, in KiB, before it says that it is full; all where left out. */
  readonly takesKib?: number
  /** What the server gives. */
  readonly given?: Buffer
}

/** The two ways of install.sh, with memory of its own below /run, where the disk is a file that says "precious". Answers what it said, and the digest of the disk then. */
async function put({
  how,
  given = image,
  digest = sha256(given),
  diskBytes = 2 ** 20,
  takesKib = 0,
}: Put): Promise<{ said: string; disk: string }> {
  const text = `for each in /run /dev/shm /sys/block; do mount -t tmpfs tmpfs $each; done
    mount -o remount,size=${takesKib}k /dev/shm
    cd "$1" && . ./http.sh && . ./fetch.sh && . ./install.sh
    stand() { :; }; say() { :; }; fail() { echo "failed in $*"; cp /dev/shm/disk "$COPY"; exit 1; }
    mkdir -p /sys/block/shm/disk; echo ${diskBytes / 512} >/sys/block/shm/disk/size
    form=disk image=$2 wanted=$3 size=$4 disk=shm/disk; printf precious >/dev/shm/disk; ${how}; cp /dev/shm/disk "$COPY"`
  const copy = path.join(folder, 'disk')
  const words = [text, 'sh', path.dirname(script), url, digest, String(given.length)]
  const child = spawn('unshare', ['--mount', 'busybox', 'sh', '-c', ...words], {
    env: { PATH: process.env.PATH, PIECE: String(pieceBytes), COPY: copy },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => (said += chunk))
  await new Promise(resolve => child.on('close', resolve))
  return { said, disk: sha256(readFileSync(copy)) }
}

const mayMount = missing === undefined && process.getuid?.() === 0
const wrong = 'f'.repeat(64)
const isWrong = () => `failed in download image ${url} has SHA-256 ${sha256(image)}, not ${wrong}\n`

test.skipIf(!mayMount)(
  'an image that is written while it comes survives a broken connection; of a wrong digest both are told, and the disk boots nothing',
  async () => {
    let count = 0
    answer = (request, response) => {
      const { start, end } = part(request)
      if (++count === 4) return void serve(response, { start, end }).write(image.subarray(start, start + 100), () => response.destroy())
      serve(response, { start, end: Math.min(end, image.length - 1) }).end(image.subarray(start, end + 1))
    }
    expect(await put({ how: 'write_while_fetching' })).toEqual({ said: '', disk: sha256(image) })
    expect(await put({ how: 'write_while_fetching', digest: wrong })).toEqual({ said: isWrong(), disk: sha256(Buffer.alloc(2 ** 20)) })
  },
  60_000,
)

test.skipIf(!mayMount)(
  'an image that fits into memory is looked at first: a wrong digest and a disk that is too small leave the disk as it was',
  async () => {
    answer = (request, response) => {
      const { start, end } = part(request)
      serve(response, { start, end: Math.min(end, image.length - 1) }).end(image.subarray(start, end + 1))
    }
    const precious = sha256(Buffer.from('precious'))
    expect(await put({ how: 'fetch_then_write' })).toEqual({ said: '', disk: sha256(image) })
    expect(await put({ how: 'fetch_then_write', digest: wrong })).toEqual({ said: isWrong(), disk: precious })
    expect(await put({ how: 'fetch_then_write', diskBytes: 4096 })).toEqual({
      said: `failed in write the image has ${image.length} bytes, /dev/shm/disk only 4096\n`,
      disk: precious,
    })
  },
  60_000,
)

/** A server that gives this, whole or in ranges. */
const inParts = (given: Buffer) => (request: IncomingMessage, response: ServerResponse) => {
  const { start, end } = part(request)
  const last = Math.min(end, given.length - 1)
  response.writeHead(206, { 'content-length': last - start + 1, 'content-range': `bytes ${start}-${last}/${given.length}` })
  response.end(given.subarray(start, last + 1))
}
const small = image.subarray(0, pieceBytes + 123)
/** How people pack images; all but gzip say in them how large they are unpacked. */
const packings = ['raw', 'gzip', 'xz', 'zstd'] as const
function pack(packing: (typeof packings)[number], content: Buffer): Buffer {
  if (packing === 'raw') return content
  const words = packing === 'zstd' ? ['-qc', `--stream-size=${content.length}`] : ['-c']
  const { stdout } = spawnSync(packing, words, { input: content })
  expect(stdout.length).toBeGreaterThan(content.length / 2)
  return stdout
}
const missingPackers = missingPrograms(['gzip', 'xz', 'zstd'], 'gzip xz-utils zstd')
test.skipIf(!mayMount || missingPackers !== undefined).for(packings)(
  'an image is written as it was before it was packed, whichever way it goes: %s',
  { timeout: 60_000 },
  async packing => {
    const given = pack(packing, small)
    if (packing !== 'raw') expect(sha256(given)).not.toBe(sha256(small))
    answer = inParts(given)
    for (const how of ['write_while_fetching', 'fetch_then_write'] as const)
      expect(await put({ how, given }), how).toEqual({ said: '', disk: sha256(small) })
    if (packing !== 'gzip')
      expect(await put({ how: 'fetch_then_write', given, diskBytes: 4096 })).toEqual({
        said: `failed in write the image has ${small.length} bytes, /dev/shm/disk only 4096\n`,
        disk: sha256(Buffer.from('precious')),
      })
  },
)

test.skipIf(!mayMount || missingPackers !== undefined).for(['raw', 'gzip', 'zstd'] as const)(
  'a disk that takes no more while the image comes is told in its own words, and no fetch that broke: %s',
  { timeout: 60_000 },
  async packing => {
    const given = pack(packing, image)
    answer = inParts(given)
    const { said } = await put({ how: 'write_while_fetching', given, takesKib: 128 })
    expect(said).toMatch(/^failed in write write to shm\/disk: .*No space left on device/)
  },
)

test.skipIf(!mayMount || missingPackers !== undefined)(
  'an image that comes raw and is too large for its disk leaves the disk as it was; one that does not unpack is told as that',
  async () => {
    answer = inParts(image)
    expect(await put({ how: 'write_while_fetching', diskBytes: 4096 })).toEqual({
      said: `failed in write the image has ${image.length} bytes, /dev/shm/disk only 4096\n`,
      disk: sha256(Buffer.from('precious')),
    })
    const spoilt = Buffer.concat([pack('zstd', image).subarray(0, 1000), image])
    answer = inParts(spoilt)
    const { said } = await put({ how: 'write_while_fetching', given: spoilt })
    expect(said).toMatch(/^failed in write write to shm\/disk: .*(orrupt|rror)/)
  },
  60_000,
)
