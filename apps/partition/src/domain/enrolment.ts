// How this partition becomes part of a federation: it makes a key, asks a front with its join token until an admin has accepted it, and remembers where the bus is and
// whose configuration to take. Until then, and whatever becomes of the front, it works by itself.
import { type Client, UnreachableError } from '@muster/shared/client'
import { Refusal } from '@muster/shared/errors'
import type { Secret } from '@muster/shared/secret'
import { type Distrust, distrustOf } from '@muster/shared/trust/distrust'
import { createUser, fromSeed } from '@nats-io/nkeys'
import { findMembership, keepAcceptance, keepSeed } from '../db/membership.ts'
import { Bell } from './bell.ts'
import type { Core } from './core.ts'

export interface Application {
  /** A client of the front, by which it is believed. */
  readonly connect: () => Promise<Pick<Client, 'enrolment'>>
  /** Where the front is, for messages. */
  readonly front: string
  readonly token: Secret
  readonly version: string
  readonly url: string
}

/** What an accepted partition knows. */
export interface Membership {
  readonly natsUrl: string
  /** By whose certificates the bus is believed, PEM; undefined: by those that this computer knows. */
  readonly natsCa: string | undefined
  readonly nkey: string
  readonly configKeys: readonly string[]
}

const askEveryMs = 5_000
const sealContext = 'nats nkey'

export class Enrolment {
  readonly #core: Pick<Core, 'sql' | 'seal' | 'log' | 'partition' | 'catalogue'>
  #problem: string | undefined

  constructor(core: Pick<Core, 'sql' | 'seal' | 'log' | 'partition' | 'catalogue'>) {
    this.#core = core
  }

  /** What stands in the way, in words; undefined once it is accepted. */
  get problem(): string | undefined {
    return this.#problem
  }

  /** What was remembered of an earlier acceptance. */
  async remembered(): Promise<Membership | undefined> {
    const row = await findMembership(this.#core.sql)
    if (!row || row.nats_url === null) return undefined
    return { natsUrl: row.nats_url, natsCa: row.nats_ca ?? undefined, nkey: this.#seed(row.nats_seed), configKeys: row.config_keys }
  }

  /** Asks until it is accepted; undefined when the signal came first. Every change of what stands in the way is logged, once. */
  async accepted(application: Application, signal: AbortSignal): Promise<Membership | undefined> {
    while (!signal.aborted) {
      try {
        const membership = await this.#ask(application)
        if (membership) return membership
      } catch (error) {
        this.#stand(reasonOf(error, application.front))
      }
      // Jitter: partitions that start together, after an outage of their front, do not ask together.
      await new Bell().wait(askEveryMs * (0.7 + 0.6 * Math.random()), signal)
    }
    return undefined
  }

  async #ask({ connect, token, version, url }: Application): Promise<Membership | undefined> {
    const { core, nkey } = { core: this.#core, nkey: await this.#nkey() }
    const natsKey = fromSeed(new TextEncoder().encode(nkey)).getPublicKey()
    const operatingSystems = [...new Set(core.catalogue.images.map(({ os }) => os))]
    const client = await connect()
    const answer = await client.enrolment.ask({ token: token.reveal(), name: core.partition, version, url, natsKey, operatingSystems })
    if (answer.status === 'pending' || answer.natsUrl === null) {
      this.#stand(`asked to take part with the key ${natsKey}: ${answer.detail}`)
      return undefined
    }
    // A front of an earlier release says nothing of it.
    const natsCa = answer.natsCa ?? undefined
    await keepAcceptance(core.sql, { nats_url: answer.natsUrl, nats_ca: natsCa ?? null, config_keys: answer.configKeys })
    this.#problem = undefined
    core.log.info({ natsKey, natsUrl: answer.natsUrl }, `this partition takes part: ${answer.detail}`)
    return { natsUrl: answer.natsUrl, natsCa, nkey, configKeys: answer.configKeys }
  }

  async #nkey(): Promise<string> {
    const { sql, seal } = this.#core
    const known = await findMembership(sql)
    if (known) return this.#seed(known.nats_seed)
    await keepSeed(sql, seal.seal(new TextDecoder().decode(createUser().getSeed()), sealContext))
    return this.#nkey()
  }

  #seed(sealed: Buffer): string {
    return this.#core.seal.open(sealed, sealContext) as string
  }

  #stand(problem: string): void {
    if (problem !== this.#problem) this.#core.log.warn({}, `not part of the federation: ${problem}`)
    this.#problem = problem
  }
}

/** What to do about the front's certificate. */
const advice: { readonly [why in Distrust]?: string } = {
  untrusted:
    'its certificate is not from an authority that is believed here: set MUSTER_JOIN_CA to a file with the certificate of its authority (ca.crt in its MUSTER_TLS_DIR), or MUSTER_JOIN_FINGERPRINT to the fingerprint of that, which the log of the front tells',
  'out-of-time': 'its certificate is not good at this time: is the clock of this computer right, and was it renewed at the front?',
  'wrong-name': 'its certificate is for other names: use one of these in MUSTER_JOIN_URL, or add this one to MUSTER_TLS_NAMES of the front',
}

function reasonOf(error: unknown, front: string): string {
  if (error instanceof Refusal) return `the front at ${front} refused: ${error.message}`
  if (error instanceof UnreachableError) {
    const why = distrustOf(error.cause)
    const told = why === undefined ? undefined : advice[why]
    return `the front at ${front} cannot be reached: ${error.message}${told === undefined ? '' : `; ${told}`}`
  }
  return (error as Error).message
}
