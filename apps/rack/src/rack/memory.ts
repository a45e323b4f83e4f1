// What a rack remembers over a restart: one JSON file, replaced whole and never half, written a moment after the last change so that a
// thousand machines changing at once cost a few writes.
import { mkdir, open, readFile, rename } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { metadataCredentials } from '@muster/shared/cloud-init'
import { z } from 'zod'

const power = z.enum(['on', 'off'])
const disk = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('empty') }),
  z.strictObject({ kind: z.literal('partial'), os: z.string() }),
  z.strictObject({
    kind: z.literal('installed'),
    os: z.string(),
    hostname: z.string(),
    sha256: z.string(),
    seedUrl: z.string(),
    metadata: metadataCredentials.exactOptional(),
    instanceId: z.string().exactOptional(),
  }),
])
const bootOptions = z.strictObject({
  flags: z.string().regex(/^[0-9a-f]{10}$/),
  keepValid: z.number().int(),
  lapsesAt: z.number().nullable(),
})
const savedMachine = z.strictObject({
  power,
  disk,
  isEnlisted: z.enum(['yes', 'no']),
  bootOptions,
  /** Of the first account, where somebody changed it; else it follows from the seed. */
  bmcPassword: z.string().exactOptional(),
})

/** Machines by boot MAC, which names them whatever they are called. */
const savedRack = z.strictObject({
  version: z.literal(1),
  seed: z.number().int(),
  bmc: z.strictObject({ layout: z.enum(['address each', 'port each']), network: z.number().int(), port: z.number().int() }),
  /** Of all Redfish services: made at the first start, pinned by partitions from then on. */
  certificate: z.strictObject({ key: z.string(), certificate: z.string(), fingerprint: z.string() }).exactOptional(),
  machines: z.record(z.string(), savedMachine),
})
export type SavedRack = z.output<typeof savedRack>

const fileName = 'rack.json'
/** A machine's installation makes a handful of changes; this is short beside what a person notices. */
const quietMs = 200
/** A full disk may get room again. */
const afterFailureMs = 5_000

/**
 * Reads a rack's memory; undefined where there is none yet. Throws where the file is there and cannot be understood: starting afresh
 * over it would wipe the disks of a whole rack.
 */
export async function readMemory(dir: string): Promise<SavedRack | undefined> {
  const file = path.join(dir, fileName)
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new Error(`read the rack's memory ${file}: ${(cause as Error).message}`, { cause })
  }
  try {
    return savedRack.parse(JSON.parse(text))
  } catch (cause) {
    throw new Error(`the rack's memory ${file} makes no sense; move it away to start with new machines`, { cause })
  }
}

export interface MemoryWriter {
  /** Something changed: the whole is written soon. */
  changed(): void
  /** Writes what is still due and stops. Rejects where the last write failed. */
  close(): Promise<void>
}

/** Writes `snapshot()` to `dir` after changes, one write at a time. A write that fails is told to `log` and tried again 5 s later. */
export function memoryWriter(options: {
  dir: string
  snapshot: () => SavedRack
  log: (message: string, facts: Readonly<Record<string, string | number>>) => void
}): MemoryWriter {
  const file = path.join(options.dir, fileName)
  const closing = new AbortController()
  let isDue = false
  let writing: Promise<void> | undefined

  const write = async () => {
    isDue = false
    try {
      await replaceFile(file, JSON.stringify(options.snapshot()))
    } catch (error) {
      isDue = true
      throw error
    }
  }
  const writeWhileDue = async () => {
    let waitMs = quietMs
    while (isDue && !closing.signal.aborted) {
      try {
        await sleep(waitMs, undefined, { signal: closing.signal })
        await write()
        waitMs = quietMs
      } catch (error) {
        // Closing cut the wait short, or the write failed meanwhile: close() writes what is due and rejects if it cannot.
        if (closing.signal.aborted) break
        options.log("the rack's memory was not written", { file, error: (error as Error).message, againInMs: afterFailureMs })
        waitMs = afterFailureMs
      }
    }
    writing = undefined
  }
  return {
    changed: () => {
      isDue = true
      if (writing || closing.signal.aborted) return
      writing = writeWhileDue()
    },
    close: async () => {
      closing.abort()
      await writing
      if (isDue) await write()
    },
  }
}

async function replaceFile(file: string, text: string): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true })
  const temporary = `${file}.${process.pid}.tmp`
  // BMC passwords follow from the seed in it: nobody else's business.
  const handle = await open(temporary, 'w', 0o600)
  try {
    await handle.writeFile(text)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await rename(temporary, file)
}
