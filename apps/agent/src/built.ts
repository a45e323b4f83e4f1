// An image that was built is kept until what it is made of changes: tests and the lab want the same one, at the same moment.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, rename, rm, stat, utimes } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { type BuildOptions, buildAgent, packagesOf } from './build.ts'

const run = promisify(execFile)

/** Where built images stay: in the checkout. */
export const imageCache = fileURLToPath(new URL('../../../.muster/cache/agent', import.meta.url))
/** Two builds on a computer that does much else: each took three minutes there. */
const waitMs = 900_000
const lookMs = 500
/** Who holds the lock touches it as often as others look. Without that for so long it is taken for dead. */
const deadMs = 30_000
/** Images that nobody asked for in so long a time go. */
const keptMs = 7 * 24 * 3_600_000

export interface KeptOptions extends Omit<BuildOptions, 'out'> {
  /** Images stay there, in folders named by what they are made of. */
  readonly images: string
}

/**
 * The folder of an image, built unless it is there. Whoever asks meanwhile waits: one fetches and builds at a time. Throws
 * as a build does, and where it is not one's turn within 15 minutes.
 */
export async function keptAgent({ images, ...options }: KeptOptions): Promise<string> {
  await mkdir(images, { recursive: true })
  return await alone(path.join(images, 'lock'), async () => {
    const folder = path.join(images, `${options.arch}-${options.kernel}-${await digestOfInputs(options)}`)
    if (!existsSync(folder)) {
      await removeOld(images)
      const fresh = `${folder}.${process.pid}`
      await buildAgent({ ...options, out: fresh })
      await rename(fresh, folder)
    }
    await utimes(folder, new Date(), new Date())
    return folder
  })
}

/** Acts while nobody else does under the same lock, a folder: only one process can make it. Throws where it is not one's turn within 15 minutes. */
export async function alone<T>(lock: string, act: () => Promise<T>): Promise<T> {
  for (const end = Date.now() + waitMs; !(await take(lock)); await sleep(lookMs))
    if (Date.now() > end) throw new Error(`others build agents for ${waitMs / 60_000} minutes; if nobody does, remove ${lock}`)
  // A lock that is gone was taken for dead: at worst the same image is built twice.
  const alive = setInterval(() => void utimes(lock, new Date(), new Date()).catch(() => undefined), lookMs)
  try {
    return await act()
  } finally {
    clearInterval(alive)
    await rm(lock, { recursive: true, force: true })
  }
}

async function take(lock: string): Promise<boolean> {
  try {
    await mkdir(lock)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    const found = await stat(lock).catch(() => undefined)
    if (found && Date.now() - found.mtimeMs > deadMs) await rm(lock, { recursive: true, force: true })
    return false
  }
}

async function removeOld(images: string): Promise<void> {
  for (const name of await readdir(images)) {
    const { mtimeMs } = await stat(path.join(images, name))
    if (Date.now() - mtimeMs > keptMs) await rm(path.join(images, name), { recursive: true, force: true })
  }
}

/** Packages by name and version, every file that goes in or says how, and the programs of this computer that put them together. */
async function digestOfInputs(options: Omit<BuildOptions, 'out'>): Promise<string> {
  const hash = createHash('sha256')
  for (const file of await packagesOf(options)) hash.update(`${path.basename(file)}\n`)
  const here = fileURLToPath(new URL('..', import.meta.url))
  for (const folder of ['src', 'root', 'disk-loader']) {
    const names = await readdir(path.join(here, folder), { recursive: true, withFileTypes: true })
    const files = names.filter(entry => entry.isFile()).map(entry => path.relative(here, path.join(entry.parentPath, entry.name)))
    for (const file of files.sort()) hash.update(`${file}\n`).update(await readFile(path.join(here, file)))
  }
  const { stdout } = await run('dpkg-query', ['--show', 'cpio', 'zstd', 'kmod', 'grub-common'])
  return hash.update(stdout).digest('hex').slice(0, 24)
}
