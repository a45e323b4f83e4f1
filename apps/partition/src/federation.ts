// The partition's part in its federation: the bus it is given, has in its settings, or is told of once it is accepted; and the doors on it. Without any of
// them the partition works all the same.
import { connectNats } from '@muster/server/bus/nats-bus'
import type { Log } from '@muster/server/log'
import type { Own } from '@muster/server/process'
import type { Bus } from '@muster/shared/bus/bus'
import { inboxOf } from '@muster/shared/bus/permissions'
import { type Client, createClient } from '@muster/shared/client'
import { AuthorityError, authorityOf } from '@muster/shared/trust/authority'
import { plainFetch } from '@muster/shared/trust/plain-fetch'
import type { LocalBackend } from './backend/local.ts'
import type { JoinSettings, PartitionSettings } from './config.ts'
import type { Core } from './domain/core.ts'
import { Enrolment, type Membership } from './domain/enrolment.ts'
import { type BusDoor, openBusDoor } from './doors/bus.ts'
import { type ConfigurationDoor, openConfigurationDoor } from './doors/configuration.ts'

export interface FederationOptions {
  readonly settings: Pick<PartitionSettings, 'partition' | 'replica' | 'nats' | 'natsCa' | 'join'>
  /** Instead of a connection of its own, for tests in one process. */
  readonly bus?: Bus | undefined
  readonly log: Log
  readonly own: Own
}

/** Who speaks over the bus. */
export interface Speaker {
  readonly backend: LocalBackend
  readonly replica: { readonly name: string; readonly epoch: number }
  readonly version: string
  /** How others reach this partition. */
  readonly url: string
}

export class Federation {
  readonly #core: Core
  readonly #options: FederationOptions
  readonly #enrolment: Enrolment
  #bus: Bus | undefined
  #busDoor: BusDoor | undefined
  #configurationDoor: ConfigurationDoor | undefined

  private constructor(core: Core, options: FederationOptions) {
    this.#core = core
    this.#options = options
    this.#enrolment = new Enrolment(core)
    this.#bus = options.bus
  }

  /** Connects, where it is known to what. Waits for no link: a partition starts without its bus. */
  static async open(core: Core, options: FederationOptions): Promise<Federation> {
    const federation = new Federation(core, options)
    const { settings, bus, own } = options
    const membership = settings.join && (await federation.#enrolment.remembered())
    if (membership) core.configuration.trust(membership.configKeys)
    const nats = membership ? busOf(membership) : settings.nats
    if (!bus && nats) federation.#bus = await federation.#connect(nats)
    // Last: what speaks over it has said goodbye by then.
    own('bus', () => (bus ? undefined : federation.#bus?.close()))
    return federation
  }

  describe(): string {
    return this.#bus?.describe() ?? 'none'
  }

  /** What the federation wants of this partition and does not get, or why it is not part of it. */
  problems(): string[] {
    const { configuration, catalogue, partition } = this.#core
    const own = configuration.content?.documents.partition[partition]
    const { problem } = this.#enrolment
    return [
      ...(problem === undefined ? [] : [`not part of the federation: ${problem}`]),
      ...(this.#bus === undefined || this.#bus.isConnected() ? [] : [`not on the bus: ${this.#bus.describe()}`]),
      ...(own?.status === 'retired' ? ['this partition was retired: fronts do not ask it any more'] : []),
      ...catalogue.missing.map(os => `${os} was selected for this partition, and its files are not here`),
    ]
  }

  /** Why there is no global configuration here yet, where there is to be one; undefined where there is, or this partition never asked to take part. */
  whyUnconfigured(): string | undefined {
    if (this.#core.configuration.content || !this.#options.settings.join) return undefined
    const { problem } = this.#enrolment
    return problem === undefined
      ? 'the global configuration has not come here yet'
      : `this partition is not part of the federation yet: ${problem}`
  }

  logHasGrown(lastSeq: number): void {
    this.#busDoor?.logHasGrown(lastSeq)
  }

  /** Opens the doors on the bus; where there is none yet, asks to be accepted for as long as it takes, and does not wait for it. */
  takePart(speaker: Speaker): void {
    const { own, settings } = this.#options
    own('bus door', () => this.#busDoor?.close())
    own('configuration door', () => this.#configurationDoor?.close())
    if (this.#bus) this.#openDoors(this.#bus, speaker)
    else if (settings.join) this.#join(settings.join, speaker)
  }

  #openDoors(bus: Bus, speaker: Speaker): void {
    this.#busDoor = openBusDoor({ core: this.#core, bus, ...speaker, log: this.#options.log })
    this.#configurationDoor = openConfigurationDoor({ core: this.#core, bus })
  }

  #join(settings: JoinSettings, speaker: Speaker): void {
    const { url, token } = settings
    const { log, own } = this.#options
    const leaving = new AbortController()
    const application = { connect: () => frontOf(settings), front: url, token, version: speaker.version, url: speaker.url }
    const joined = this.#enrolment.accepted(application, leaving.signal).then(async accepted => {
      if (!accepted || leaving.signal.aborted) return
      this.#core.configuration.trust(accepted.configKeys)
      this.#bus = await this.#connect(busOf(accepted))
      if (!leaving.signal.aborted) this.#openDoors(this.#bus, speaker)
    })
    joined.catch(error =>
      log.error({ err: error }, 'this partition was accepted, but cannot take part; it tries again when it is started again'),
    )
    own('enrolment', async () => {
      leaving.abort()
      await joined.catch(() => undefined) // logged above
    })
  }

  #connect(nats: NonNullable<PartitionSettings['nats']> & { ca?: string | undefined; onRefusal?: 'retry' }): Promise<Bus> {
    const { settings, log } = this.#options
    return connectNats({
      ...nats,
      ca: settings.natsCa ?? nats.ca,
      inbox: inboxOf({ kind: 'partition', name: settings.partition }),
      name: `partition ${settings.partition} replica ${settings.replica}`,
      log,
    })
  }
}

/** The front to ask, believed as the settings say. A fingerprint is that of a certificate which the front itself shows. */
async function frontOf({ url, ca, fingerprint }: JoinSettings): Promise<Client> {
  if (fingerprint === undefined) return createClient({ url, fetch: plainFetch(ca) })
  try {
    return createClient({ url, fetch: plainFetch(await authorityOf(url, fingerprint)) })
  } catch (error) {
    if (!(error instanceof AuthorityError) || error.hint === undefined) throw error
    throw new Error(`${error.message}; correct MUSTER_JOIN_FINGERPRINT: ${error.hint}`, { cause: error })
  }
}

function busOf({ natsUrl: url, natsCa: ca, nkey }: Membership) {
  // The broker may learn of an accepted partition later than it does, and a retired one goes on by itself.
  return { url, ca, nkey, token: undefined, onRefusal: 'retry' as const }
}
