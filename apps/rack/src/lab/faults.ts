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

export const duringOf = (name: FaultName) => troubles[name].during

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
export async function tellFaults(
  options: FaultOptions & { names: readonly FaultName[]; stepLimitMs: number },
): Promise<readonly FaultEnd[]> {
  const { client, computer, names, say } = options
  const teller = new Teller(options)
  const id = await teller.step('enlisted', () => teller.enlist())
  const wanted = faultNames.filter(name => names.includes(name))
  const ends = {
    commissioning: () => teller.comesTo(id, 'ready', { fits: isOff }),
    // Installed is enough: the image is none that boots.
    deploying: async () => {
      await teller.comesTo(id, 'deploying', { fits: ({ deployment }) => typeof deployment?.installedAt === 'string' })
      await client.machines.abort({ id })
      await teller.comesTo(id, 'allocated', { fits: isOff })
    },
    releasing: () => teller.comesTo(id, 'ready', { fits: isOff }),
  }
  const carryOut = async (during: Trouble['during']) => {
    await teller.order(`the order (${during})`, () => orders[during].give(options, id))
    await ends[during]()
  }
  const told: FaultEnd[] = []
  // Faults of commissioning end commissioned.
  if (wanted.every(name => troubles[name].during !== 'commissioning')) await teller.step('commissioned', () => carryOut('commissioning'))
  for (const name of wanted) {
    const { during } = troubles[name]
    if (during !== 'commissioning' && (await client.machines.get({ id })).state === 'ready')
      await client.allocations.create({ constraints: { hostnames: [computer.name] } })
    // Nothing is to be erased of a machine that never had a system.
    if (
      during === 'releasing' &&
      (await client.machines.get({ id })).state === 'allocated' &&
      !told.some(({ fault }) => troubles[fault].during === 'deploying')
    )
      await teller.step('installed', () => carryOut('deploying'))
    const startedAt = performance.now()
    const { code, message } = await sufferFault({ ...options, teller, id, name })
    const failedAt = performance.now()
    await carryOut(during)
    const ms = { failed: Math.round(failedAt - startedAt), mended: Math.round(performance.now() - failedAt) }
    say(`${computer.name}: ${name}: the same order again is carried out, ${(ms.mended / 1000).toFixed(0)} s`)
    told.push({ fault: name, code, message, ms })
  }
  return told
}

/**
 * Breaks the machine, gives the order, waits for the fault, and takes the cause away: the same order again would be carried out. The machine is in a state
 * in which the order may be given. Throws where the fault does not come, or is another.
 */
export async function sufferFault(
  options: FaultOptions & { teller: Teller; id: string; name: FaultName },
): Promise<{ code: string; message: string }> {
  const { computer, say, teller, id, name } = options
  const { during, code, says, at, make, mend } = troubles[name]
  const { give, failed } = orders[during]
  if (at === 'before') await make(options, id)
  await teller.order(`the order (${during})`, () => give(options, id))
  if (at === 'ordered') await make(options, id)
  let isMade = at !== 'begun'
  const { fault } = await teller.comesTo(id, failed, {
    fits: isOff,
    meanwhile: async ({ state, progress, waitingFor }) => {
      if (isMade || state !== during || progress === null || !waitingFor?.startsWith('the agent:')) return 'left alone'
      isMade = true
      await make(options, id)
      return 'disturbed'
    },
  })
  const { code: seen = '', message = '' } = fault ?? {}
  say(`${computer.name}: ${name}: ${seen}: ${message}`)
  expectThat(seen === code && says.test(message), `${name} is told as ${code} ${says}`, { seen, message })
  await mend(options)
  return { code: seen, message }
}

const isOff = ({ power }: Machine) => power === 'off'

/** What is asked of the machine in each stage, and the state in which it then fails. */
const orders = {
  commissioning: {
    failed: 'failed_commissioning',
    give: ({ client }: FaultOptions, id: string) => client.machines.commission({ id }),
  },
  deploying: {
    failed: 'failed_deployment',
    give: ({ client, image }: FaultOptions, id: string) => client.machines.deploy({ id, os: image.os }).catch(notYet),
  },
  releasing: {
    failed: 'failed_releasing',
    give: ({ client }: FaultOptions, id: string) => client.machines.release({ id, erase: 'full' }),
  },
} as const

/** An image that was mended is there when the partition has looked at its files again. */
function notYet(error: unknown): undefined {
  if (error instanceof Refusal && error.code === 'not-installable') return undefined
  throw error
}

/**
 * An image that is quick to write: a file system with /etc and a few megabytes of noise. Beside it stays a copy that is not spoilt. Machines that are to
 * suffer at the same time have one each, by their number.
 */
export async function makeFaultImage(files: string, number: number): Promise<FaultOptions['image']> {
  const os = `debian/faulty${number}`
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
