// The partition's copy of the global configuration: fetched from a front, checked, kept, and in force for ever, whatever becomes of the centre.
// A copy that is older, of another history, or that no trusted key signed, changes nothing.
import { digestOf, follows } from '@muster/server/global/lineage'
import { tokensOfDocuments } from '@muster/server/global/people'
import { createVerifier } from '@muster/server/global/signature'
import type { Log } from '@muster/server/log'
import type { Tokens } from '@muster/server/tokens'
import type { HeldCopy } from '@muster/shared/contract/config'
import { type CopyContent, noGeneration, type OfferedCopy, readPayload, type SignedCopy } from '@muster/shared/global/copy'
import { noDocuments } from '@muster/shared/global/documents'
import type { Sql } from '../db/connect.ts'
import { findGlobal, type GlobalRow, globalGeneration, keepGlobal } from '../db/global.ts'

interface InForce {
  readonly content: CopyContent
  readonly copy: SignedCopy
  readonly digest: string
  readonly takenAt: Date
  readonly tokens: Tokens
  readonly skipped: readonly string[]
}

export interface GlobalCopyOptions {
  readonly partition: string
  readonly sql: Sql
  /** Public keys of the fronts, hex. None: nothing is taken. */
  readonly trustedKeys: readonly string[]
  /** Called with every configuration that comes into force. */
  readonly onUse?: (content: CopyContent) => void
  readonly log: Log
}

export class GlobalCopy {
  readonly #options: GlobalCopyOptions
  #trustedKeys: readonly string[]
  #inForce: InForce | undefined
  #heardAt: Date | undefined
  #refused: string | undefined
  readonly #none = tokensOfDocuments(noDocuments)

  constructor(options: GlobalCopyOptions) {
    this.#options = options
    this.#trustedKeys = options.trustedKeys
  }

  /** From now on these keys are trusted, and no others. */
  trust(publicKeys: readonly string[]): void {
    this.#trustedKeys = publicKeys
  }

  /** Whose signatures count, hex. */
  get trustedKeys(): readonly string[] {
    return this.#trustedKeys
  }

  /** The generation in force; 0 where there is none. */
  get generation(): number {
    return this.#inForce?.content.generation ?? noGeneration
  }

  get content(): CopyContent | undefined {
    return this.#inForce?.content
  }

  /** Which copy is in force, where one is. */
  get held(): { generation: number; digest: string } | undefined {
    return this.#inForce && { generation: this.generation, digest: this.#inForce.digest }
  }

  /** The copy as JSON, for a front that lost its own. */
  get text(): string | undefined {
    return this.#inForce && JSON.stringify(this.#inForce.copy)
  }

  /** Whom the configuration in force lets in. */
  readonly tokens: Tokens = { find: token => (this.#inForce?.tokens ?? this.#none).find(token) }

  /** Reads what the database keeps, if that is newer than what is in force: at the start, and when another replica took a copy. */
  async reload(): Promise<void> {
    const { sql } = this.#options
    if ((await globalGeneration(sql)) <= this.generation) return
    const row = await findGlobal(sql)
    if (row) this.#use(row)
  }

  /**
   * Takes a copy that a front gave. Older ones, and the one in force again, change nothing. Throws, saying why, where it is not signed by a trusted
   * key, cannot be read, does not follow from the one in force, or says something else than that under the same generation.
   */
  async take(copy: Omit<OfferedCopy, 'links'> & { readonly links?: readonly string[] }): Promise<'taken' | 'not newer'> {
    const { sql, log } = this.#options
    try {
      if (this.#trustedKeys.length === 0)
        throw new Error('this partition trusts no key: MUSTER_CONFIG_PUBLIC_KEY is not set, and it was not accepted by a front')
      createVerifier(this.#trustedKeys).check(copy)
      // Another replica may have taken one: what is checked here is what is replaced there.
      await this.reload()
      const { content } = readPayload(copy.payload)
      const { generation } = content
      const held = this.#inForce && { payload: this.#inForce.copy.payload, content: this.#inForce.content }
      if (generation === this.generation && digestOf(copy.payload) !== this.#inForce?.digest)
        throw new Error(`a front offers another configuration under generation ${generation} than the one in force: ${setBack}`)
      if (held && generation > this.generation && !follows(content, copy.links ?? [], held))
        throw new Error(
          `a front offers generation ${generation}, which does not follow from generation ${this.generation} in force: ${setBack}`,
        )
      this.#refused = undefined
      const row = { generation, payload: copy.payload, signature: copy.signature, signed_by: copy.key }
      if (generation <= this.generation || (await keepGlobal(sql, row, this.generation)) === 'not newer') return 'not newer'
      this.#use({ ...row, taken_at: new Date() })
      log.info({ generation }, 'a new generation of the global configuration is in force')
      return 'taken'
    } catch (error) {
      this.#refused = (error as Error).message
      throw error
    }
  }

  /** A front said what it holds: nothing newer, a copy, or another history than this one. Throws where it is another. */
  heard(answer: { readonly text?: string | undefined; readonly another?: boolean | undefined }): void {
    this.#heardAt = new Date()
    if (answer.another) {
      this.#refused = `the fronts have another configuration under generation ${this.generation} than the one in force: ${setBack}`
      throw new Error(this.#refused)
    }
    if (answer.text === undefined) this.#refused = undefined
  }

  describe(): HeldCopy {
    const problems = [
      ...(this.#refused === undefined ? [] : [this.#refused]),
      ...(this.#inForce?.skipped ?? []).map(name => `this release cannot read the document ${name}`),
    ]
    return {
      partition: this.#options.partition,
      generation: this.generation,
      digest: this.#inForce?.digest ?? null,
      takenAt: this.#inForce?.takenAt.toISOString() ?? null,
      heardAt: this.#heardAt?.toISOString() ?? null,
      problems,
    }
  }

  /** In one assignment, so that nobody sees half of a configuration. */
  #use(row: GlobalRow): void {
    const { skipped, content } = readPayload(row.payload)
    this.#inForce = {
      content,
      skipped,
      copy: { payload: row.payload, signature: row.signature, key: row.signed_by },
      digest: digestOf(row.payload),
      takenAt: row.taken_at,
      tokens: tokensOfDocuments(content.documents),
    }
    this.#options.onUse?.(content)
  }
}

const setBack =
  'their database was lost or set back, and written since; run "muster config refill", with --database-wins if what was written since is to stand'
