// Starts the parts of a front in order. Loaded after the compile cache is on.
import { readFileSync } from 'node:fs'
import { connectNats } from '@muster/server/bus/nats-bus'
import { ConfigError, keyBytes, limitsOf, tlsOf } from '@muster/server/config'
import { tokensOfAll } from '@muster/server/global/people'
import { createSharedSealer } from '@muster/server/global/sealed'
import { createSigner } from '@muster/server/global/signature'
import { startDoor } from '@muster/server/http/door'
import { createLog, type Log } from '@muster/server/log'
import { runMain } from '@muster/server/process'
import { openTokens } from '@muster/server/tokens'
import { inboxOf } from '@muster/shared/bus/permissions'
import { fromSeed } from '@nats-io/nkeys'
import { type FrontSettings, frontConfig } from './config.ts'
import { createFront, type FrontOptions } from './front.ts'
import { BrokerFile } from './global/broker-file.ts'
import { type FirstTokenPlace, makeFirstAdmin } from './global/first-admin.ts'

/** The bus is given little time before the doors open: a front without it says what is wrong, and a new one serves within two seconds. */
const busWaitMs = 500

/** Runs a front until the process is asked to end. */
export async function start(environment: Readonly<Record<string, string | undefined>>): Promise<void> {
  const { settings, lines, unknown } = readConfig(environment)
  const { name, partitions } = settings
  const log = createLog({ level: settings.logLevel, name })
  log.info({ settings: lines }, 'settings in force')
  if (unknown.length > 0) log.warn({ unknown }, 'settings that a front does not know')
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }

  await runMain({
    log,
    start: async own => {
      const tokens = settings.tokensFile === undefined ? undefined : openTokens({ file: settings.tokensFile, log })
      if (tokens) own('tokens', tokens.close)
      const bus = await connectNats({
        url: settings.natsUrl,
        token: settings.natsToken?.reveal(),
        credentials: settings.natsCredentials?.reveal(),
        nkey: settings.natsNkey?.reveal(),
        ca: settings.natsCa,
        inbox: inboxOf({ kind: 'front' }),
        name: `front ${name}`,
        log,
        firstWaitMs: busWaitMs,
      })
      own('bus', () => bus.close())
      const global = globalOf(settings)
      const broker = brokerOf(settings, log)
      const front = createFront({ name, version, bus, accepted: partitions, log, global, broker })
      own('front', () => front.stop())
      if (global)
        log.info(
          { publicKey: global.signer.publicKey },
          'the global configuration is signed with this key: MUSTER_CONFIG_PUBLIC_KEY of the partitions',
        )
      if (!partitions) log.warn({}, 'MUSTER_PARTITIONS is not set: every partition that makes itself heard takes part')
      const { backend, audit, presence } = front
      const door = await startDoor({
        backend,
        audit,
        tokens: tokensOfAll([...(tokens ? [tokens] : []), front.tokens]),
        log,
        version,
        port: settings.port,
        tls: tlsOf(settings),
        ...limitsOf(settings),
        host: settings.host,
        health: () => ({ bus: bus.describe(), partitions: presence.known().length }),
      })
      own('door', door.close)
      if (front.home && !tokens) {
        const stopping = new AbortController()
        const made = makeFirstAdmin({ home: front.home, place: placeOf(settings), log, signal: stopping.signal })
        own('first admin', async () => {
          stopping.abort()
          await made
        })
      }
    },
  })
}

/** Standard output is a terminal, or it is kept by somebody: then a token has no business there. */
function placeOf({ firstTokenFile: file }: FrontSettings): FirstTokenPlace {
  if (file !== undefined) return { kind: 'file', file }
  return process.stdout.isTTY ? { kind: 'terminal', write: text => void process.stdout.write(text) } : { kind: 'none' }
}

function globalOf(settings: FrontSettings): FrontOptions['global'] {
  if (settings.configKey === undefined) return undefined
  return {
    databaseUrl: settings.globalDatabaseUrl?.reveal(),
    signer: createSigner(settings.configKey.reveal()),
    trustedKeys: settings.configKeys,
    keepAuditMs: settings.keepAudit,
    natsUrl: settings.natsPublicUrl ?? settings.natsUrl,
    natsCa: settings.natsCa,
    sealer: settings.sharedKey && createSharedSealer(keyBytes(settings.sharedKey.reveal())),
  }
}

/** Throws ConfigError where this front would lock itself out. */
function brokerOf(settings: FrontSettings, log: Log): BrokerFile | undefined {
  const { brokerFile: file, brokerPidFile: pidFile, brokerFronts, natsNkey } = settings
  if (file === undefined) return undefined
  if (natsNkey === undefined)
    throw new Error('MUSTER_NATS_AUTHORIZATION_FILE is set, but not NATS_NKEY: this front would lock itself out of the bus')
  const own = fromSeed(new TextEncoder().encode(natsNkey.reveal())).getPublicKey()
  return new BrokerFile({ file, pidFile, fronts: [...new Set([own, ...brokerFronts])], log })
}

function readConfig(environment: Readonly<Record<string, string | undefined>>) {
  try {
    return frontConfig(environment)
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exit(1)
  }
}
