// What this partition can install: the templates it knows and the files it holds. Files lie under one folder:
//   agent/<arch>/vmlinuz, agent/<arch>/initrd                     the agent's kernel and memory image
//   images/<os>/<release>/<arch>/image.json                       {"title", "file", "sha256", "sizeBytes"}, and "dataSource" where it is maas, "form" where it is tar
//   images/<os>/<release>/<arch>/<file>
//   scripts/<name>.sh                                            see script-files.ts
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import type { Log } from '@muster/server/log'
import type { Place } from '@muster/shared/allocation/matcher'
import { type DataSource, dataSources } from '@muster/shared/cloud-init'
import { architectures, type ImageForm, imageForms } from '@muster/shared/machine'
import type { Script } from '@muster/shared/scripts'
import { z } from 'zod'
import { type OnTrouble, readScripts } from './script-files.ts'

const imageFile = z.strictObject({
  title: z.string().min(1).max(200),
  file: z.string().regex(/^[\w][\w.-]*$/),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  sizeBytes: z.number().int().positive(),
  /** Which data source the cloud-init within it is made for. */
  dataSource: z.enum(dataSources).default('nocloud'),
  form: z.enum(imageForms).default('disk'),
})

export interface Image {
  os: string
  arch: string
  title: string
  sha256: string
  sizeBytes: number
  dataSource: DataSource
  form: ImageForm
  /** Path under the files folder, as the boot door serves it. */
  path: string
}

/** Families whose first boot (cloud-init, NoCloud) this release knows how to prepare. */
const supportedFamilies = new Set(['debian', 'ubuntu'])

export class Catalogue implements Place {
  readonly partition: string
  readonly folder: string
  readonly #log: Log
  #images: Image[] = []
  #installable = new Map<string, Set<string>>()
  #agents = new Set<string>()
  #selection: ReadonlySet<string> | undefined
  #scripts: Script[] = []
  /** What cannot be used and why, by its place. */
  #troubles: ReadonlyMap<string, string> = new Map()

  constructor(options: { partition: string; folder: string; log: Log }) {
    this.partition = options.partition
    this.folder = options.folder
    this.#log = options.log
    this.refresh()
  }

  /** Per architecture, what can be deployed now: supported, and its files are here. */
  get installable(): ReadonlyMap<string, ReadonlySet<string>> {
    return this.#installable
  }

  get images(): readonly (Image & { isSupported: boolean; isSelected: boolean })[] {
    return this.#images.map(image => ({ ...image, isSupported: isSupported(image.os), isSelected: this.isSelected(image.os) }))
  }

  /** What may be installed here, as the federation says; undefined: everything whose files are here. Counts from the next {@link refresh}. */
  select(operatingSystems: readonly string[] | undefined): void {
    this.#selection = operatingSystems && new Set(operatingSystems)
  }

  /** What was selected, and has no files here. */
  get missing(): string[] {
    return [...(this.#selection ?? [])].filter(os => !this.#images.some(image => image.os === os))
  }

  /** What commissioning can run, by name. */
  get scripts(): readonly Script[] {
    return this.#scripts
  }

  hasAgent(arch: string): boolean {
    return this.#agents.has(arch)
  }

  imageFor(os: string, arch: string): Image | undefined {
    return this.#images.find(image => image.os === os && image.arch === arch && isSupported(os))
  }

  /** Reads the folder again. A broken description is left out, and logged once, not at every look. Answers whether anything changed. */
  refresh(): 'changed' | 'same' {
    const before = this.#state()
    const troubles = new Map<string, string>()
    const onTrouble = (place: string, error: unknown) => troubles.set(place, (error as Error).message)
    this.#agents = new Set(
      architectures.filter(arch => ['vmlinuz', 'initrd'].every(name => existsSync(path.join(this.folder, 'agent', arch, name)))),
    )
    this.#images = this.#readImages(onTrouble)
    this.#scripts = readScripts(this.folder, onTrouble)
    for (const [place, trouble] of troubles)
      if (this.#troubles.get(place) !== trouble) this.#log.warn({ place, trouble }, `what is in ${place} cannot be used`)
    this.#troubles = troubles
    this.#installable = new Map(
      architectures.map(arch => [
        arch,
        new Set(this.#images.filter(({ os, arch: own }) => own === arch && isSupported(os) && this.isSelected(os)).map(({ os }) => os)),
      ]),
    )
    return this.#state() === before ? 'same' : 'changed'
  }

  #state(): string {
    return JSON.stringify([this.#images, [...this.#agents], [...this.#installable.values()].map(names => [...names])])
  }

  /** Whether the federation lets it be installed here. */
  isSelected(os: string): boolean {
    return this.#selection?.has(os) ?? true
  }

  #readImages(onTrouble: OnTrouble): Image[] {
    const images: Image[] = []
    for (const family of folders(path.join(this.folder, 'images')))
      for (const release of folders(path.join(this.folder, 'images', family)))
        for (const arch of folders(path.join(this.folder, 'images', family, release))) {
          const place = path.join('images', family, release, arch)
          const description = path.join(this.folder, place, 'image.json')
          if (!existsSync(description)) continue
          try {
            const { file, ...image } = imageFile.parse(JSON.parse(readFileSync(description, 'utf8')))
            const { size } = statSync(path.join(this.folder, place, file))
            if (size !== image.sizeBytes) throw new Error(`${file} has ${size} bytes, image.json says ${image.sizeBytes}`)
            images.push({ os: `${family}/${release}`, arch, ...image, path: path.posix.join('images', family, release, arch, file) })
          } catch (error) {
            onTrouble(place, error)
          }
        }
    return images.sort((a, b) => (a.path < b.path ? -1 : 1))
  }
}

/** Reads the files again, and has memory forget what it worked out of them where they changed. */
export function refreshCatalogue({ catalogue, memory }: { catalogue: Catalogue; memory: { candidates: { forgetSets(): void } } }): void {
  if (catalogue.refresh() === 'changed') memory.candidates.forgetSets()
}

const isSupported = (os: string) => supportedFamilies.has(os.split('/')[0] as string)

function folders(parent: string): string[] {
  if (!existsSync(parent)) return []
  return readdirSync(parent, { withFileTypes: true })
    .filter(entry => entry.isDirectory())
    .map(({ name }) => name)
}
