// Who may come to the bus, for the nats-server beside this front: its `authorization`, written anew when a partition is accepted or retired, and the server told to
// read it again. Needed where partitions enrol; who sets up the broker by hand uses `muster nats config`.
import { readFile, rename, writeFile } from 'node:fs/promises'
import { brokerConfiguration } from '@muster/shared/bus/permissions'
import type { Documents } from '@muster/shared/global/documents'

export interface BrokerFileOptions {
  /** What nats-server's configuration includes. */
  readonly file: string
  /** The file with the process id of nats-server (its `pid_file`); undefined: somebody else reloads it. */
  readonly pidFile: string | undefined
  /** Public halves of the fronts' nkeys, this one's among them. */
  readonly fronts: readonly string[]
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
}

/** The text for nats-server. */
export function brokerText(fronts: readonly string[], partitions: Documents['partition']): string {
  const parties = [
    ...fronts.map(publicKey => ({ party: { kind: 'front' as const }, publicKey })),
    ...Object.entries(partitions)
      .filter(([, { status }]) => status === 'accepted')
      .map(([name, { natsKey }]) => ({ party: { kind: 'partition' as const, name }, publicKey: natsKey })),
  ]
  return brokerConfiguration(parties)
}

export class BrokerFile {
  readonly #options: BrokerFileOptions
  #turn: Promise<void> = Promise.resolve()

  constructor(options: BrokerFileOptions) {
    this.#options = options
  }

  /** Brings the file to what the documents say. One after the other; what cannot be done is logged, and tried again with the next change. */
  write(documents: Documents): Promise<void> {
    this.#turn = this.#turn
      .then(() => this.#write(documents))
      .catch(error => {
        this.#options.log.warn({ err: error, file: this.#options.file }, 'the broker could not be told who may come in')
      })
    return this.#turn
  }

  async #write({ partition }: Documents): Promise<void> {
    const { file, pidFile, fronts, log } = this.#options
    const text = brokerText(fronts, partition)
    const before = await readFile(file, 'utf8').catch(() => undefined)
    if (before === text) return
    await writeFile(`${file}.new`, text, { mode: 0o600 })
    await rename(`${file}.new`, file)
    if (pidFile === undefined) return
    // nats-server reads its configuration again on SIGHUP.
    process.kill(Number((await readFile(pidFile, 'utf8')).trim()), 'SIGHUP')
    log.info({ file }, 'the broker was told who may come in')
  }
}
