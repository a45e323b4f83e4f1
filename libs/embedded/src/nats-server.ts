// A nats-server from PATH as our child, and the choice between the three brokers a federation can have.

import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { embeddedBroker } from '@muster/shared/bus/bus'
import { startBroker } from './broker.ts'
import { deathTie } from './death-tie.ts'
import { findProgram } from './find-program.ts'

export interface RunningBroker extends AsyncDisposable {
  /** Without the token. */
  readonly url: string
  readonly token?: string
  /** For logs and /healthz: `embedded (single host, core NATS only)`, `nats-server at nats://…`, `nats://… (NATS_URL)`. */
  describe(): string
  /** Ends what was started; a broker of somebody else's is left alone. Idempotent. */
  stop(): Promise<void>
}

export interface NatsServer extends RunningBroker {
  readonly token: string
  readonly port: number
  readonly pid: number
}

const startLimitMs = 10_000
const stopLimitMs = 5_000

/** The nats-server on PATH, or undefined. */
export function findNatsServer(): string | undefined {
  return findProgram('nats-server')
}

/**
 * Starts nats-server on loopback with a token, its files in `dir` (mode 0700: the configuration holds the token). It dies with us.
 * Throws when there is none on PATH, or with the end of its log when it does not come up within 10 s.
 */
export async function startNatsServer(options: {
  dir: string
  port?: number
  token?: string
  /** Called when it ends without having been asked to. */
  onLoss?: (how: string) => void
}): Promise<NatsServer> {
  const program = findNatsServer()
  if (!program) throw new Error('no nats-server on PATH')
  const { dir } = options
  const token = options.token ?? randomBytes(32).toString('base64url')
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  chmodSync(dir, 0o700)
  const config = path.join(dir, 'nats.conf')
  const logFile = path.join(dir, 'nats.log')
  // JSON is valid nats-server configuration, and quotes for us. Port -1: any free one, reported in the ports file.
  const settings = { listen: `127.0.0.1:${options.port ?? -1}`, authorization: { token }, max_payload: 1024 * 1024, ports_file_dir: dir }
  writeFileSync(config, JSON.stringify(settings, null, 2), { mode: 0o600 })

  const tie = deathTie('TERM')
  const logFd = openSync(logFile, 'a', 0o600)
  // A session of its own, as for PostgreSQL: Ctrl-C is for us, who end it after our own last message.
  const child = spawn(tie[0] ?? program, [...tie.slice(1), ...(tie.length ? [program] : []), '-c', config], {
    stdio: ['ignore', logFd, logFd],
    detached: true,
  })
  closeSync(logFd)
  child.unref()
  let ended: string | undefined
  const end = new Promise<void>(resolve => {
    child.once('error', error => {
      ended = error.message
      resolve()
    })
    child.once('exit', (code, signal) => {
      ended = `it ended with ${signal ?? `code ${code}`}`
      resolve()
    })
  })

  const port = await untilListening(path.join(dir, `${path.basename(program)}_${child.pid}.ports`), () => ended).catch(error => {
    child.kill('SIGKILL')
    const tail = existsSync(logFile) ? readFileSync(logFile, 'utf8').split('\n').slice(-8).join('\n') : ''
    throw new Error(`nats-server did not start in ${dir}: ${error instanceof Error ? error.message : error}\n${tail}`)
  })
  const endWithUs = () => child.kill('SIGTERM')
  process.once('exit', endWithUs)
  let stopping: Promise<void> | undefined
  void end.then(() => {
    if (!stopping) options.onLoss?.(ended as string)
  })

  const server: NatsServer = {
    url: `nats://127.0.0.1:${port}`,
    token,
    port,
    pid: child.pid as number,
    describe: () => `nats-server at nats://127.0.0.1:${port}`,
    stop: () => {
      stopping ??= endChild().finally(() => process.off('exit', endWithUs))
      return stopping
    },
    [Symbol.asyncDispose]: () => server.stop(),
  }
  return server

  async function endChild(): Promise<void> {
    if (ended) return
    child.ref() // from here on its end is worth staying alive for
    child.kill('SIGTERM')
    await Promise.race([end, sleep(stopLimitMs, undefined, { ref: false })])
    if (ended) return
    child.kill('SIGKILL')
    await end
  }
}

/** Where a nats-server listens: it writes `nats-server_<pid>.ports` once it does, {"nats": ["nats://127.0.0.1:41234"], …}; with TLS, `tls://…`. Undefined before that. */
export function natsUrlIn(portsFile: string): string | undefined {
  return /"nats":\s*\[\s*"((?:nats|tls):\/\/[^"]*:\d+)"/.exec(existsSync(portsFile) ? readFileSync(portsFile, 'utf8') : '')?.[1]
}

async function untilListening(portsFile: string, ended: () => string | undefined): Promise<number> {
  const deadline = Date.now() + startLimitMs
  while (Date.now() < deadline) {
    const problem = ended()
    if (problem) throw new Error(problem)
    const url = natsUrlIn(portsFile)
    if (url) return Number(new URL(url).port)
    await sleep(10)
  }
  throw new Error(`it did not listen within ${startLimitMs / 1000} s`)
}

/**
 * The broker a federation on this host should use: the one of `url` (NATS_URL), else a nats-server on PATH, else the embedded one,
 * which refuses production. `dir` holds a nats-server's files. Every choice is logged, because it decides what survives.
 */
export async function startAnyBroker(options: {
  url?: string | undefined
  token?: string | undefined
  dir: string
  log: (line: string) => void
  env?: NodeJS.ProcessEnv
}): Promise<RunningBroker> {
  const broker = await chooseBroker(options)
  options.log(`broker=${broker.describe()}`)
  return broker
}

async function chooseBroker(options: Parameters<typeof startAnyBroker>[0]): Promise<RunningBroker> {
  const { url, token, dir, log } = options
  if (url) {
    const stop = async () => {}
    // Its credentials, if any, stay out of logs.
    const shown = url.replace(/\/\/[^/@]*@/, '//')
    return { url, ...(token ? { token } : {}), describe: () => `${shown} (NATS_URL)`, stop, [Symbol.asyncDispose]: stop }
  }
  if (findNatsServer()) return startNatsServer({ dir, ...(token ? { token } : {}) })
  const broker = await startBroker({ log, ...(token ? { token } : {}), ...(options.env ? { env: options.env } : {}) })
  return {
    url: broker.url,
    token: broker.token,
    describe: () => embeddedBroker.description,
    stop: () => broker.close(),
    [Symbol.asyncDispose]: () => broker.close(),
  }
}
