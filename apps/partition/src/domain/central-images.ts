// Images that the global configuration describes: each partition that may install them fetches them itself, in the background, one at a time. The document
// counts before what somebody took in here under the same name; an image that no document describes any more stays until somebody removes it.
import type { PartitionStatus } from '@muster/shared/contract/partitions'
import type { Documents, ImageDocument } from '@muster/shared/global/documents'
import { type Image, refreshCatalogue } from './catalogue.ts'
import type { Core } from './core.ts'
import { takeImage } from './image-store.ts'

/** What could not be had, and when it is tried again. */
interface Trouble {
  readonly reason: string
  readonly tries: number
  /** Epoch milliseconds. */
  readonly againAt: number
}

/** After a failure, then twice as long each time; each half as long again at most, so that partitions do not ask a source together. */
const usualPauses = { firstMs: 60_000, mostMs: 3_600_000 }

/** The images that a partition is to have: those described that it may install. One without a document may install everything. */
export function imagesFor(documents: Documents, partition: string): [name: string, image: ImageDocument][] {
  const selection = documents.partition[partition]?.operatingSystems
  return Object.entries(documents.image).filter(([, { os }]) => selection === undefined || selection.includes(os))
}

/** Whether what is here is what is described. */
function isAsDescribed(here: Image | undefined, wanted: ImageDocument): boolean {
  return (['sha256', 'title', 'form', 'dataSource'] as const).every(field => here?.[field] === wanted[field])
}

export class CentralImages {
  readonly #core: Pick<Core, 'configuration' | 'partition' | 'catalogue' | 'memory' | 'log'>
  readonly #pauses: typeof usualPauses
  /** By the document's text: another document is another try. */
  #troubles = new Map<string, Trouble>()
  #fetching: NonNullable<PartitionStatus['fetching']>[number] | undefined

  constructor(core: Pick<Core, 'configuration' | 'partition' | 'catalogue' | 'memory' | 'log'>, pauses = usualPauses) {
    this.#core = core
    this.#pauses = pauses
  }

  /** Which images are not here, and why, in words. */
  get problems(): string[] {
    return this.#wanted().flatMap(([name, image]) => {
      const trouble = this.#troubles.get(textOf(image))
      if (!trouble || this.#isHere(image)) return []
      const what = `the image ${name} (${image.os}, ${image.arch}) of the global configuration`
      return [`${what}: ${trouble.reason}; tried again in ${minutesUntil(trouble)} min`]
    })
  }

  /** What is on its way. */
  get fetching(): NonNullable<PartitionStatus['fetching']> {
    return this.#fetching ? [{ ...this.#fetching }] : []
  }

  /**
   * Why an image that is described is not here to be installed, in words; undefined where none is described, or it is here. Time may mend each: what could not be had is tried again.
   */
  whyAway(os: string, arch: string): string | undefined {
    const [name, image] = this.#wanted().find(([, each]) => each.os === os && each.arch === arch) ?? []
    if (!name || !image || this.#isHere(image)) return undefined
    const fetched = this.#fetching
    if (fetched?.name === name) return `its image ${name} is being fetched, ${Math.floor(fetched.bytes / 2 ** 20)} MiB so far`
    const trouble = this.#troubles.get(textOf(image))
    if (trouble) return `its image ${name} could not be had: ${trouble.reason}; tried again in ${minutesUntil(trouble)} min`
    return `its image ${name} is to be fetched, and it is not its turn yet`
  }

  /** Fetches one image that is not here and is due. `more`: there may be another. */
  async look(signal: AbortSignal): Promise<'more' | 'idle'> {
    const wanted = this.#wanted()
    const texts = new Set(wanted.map(([, image]) => textOf(image)))
    this.#troubles = new Map([...this.#troubles].filter(([text]) => texts.has(text)))
    const next = wanted.find(([, image]) => !this.#isHere(image) && (this.#troubles.get(textOf(image))?.againAt ?? 0) <= Date.now())
    if (!next) return 'idle'
    const [name, image] = next
    try {
      await this.#fetch(name, image, signal)
      this.#troubles.delete(textOf(image))
    } catch (error) {
      if (signal.aborted) return 'idle'
      this.#note(name, image, error as Error)
    } finally {
      this.#fetching = undefined
    }
    return 'more'
  }

  async #fetch(name: string, image: ImageDocument, signal: AbortSignal): Promise<void> {
    const { catalogue, log } = this.#core
    const { url, ...described } = image
    const { os, arch } = image
    const fetching = { name, os, arch, bytes: 0 }
    this.#fetching = fetching
    log.info({ image: name, os, arch, url }, 'an image of the global configuration is fetched')
    const progress = (bytes: number) => {
      fetching.bytes = bytes
    }
    await takeImage({ files: catalogue.folder, ...described, source: url, progress, signal })
    refreshCatalogue(this.#core)
    if (!this.#isHere(image)) throw new Error('what was fetched is not in the folder as it is described')
    log.info({ image: name, os, arch, bytes: fetching.bytes }, 'an image of the global configuration is here')
  }

  #note(name: string, image: ImageDocument, error: Error): void {
    const tries = (this.#troubles.get(textOf(image))?.tries ?? 0) + 1
    const { firstMs, mostMs } = this.#pauses
    const pauseMs = Math.min(firstMs * 2 ** (tries - 1), mostMs) * (1 + Math.random() / 2)
    // fetch says "fetch failed", and its cause what happened.
    const reason = error.cause instanceof Error && error.message === 'fetch failed' ? `${image.url}: ${error.cause.message}` : error.message
    this.#troubles.set(textOf(image), { reason, tries, againAt: Date.now() + pauseMs })
    this.#core.log.warn({ image: name, tries, reason }, 'an image of the global configuration could not be fetched')
  }

  #wanted(): [name: string, image: ImageDocument][] {
    const { configuration, partition } = this.#core
    return configuration.content ? imagesFor(configuration.content.documents, partition) : []
  }

  #isHere(wanted: ImageDocument): boolean {
    const here = this.#core.catalogue.images.find(({ os, arch }) => os === wanted.os && arch === wanted.arch)
    return isAsDescribed(here, wanted)
  }
}

const minutesUntil = ({ againAt }: Trouble) => Math.max(1, Math.round((againAt - Date.now()) / 60_000))

const textOf = (image: ImageDocument) => JSON.stringify(image)
