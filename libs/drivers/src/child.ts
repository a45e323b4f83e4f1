/** A program of somebody else's, run to its end or killed: never through a shell, never for longer than its limit. */
import { spawn } from 'node:child_process'
import { Failure } from './failure.ts'
import type { Turn } from './turns.ts'

export interface Program {
  name: string
  arguments: readonly string[]
  /** From its start to its end. */
  limitMs: number
  /** What is known if it is killed. */
  outcome: 'none' | 'unknown'
  /** For who has not got it. */
  installHint: string
}

export interface Ended {
  /** Null when a signal ended it. */
  code: number | null
  stdout: string
  stderr: string
}

/** Beyond this, output is not kept. */
const outputMax = 65_536
/** From the end of the program to the end of its output, which is there already. */
const lingerMs = 1000

/** Runs the program. Throws Failure where it cannot be started, is too slow, or the turn stops. */
export function runProgram(turn: Turn, program: Program): Promise<Ended> {
  const { name, limitMs, outcome } = program
  return new Promise((resolve, reject) => {
    if (turn.signal.aborted) return reject(turn.stopped('none'))
    const child = spawn(name, program.arguments, { stdio: ['ignore', 'pipe', 'pipe'] })
    let late = false
    let lingering: NodeJS.Timeout | undefined
    const kill = () => child.kill('SIGKILL')
    const timer = setTimeout(() => {
      late = true
      kill()
    }, limitMs)
    turn.signal.addEventListener('abort', kill, { once: true })
    const output = { stdout: '', stderr: '' }
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8')
      child[stream].on('data', (text: string) => {
        output[stream] = (output[stream] + text).slice(0, outputMax)
      })
    }
    const settle = (end: () => void) => {
      clearTimeout(timer)
      clearTimeout(lingering)
      turn.signal.removeEventListener('abort', kill)
      end()
    }
    const finish = () =>
      settle(() => {
        child.stdout.destroy()
        child.stderr.destroy()
        if (turn.signal.aborted) reject(turn.stopped(outcome))
        else if (late) reject(tooSlow(program))
        else resolve({ code: child.exitCode, ...output })
      })
    child.once('error', error => settle(() => reject(cannotStart(program, error))))
    child.once('close', finish)
    // A process left behind may hold the pipes open for ever; what was written before the end is read by then.
    child.once('exit', () => {
      lingering = setTimeout(finish, lingerMs)
    })
  })
}

function cannotStart({ name, installHint }: Program, error: NodeJS.ErrnoException): Failure {
  return new Failure({
    kind: 'unsupported',
    got: `${name} cannot be started (${error.code ?? error.message})`,
    hint: installHint,
    cause: error,
  })
}

function tooSlow({ name, limitMs, outcome }: Program): Failure {
  return new Failure({
    kind: 'silent',
    got: `${name} was not done within ${limitMs / 1000} s`,
    outcome,
    hint: 'The far end is slow or gone. After an order, observe the power state before trying again.',
  })
}
