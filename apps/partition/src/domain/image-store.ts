// Taking images in, whole and checked or not at all: the files lie as catalogue.ts reads them. Replicas that share the folder may do this at once.
import { createHash, randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import type { DataSource } from '@muster/shared/cloud-init'
import type { ImageForm } from '@muster/shared/machine'

export interface NewImage {
  /** A partition's MUSTER_FILES. */
  readonly files: string
  /** `debian/12`. */
  readonly os: string
  readonly arch: string
  readonly title: string
  /** A file, or an http or https URL. */
  readonly source: string
  /** What it must have: 64 digits, hex. */
  readonly sha256: string
  readonly dataSource?: DataSource
  /** A whole disk where left out. */
  readonly form?: ImageForm
  /** Called as bytes come, with how many there are. */
  readonly progress?: (bytes: number) => void
  readonly signal?: AbortSignal
}

/** A source that sends nothing for so long is given up. */
const silenceMs = 60_000
/** What a process that died left behind. */
const staleMs = 24 * 3_600_000

/**
 * Takes an image in under its name; the one before stays readable for deployments that have begun. Again with the same digest changes nothing but what is
 * said of it. Throws where the source cannot be read, its digest is another, or the disk is full; then everything is as it was.
 */
export async function takeImage(image: NewImage): Promise<'taken' | 'known'> {
  const { files, os, arch, title, dataSource, form } = image
  const sha256 = image.sha256.toLowerCase()
  const place = path.join(files, 'images', os, arch)
  await mkdir(place, { recursive: true })
  await removeStale(place)
  const file = `${sha256.slice(0, 16)}.img`
  const before = await descriptionIn(place)
  const isThere = before?.sha256 === sha256 && (await sizeOf(path.join(place, before.file))) === before.sizeBytes
  const sizeBytes = isThere ? before.sizeBytes : await bringIn(image, place, file, sha256)
  const description = {
    title,
    file: isThere ? before.file : file,
    sha256,
    sizeBytes,
    ...(dataSource && { dataSource }),
    ...(form && { form }),
  }
  if (isThere && JSON.stringify(before) === JSON.stringify(description)) return 'known'
  await writeWhole(path.join(place, 'image.json'), `${JSON.stringify(description, null, 2)}\n`)
  if (isThere) return 'taken'
  // The new one, and the one before it.
  const kept = new Set([description.file, before?.file])
  const others = (await readdir(place)).filter(name => name.endsWith('.img') && !kept.has(name))
  for (const name of others) await rm(path.join(place, name), { force: true })
  return 'taken'
}

/** Removes an image. Deployments that have not fetched it yet fail, and say so. */
export async function removeImage(files: string, os: string, arch: string): Promise<'removed' | 'absent'> {
  const place = path.join(files, 'images', os, arch)
  if ((await sizeOf(path.join(place, 'image.json'))) === undefined) return 'absent'
  // First what names it.
  await rm(path.join(place, 'image.json'))
  await rm(place, { recursive: true, force: true })
  return 'removed'
}

async function bringIn({ source, progress, signal }: NewImage, place: string, file: string, sha256: string): Promise<number> {
  const temporary = path.join(place, `.incoming-${randomUUID()}`)
  const hash = createHash('sha256')
  let bytes = 0
  try {
    const target = await open(temporary, 'wx')
    try {
      for await (const chunk of readSource(source, signal)) {
        hash.update(chunk)
        await target.writeFile(chunk)
        bytes += chunk.length
        progress?.(bytes)
      }
      await target.sync()
    } finally {
      await target.close()
    }
    const digest = hash.digest('hex')
    if (digest !== sha256) throw new Error(`${source} has SHA-256 ${digest} (${bytes} bytes), not ${sha256}`)
    await rename(temporary, path.join(place, file))
    return bytes
  } catch (error) {
    await rm(temporary, { force: true })
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC')
      throw new Error(`the disk of ${place} was full after ${bytes} bytes of ${source}`, { cause: error })
    throw error
  }
}

async function* readSource(source: string, stop: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  if (!/^https?:/.test(source)) {
    yield* createReadStream(source, { highWaterMark: 2 ** 20, ...(stop && { signal: stop }) })
    return
  }
  const silence = new AbortController()
  const timer = setTimeout(() => silence.abort(new Error(`${source} sent nothing for ${silenceMs / 1000} s`)), silenceMs)
  try {
    const response = await fetch(source, { signal: stop ? AbortSignal.any([stop, silence.signal]) : silence.signal })
    if (!response.ok || !response.body) throw new Error(`${source} answers ${response.status} ${response.statusText}`)
    for await (const chunk of response.body) {
      timer.refresh()
      yield chunk
    }
  } finally {
    clearTimeout(timer)
  }
}

interface Described {
  file: string
  sha256: string
  sizeBytes: number
}

/** Undefined where there is none, or one that cannot be read as such: taking the image in anew is the way out. */
async function descriptionIn(place: string): Promise<Described | undefined> {
  try {
    const found = JSON.parse(await readFile(path.join(place, 'image.json'), 'utf8')) as Partial<Described> | null
    return typeof found?.file === 'string' ? (found as Described) : undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' || error instanceof SyntaxError) return undefined
    throw error
  }
}

const sizeOf = (file: string) =>
  stat(file).then(
    ({ size }) => size,
    () => undefined,
  )

/** Whoever reads sees the old text or the new one. */
async function writeWhole(file: string, text: string): Promise<void> {
  const temporary = path.join(path.dirname(file), `.incoming-${randomUUID()}`)
  const target = await open(temporary, 'wx')
  try {
    await target.writeFile(text)
    await target.sync()
  } finally {
    await target.close()
  }
  await rename(temporary, file)
}

async function removeStale(place: string): Promise<void> {
  for (const name of (await readdir(place)).filter(each => each.startsWith('.incoming-'))) {
    const file = path.join(place, name)
    const found = await stat(file).catch(() => undefined)
    if (found && Date.now() - found.mtimeMs > staleMs) await rm(file, { force: true })
  }
}
