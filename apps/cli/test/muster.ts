// Runs the real program as a child process, in an empty home of its own.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const main = fileURLToPath(new URL('../src/main.ts', import.meta.url))

export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface Home extends Disposable {
  readonly folder: string
  /** Runs `muster` to its end. */
  muster(words: readonly string[], options?: RunOptions): Promise<Ended>
  /** Starts `muster`, to be watched and interrupted. */
  start(words: readonly string[], options?: RunOptions): Running
}

export interface RunOptions {
  readonly env?: Record<string, string>
  readonly stdin?: string
  /** What runs it: a command that takes the program and its words, such as `ip netns exec NAME`. */
  readonly by?: readonly string[]
}

export interface Running {
  readonly pid: number
  readonly ended: Promise<Ended>
  /** Resolves once the output so far contains `text`. */
  seen(stream: 'stdout' | 'stderr', text: string): Promise<void>
  interrupt(): void
  /** Closes our end of its standard output, as `head` does. */
  closeStdout(): void
}

/** An empty home; `env` is what every run in it sees. */
export function aHome(env: Record<string, string> = {}): Home {
  const folder = mkdtempSync(join(tmpdir(), 'muster-cli-'))
  const start = (words: readonly string[], options: RunOptions = {}): Running => {
    const { PATH, NODE_COMPILE_CACHE } = process.env
    const [program, ...rest] = [...(options.by ?? []), process.execPath, main, ...words] as [string, ...string[]]
    const child = spawn(program, rest, {
      cwd: folder,
      env: { PATH, NODE_COMPILE_CACHE, HOME: folder, NO_COLOR: '1', ...env, ...options.env },
      stdio: ['pipe', 'pipe', 'pipe'],
    })
    const texts = { stdout: '', stderr: '' }
    const watchers = new Set<() => void>()
    for (const name of ['stdout', 'stderr'] as const)
      child[name].setEncoding('utf8').on('data', (text: string) => {
        texts[name] += text
        for (const watcher of watchers) watcher()
      })
    // A program that ends without reading its input closes the pipe under us.
    child.stdin.on('error', () => undefined)
    child.stdin.end(options.stdin ?? '')
    const ended = new Promise<Ended>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', code => resolve({ code, ...texts }))
    })
    return {
      pid: child.pid as number,
      ended,
      seen: (name, text) =>
        new Promise((resolve, reject) => {
          const look = () => {
            if (!texts[name].includes(text)) return
            watchers.delete(look)
            resolve()
          }
          watchers.add(look)
          ended.then(() => {
            look()
            reject(new Error(`ended without "${text}" on ${name}: ${texts.stdout}${texts.stderr}`))
          }, reject)
          look()
        }),
      interrupt: () => child.kill('SIGINT'),
      closeStdout: () => child.stdout.destroy(),
    }
  }
  return {
    folder,
    start,
    muster: (words, options) => start(words, options).ended,
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  }
}
