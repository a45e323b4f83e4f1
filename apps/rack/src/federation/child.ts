// A server of the federation as a child process: started, watched, stopped, and (for tests) killed, frozen and brought back. It never outlives us.
import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream, mkdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { deathTie } from '@muster/embedded/death-tie'

export interface ChildOptions {
  /** As people read it: `partition p1`. */
  name: string
  /** The program's file and its arguments; it runs under our own Node. */
  program: URL
  args?: readonly string[]
  env?: Readonly<Record<string, string>>
  /** Its standard error goes to `<logs>/<name>.log`. */
  logs: string
  /** Resolves when the server is of use; rejects never, it is asked again. Given a line of standard output each time one comes. */
  isReady: (lines: readonly string[]) => Promise<boolean>
  startLimitMs?: number
  /** Called when the process ends without having been asked to. */
  onLoss?: (child: Child, how: string) => void
}

const defaultStartLimitMs = 30_000
/** A server drains for at most 10 s and stops its parts; longer means that it hangs. */
const stopLimitMs = 15_000
const keptOutputLines = 50
/** Node's own place. Named before it starts it holds for the first file too: otherwise each start loads the stripper of types, a fifth of its time. */
const compileCache = path.join(tmpdir(), 'node-compile-cache')

export class Child {
  readonly name: string
  readonly #options: ChildOptions
  #process: ChildProcess | undefined
  #isWanted = false
  #hasStarted = false

  constructor(options: ChildOptions) {
    this.name = options.name
    this.#options = options
  }

  get pid(): number | undefined {
    return this.#process?.pid
  }

  get isRunning(): boolean {
    return this.#process !== undefined && this.#process.exitCode === null && this.#process.signalCode === null
  }

  /** Starts it and waits until it is ready. Throws with where its log is when it ends or is not ready in time. */
  async start(): Promise<void> {
    const options = this.#options
    const lines: string[] = []
    const log = path.join(options.logs, `${this.name.replaceAll(' ', '-')}.log`)
    mkdirSync(options.logs, { recursive: true })
    const output = createWriteStream(log, { flags: 'a', mode: 0o600 })
    const [command, ...args] = [...deathTie('TERM'), process.execPath, options.program.pathname, ...(options.args ?? [])]
    this.#isWanted = true
    const child = spawn(command as string, args, {
      // Our own group: Ctrl-C is for us alone, we stop them in order.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { NODE_COMPILE_CACHE: compileCache, ...process.env, ...options.env },
    })
    this.#process = child
    child.stderr.pipe(output)
    createInterface({ input: child.stdout }).on('line', line => {
      lines.push(line)
      if (lines.length > keptOutputLines) lines.shift()
    })
    child.once('error', error => output.write(`${error.message}\n`))
    child.once('exit', (code, signal) => {
      if (this.#isWanted && this.#process === child && this.#hasStarted) options.onLoss?.(this, signal ?? `exit code ${code}`)
    })
    this.#hasStarted = false
    const until = Date.now() + (options.startLimitMs ?? defaultStartLimitMs)
    while (!(await options.isReady(lines).catch(() => false))) {
      if (!this.isRunning) throw new Error(`${this.name} ended while it started; its log is ${log}`)
      if (Date.now() > until) {
        // The next start must not meet it on the same port.
        await this.kill()
        throw new Error(`${this.name} was not ready in time; its log is ${log}`)
      }
      await sleep(30)
    }
    this.#hasStarted = true
  }

  /** Asks it to stop and waits; one that does not is killed. Idempotent. */
  async stop(): Promise<void> {
    this.#isWanted = false
    if (!this.isRunning) return
    this.signal('SIGCONT')
    this.signal('SIGTERM')
    const limit = setTimeout(() => this.signal('SIGKILL'), stopLimitMs)
    await this.#ended()
    clearTimeout(limit)
  }

  /** kill -9: nothing is said, nothing is finished. */
  async kill(): Promise<void> {
    this.#isWanted = false
    if (!this.isRunning) return
    this.signal('SIGKILL')
    await this.#ended()
  }

  signal(signal: NodeJS.Signals): void {
    if (this.isRunning) this.#process?.kill(signal)
  }

  #ended(): Promise<void> {
    return new Promise(resolve => {
      if (!this.isRunning) resolve()
      else this.#process?.once('exit', () => resolve())
    })
  }
}
