// What goes wrong with real machines, done to a computer of the lab on purpose: each ends in a fault that names its cause, and the same order again is
// carried out once the cause is gone.
import { createHash, randomBytes } from 'node:crypto'
import { copyFile, mkdir, mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { removeImage, takeImage } from '@muster/partition/domain/image-store'
import type { Client } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import type { Machine } from '@muster/shared/machine'
import type { Computer } from './computer.ts'
import { program } from './program.ts'
import { expectThat, Teller } from './teller.ts'

/** In the order in which they are told: each begins where the one before ends. */
export const faultNames = ['no-dhcp', 'agent-frozen', 'full-disk', 'wrong-digest', 'truncated-image', 'aborted-release'] as const
export type FaultName = (typeof faultNames)[number]

/** Shorter than a partition's own: an emulated machine that has a processor to itself is heard within 15 s. */
export const faultDeadlines = {
  MUSTER_AGENT_START: process.env.MUSTER_AGENT_START ?? '90s',
  MUSTER_AGENT_SILENCE: process.env.MUSTER_AGENT_SILENCE ?? '45s',
}

export interface FaultOptions {
  readonly client: Client
  readonly computer: Computer
  /** Of {@link makeFaultImage}. */
  readonly image: { readonly os: string; readonly file: string }
  readonly names: readonly FaultName[]
  readonly stepLimitMs: number
  readonly say: (line: string) => void
}

export interface FaultEnd {
  readonly fault: FaultName
  readonly code: string
  readonly message: string
  /** From the order to the fault, and from the same order again to its end. */
  readonly ms: { readonly failed: number; readonly mended: number }
}

interface Trouble {
  readonly during: 'commissioning' | 'deploying' | 'releasing'
  readonly code: string
  readonly says: RegExp
  /** Before the order, or once the agent has begun. */
  readonly at: 'before' | 'ordered' | 'begun'
  readonly make: (options: FaultOptions, id: string) => Promise<unknown>
  readonly mend: (options: FaultOptions) => Promise<unknown>
}

const whole = ({ image }: FaultOptions) => copyFile(`${image.file}.whole`, image.file)
const nothing = async () => undefined

const troubles: Readonly<Record<FaultName, Trouble>> = {
  'no-dhcp': {
    during: 'commissioning',
    code: 'agent-missing',
    says: /^no sign of the agent in \d+ s since the machine was powered on into the network, and not the first time$/,
    at: 'before',
    make: ({ computer }) => computer.unplug(),
    mend: ({ computer }) => computer.plug(),
  },
  'agent-frozen': {
    during: 'commissioning',
    code: 'agent-silent',
    says: /^the agent was last heard \d+ s ago, at \S+/,
    at: 'begun',
    make: async ({ computer }) => computer.freeze(),
    // Its power goes when it has failed.
    mend: nothing,
  },
  'full-disk': {
    during: 'deploying',
    code: 'write-failed',
    says: /^the image has \d+ bytes, \/dev\/vda only \d+$/,
    at: 'before',
    make: async ({ computer }) => computer.exchangeDisks(imageBytes / 2),
    mend: async ({ computer }) => computer.exchangeDisks(),
  },
  'wrong-digest': {
    during: 'deploying',
    code: 'download-failed',
    says: /^image \S+ has SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}$/,
    at: 'before',
    make: ({ image }) => spoil(image.file),
    mend: whole,
  },
  'truncated-image': {
    during: 'deploying',
    code: 'job-failed',
    says: /the files of debian\/\S+ for amd64 are gone, or not what their description says/,
    at: 'ordered',
    make: ({ image }) => truncate(image.file, 1_000_000),
    mend: whole,
  },
  'aborted-release': {
    during: 'releasing',
    code: 'release-aborted',
    says: /^\S+ aborted the release; not erased: vda$/,
    at: 'begun',
    make: ({ client }, id) => client.machines.abort({ id }),
    mend: nothing,
  },
}

const mib = 2 ** 20
const imageBytes = 64 * mib
export const diskBytes = 512 * mib

/** Tells them all, one after the other, on one computer. Throws where a fault does not come, is another, or stays. */
export async function tellFaults(options: FaultOptions): Promise<readonly FaultEnd[]> {
  const { client, computer, names, say } = options
  const teller = new Teller(options)
  const id = await teller.step('enlisted', () => teller.enlist())
  const wanted = faultNames.filter(name => names.includes(name))
  const isOff = ({ power }: Machine) => power === 'off'
  const orders = {
    commissioning: {
      failed: 'failed_commissioning',
      give: () => client.machines.commission({ id }),
      end: () => teller.comesTo(id, 'ready', { fits: isOff }),
    },
    deploying: {
      failed: 'failed_deployment',
      give: () => client.machines.deploy({ id, os: options.image.os }).catch(notYet),
      // Installed is enough: the image is none that boots.
      end: async () => {
        await teller.comesTo(id, 'deploying', { fits: ({ deployment }) => typeof deployment?.installedAt === 'string' })
        await client.machines.abort({ id })
        await teller.comesTo(id, 'allocated', { fits: isOff })
      },
    },
    releasing: {
      failed: 'failed_releasing',
      give: () => client.machines.release({ id, erase: 'full' }),
      end: () => teller.comesTo(id, 'ready', { fits: isOff }),
    },
  } as const
  const carryOut = async (during: Trouble['during']) => {
    await teller.order(`the order (${during})`, orders[during].give)
    await orders[during].end()
  }
  const ends: FaultEnd[] = []
  const timed = async <Answer>(act: () => Promise<Answer>) => {
    const startedAt = performance.now()
    const answer = await act()
    return { answer, ms: Math.round(performance.now() - startedAt) }
  }
  // Faults of commissioning end commissioned.
  if (wanted.every(name => troubles[name].during !== 'commissioning')) await teller.step('commissioned', () => carryOut('commissioning'))
  for (const name of wanted) {
    const { during, code, says, at, make, mend } = troubles[name]
    if (during !== 'commissioning' && (await client.machines.get({ id })).state === 'ready')
      await client.allocations.create({ constraints: { hostnames: [computer.name] } })
    // Nothing is to be erased of a machine that never had a system.
    if (
      during === 'releasing' &&
      (await client.machines.get({ id })).state === 'allocated' &&
      !ends.some(({ fault }) => troubles[fault].during === 'deploying')
    )
      await teller.step('installed', () => carryOut('deploying'))
    if (at === 'before') await make(options, id)
    const failed = await timed(async () => {
      await teller.order(`the order (${during})`, orders[during].give)
      if (at === 'ordered') await make(options, id)
      let isMade = at !== 'begun'
      return teller.comesTo(id, orders[during].failed, {
        fits: isOff,
        meanwhile: async ({ state, progress, waitingFor }) => {
          if (isMade || state !== during || progress === null || !waitingFor?.startsWith('the agent:')) return
          isMade = true
          await make(options, id)
        },
      })
    })
    const { code: seen = '', message = '' } = failed.answer.fault ?? {}
    say(`${computer.name}: ${name}: ${seen} after ${(failed.ms / 1000).toFixed(0)} s: ${message}`)
    expectThat(seen === code && says.test(message), `${name} is told as ${code} ${says}`, { seen, message })
    await mend(options)
    const mended = await timed(() => carryOut(during))
    say(`${computer.name}: ${name}: the same order again is carried out, ${(mended.ms / 1000).toFixed(0)} s`)
    ends.push({ fault: name, code: seen, message, ms: { failed: failed.ms, mended: mended.ms } })
  }
  return ends
}

/** An image that was mended is there when the partition has looked at its files again. */
function notYet(error: unknown): undefined {
  if (error instanceof Refusal && error.code === 'not-installable') return undefined
  throw error
}

/** An image that is quick to write: a file system with /etc and a few megabytes of noise. Beside it stays a copy that is not spoilt. */
export async function makeFaultImage(files: string): Promise<FaultOptions['image']> {
  const os = 'debian/faulty'
  const work = await mkdtemp(path.join(tmpdir(), 'muster-faulty-'))
  try {
    const [tree, disk] = [path.join(work, 'tree'), path.join(work, 'disk')]
    await mkdir(path.join(tree, 'etc'), { recursive: true })
    await writeFile(path.join(tree, 'noise'), randomBytes(8 * mib))
    await writeFile(disk, '')
    await truncate(disk, imageBytes)
    await program('mkfs.ext4', ['-q', '-d', tree, disk])
    await program('zstd', ['-q', '-1', disk])
    const packed = await readFile(`${disk}.zst`)
    const sha256 = createHash('sha256').update(packed).digest('hex')
    // The noise is another each time.
    await removeImage(files, os, 'amd64')
    await takeImage({ files, os, arch: 'amd64', title: 'to be spoilt', source: `${disk}.zst`, sha256 })
    const file = path.join(files, 'images', os, 'amd64', `${sha256.slice(0, 16)}.img`)
    await copyFile(file, `${file}.whole`)
    return { os, file }
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** One byte in the middle is another. */
async function spoil(file: string): Promise<void> {
  const target = await open(file, 'r+')
  try {
    const { size } = await target.stat()
    const byte = Buffer.alloc(1)
    const at = Math.floor(size / 2)
    await target.read(byte, 0, 1, at)
    byte[0] = (byte[0] as number) ^ 0xff
    await target.write(byte, 0, 1, at)
  } finally {
    await target.close()
  }
}
