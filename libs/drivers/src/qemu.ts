/** The QEMU driver, for the lab: a virtual machine that is a process beside the server, switched over QMP and started by a command. */
import { z } from 'zod'
import { runProgram } from './child.ts'
import type { PowerDriver } from './driver.ts'
import { type Endpoint, endpointOf, parseEndpoint } from './endpoint.ts'
import { Failure } from './failure.ts'
import { excerpt } from './http.ts'
import { NotRunning, type QmpCommand, qmp } from './qmp.ts'
import { openSwitch, type Turn } from './turns.ts'

/** A comma would end the value in QEMU's option; the kernel takes 107 bytes. */
const pathPattern = /^\/[A-Za-z0-9_.+/-]{1,106}$/

const settings = z.strictObject({
  qmp: z
    .string()
    .refine(text => pathPattern.test(text) || parseEndpoint(text) !== undefined, 'neither the path of a socket nor host:port')
    .describe('Where QEMU’s QMP listens: path of a unix socket, or host:port. It asks for no password: let only the server reach it'),
  start: z
    .array(
      z
        .string()
        .max(4096)
        .refine(text => !text.includes('\0'), 'holds a zero byte'),
    )
    .min(1)
    .max(500)
    .refine(([program]) => /^(\/[A-Za-z0-9_.+/-]+\/)?qemu-system-[a-z0-9_]+$/.test(program ?? ''), 'the program must be a qemu-system-…')
    .refine(words => !words.some(word => /^--?(qmp|daemonize)$/.test(word)), 'leave out -qmp and -daemonize: the driver adds them')
    .optional()
    .describe(
      'Command that starts QEMU on the partition’s server, a word per entry, no shell, without -qmp and -daemonize. Without it a machine turned off stays off',
    ),
})

type QemuSettings = z.output<typeof settings>

/** QEMU answers in milliseconds unless its disk stalls. */
const qmpMs = 5000
/** Until QEMU has set up the machine and gone into the background. */
const startMs = 20_000

/** Run states (qapi/run-state.json) in which no guest runs: one not begun, one that has powered off under -no-shutdown. */
const offStates: readonly string[] = ['prelaunch', 'shutdown']

const status = z.object({ status: z.string() })

export const qemu: PowerDriver<typeof settings> = {
  type: 'qemu',
  title: 'QEMU on this server, for the lab',
  place: 'lab',
  settings,
  secrets: [],
  open(given, context = {}) {
    const orders = {
      power: async (turn: Turn) => (isOn(await runState(turn, given)) ? ('on' as const) : ('off' as const)),
      on: (turn: Turn) => turnOn(turn, given),
      off: async (turn: Turn, how: 'hard' | 'soft') => {
        const state = await runState(turn, given)
        if (state === 'gone' || (how === 'soft' && !isOn(state))) return
        if (how === 'hard') await quit(turn, given)
        else await unlessGone(ask(turn, given, 'system_powerdown'))
      },
      reset: async (turn: Turn) => {
        if (isOn(await runState(turn, given))) await ask(turn, given, 'system_reset')
        else await turnOn(turn, given)
      },
    }
    // Without a start command quitting would be for ever; a reset makes all of the machine anew but its memory.
    return openSwitch({ target: `qemu ${given.qmp}`, context, orders: given.start ? orders : { ...orders, cycle: orders.reset } })
  },
}

const isOn = (state: string) => state !== 'gone' && !offStates.includes(state)

/** QEMU's own word, or `gone` when no QEMU runs. */
async function runState(turn: Turn, given: QemuSettings): Promise<string> {
  const answer = await unlessGone(ask(turn, given, 'query-status'))
  if (answer === 'gone') return answer
  const read = status.safeParse(answer)
  if (read.success) return read.data.status
  throw new Failure({ kind: 'protocol', got: 'query-status returned no status', hint: 'Check qmp: is it QEMU that listens there?' })
}

/** Ends QEMU and waits until it is gone: an order that found it on its way out would take the machine for running. */
async function quit(turn: Turn, given: QemuSettings): Promise<void> {
  await unlessGone(ask(turn, given, 'quit'))
  for (let look = 0; look < quitLooks.count; look++) {
    if ((await runState(turn, given).catch(breakingOff)) === 'gone') return
    await turn.pause(quitLooks.pauseMs, 'unknown')
  }
  throw new Failure({
    kind: 'silent',
    got: `quit was accepted, but QEMU still runs after ${(quitLooks.count * quitLooks.pauseMs) / 1000} s`,
    hint: 'QEMU may be writing to a disk that stalls. Observe the power state, or end the process by hand.',
    outcome: 'unknown',
  })
}

const quitLooks = { count: 100, pauseMs: 50 }

/** A QEMU that ends drops whoever has just connected: no answer is none here. */
function breakingOff(error: unknown): 'ending' {
  if (error instanceof Failure && error.facts.kind === 'silent') return 'ending'
  throw error
}

async function turnOn(turn: Turn, given: QemuSettings): Promise<void> {
  const state = await runState(turn, given)
  if (isOn(state)) return
  if (state === 'gone') return start(turn, given)
  if (state === 'shutdown') await ask(turn, given, 'system_reset')
  await ask(turn, given, 'cont')
}

async function start(turn: Turn, given: QemuSettings): Promise<void> {
  const [program, ...words] = given.start ?? []
  if (program === undefined) {
    throw new Failure({
      kind: 'unsupported',
      got: 'QEMU does not run, and no start command is set',
      hint: 'Start it by hand, or set start to the command that does.',
    })
  }
  const where = given.qmp.startsWith('/') ? `unix:${given.qmp}` : `tcp:${given.qmp}`
  const ended = await runProgram(turn, {
    name: program,
    arguments: [...words, '-qmp', `${where},server=on,wait=off`, '-daemonize'],
    limitMs: startMs,
    outcome: 'unknown',
    installHint: 'Install QEMU on the partition’s server (Debian: qemu-system-x86), or correct the first word of start.',
  })
  if (ended.code === 0) return
  const said = excerpt(ended.stderr, [])
  throw new Failure({
    kind: 'refused',
    got: `${program} ended with ${ended.code ?? 'a signal'}${said && `: ${said}`}`,
    hint: 'Correct start; try the same command by hand on the partition’s server.',
  })
}

function ask(turn: Turn, given: QemuSettings, execute: QmpCommand['execute']): Promise<unknown> {
  const where: { path: string } | Endpoint = given.qmp.startsWith('/') ? { path: given.qmp } : endpointOf(given.qmp)
  return qmp(turn, where, { execute, limitMs: qmpMs }).catch(error => {
    if (!(error instanceof NotRunning) || execute === 'query-status' || execute === 'quit') throw error
    throw new Failure({ kind: 'refused', got: `QEMU ended before ${execute}`, hint: 'Observe the power state and try again.' })
  })
}

/** `gone` in place of NotRunning, which is an answer where the question is whether it runs. */
function unlessGone<T>(answer: Promise<T>): Promise<T | 'gone'> {
  return answer.catch(error => {
    if (error instanceof NotRunning) return 'gone'
    throw error
  })
}
