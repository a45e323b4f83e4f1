/** One command of the QEMU Machine Protocol (docs/interop/qmp-spec.rst): greeting, capabilities, command, answer, good-bye. */
import { connect, type Socket } from 'node:net'
import { z } from 'zod'
import type { Endpoint } from './endpoint.ts'
import { Failure } from './failure.ts'
import { excerpt } from './http.ts'
import type { Turn } from './turns.ts'

export interface QmpCommand {
  execute: 'query-status' | 'system_powerdown' | 'system_reset' | 'cont' | 'quit'
  /** Greeting to answer. */
  limitMs: number
}

/** Nothing listens: QEMU does not run. */
export class NotRunning extends Error {
  override readonly name = 'NotRunning'
}

/** A line is one message; those of the commands used here have a few hundred bytes. */
const lineMax = 262_144

const line = z.looseObject({
  QMP: z.unknown().optional(),
  event: z.string().optional(),
  id: z.unknown().optional(),
  return: z.unknown().optional(),
  error: z.object({ class: z.string(), desc: z.string() }).optional(),
})

/** What the command returned. Throws NotRunning where nothing listens, Failure for everything else. */
export async function qmp(turn: Turn, where: { path: string } | Endpoint, command: QmpCommand): Promise<unknown> {
  const limit = AbortSignal.timeout(command.limitMs)
  const signal = AbortSignal.any([turn.signal, limit])
  const isOrder = command.execute !== 'query-status'
  let sent = false
  const outcome = () => (isOrder && sent ? 'unknown' : 'none')
  const socket = connect(where)
  const abort = () => socket.destroy(signal.reason)
  signal.addEventListener('abort', abort, { once: true })
  if (signal.aborted) abort()
  try {
    return await converse(socket, command, () => {
      sent = true
    })
  } catch (error) {
    if (error instanceof Failure) throw error
    if (turn.signal.aborted) throw turn.stopped(outcome())
    if (limit.aborted) throw silent(`no answer within ${command.limitMs / 1000} s`, outcome())
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ECONNREFUSED') throw new NotRunning(code)
    throw silent(`the connection failed (${code ?? message})`, outcome())
  } finally {
    signal.removeEventListener('abort', abort)
    socket.destroy()
  }
}

async function converse(socket: Socket, { execute }: QmpCommand, sending: () => void): Promise<unknown> {
  for await (const text of lines(socket)) {
    const message = line.safeParse(parsed(text)).data
    if (!message) throw nonsense(text)
    if (message.QMP !== undefined) socket.write('{"execute":"qmp_capabilities","id":"hello"}\n')
    else if (message.error) throw refused(execute, message.error)
    else if (message.event !== undefined) continue
    else if (message.id === 'hello') {
      sending()
      socket.write(`${JSON.stringify({ execute, id: 'order' })}\n`)
    } else if (message.id === 'order') return message.return
  }
  // QEMU may be gone before its answer to this one is.
  if (execute === 'quit') return undefined
  throw new Error('closed by QEMU')
}

async function* lines(socket: Socket): AsyncGenerator<string> {
  let rest = ''
  socket.setEncoding('utf8')
  for await (const chunk of socket as AsyncIterable<string>) {
    const [...parts] = (rest + chunk).split('\n')
    rest = parts.pop() ?? ''
    if (rest.length > lineMax) throw nonsense(rest)
    yield* parts.filter(part => part.trim() !== '')
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // No JSON is no message.
    return undefined
  }
}

function nonsense(text: string): Failure {
  return new Failure({
    kind: 'protocol',
    got: `"${excerpt(text, [])}" is not QMP`,
    hint: 'Check qmp: does QEMU itself listen there, in mode control?',
  })
}

function refused(execute: string, error: { class: string; desc: string }): Failure {
  const kind = error.class === 'CommandNotFound' ? 'unsupported' : 'refused'
  return new Failure({
    kind,
    got: `QEMU answered ${execute} with ${error.class} (${excerpt(error.desc, [])})`,
    hint: 'QEMU is in a state or version that does not allow it.',
  })
}

function silent(got: string, outcome: 'none' | 'unknown'): Failure {
  return new Failure({
    kind: 'silent',
    got,
    outcome,
    hint: 'QMP serves one client at a time: does another one hold it? Observe the power state before trying again.',
  })
}
