// A serial console at a terminal, or at a pipe: what is typed goes to the machine, what the machine writes comes here.
import { setTimeout as sleep } from 'node:timers/promises'
import type { SerialConsole } from '@muster/drivers/driver'
import type { Cli } from '../cli.ts'

/** What a key sequence asks for, and what is to be sent. */
export interface Typed {
  readonly send: Buffer
  readonly asks: 'nothing' | 'break' | 'close'
}

const tilde = 0x7e
const enter = new Set([0x0d, 0x0a])

/** Follows the keys: after Enter, `~.` closes, `~B` sends a break, and `~~` is one tilde. As with cu, ssh and ipmitool. */
export class Escapes {
  #state: 'in a line' | 'after Enter' | 'after ~' = 'after Enter'

  /** Reads keys up to the first that asks for something; `rest` is what stands behind it. */
  read(keys: Buffer): Typed & { rest: Buffer } {
    const send: number[] = []
    for (const [index, key] of keys.entries()) {
      if (this.#state === 'after ~') {
        const rest = keys.subarray(index + 1)
        this.#state = 'after Enter'
        if (key === 0x2e) return { send: Buffer.from(send), asks: 'close', rest }
        if (key === 0x42) return { send: Buffer.from(send), asks: 'break', rest }
        if (key !== tilde) send.push(tilde)
        send.push(key)
      } else if (key === tilde && this.#state === 'after Enter') {
        this.#state = 'after ~'
        continue
      } else send.push(key)
      this.#state = enter.has(key) ? 'after Enter' : 'in a line'
    }
    return { send: Buffer.from(send), asks: 'nothing', rest: Buffer.alloc(0) }
  }
}

/** Runs until `~.`, the end of the input, Ctrl-C at a pipe, or the loss of the console, which is thrown as DriverError. */
export async function runConsole(cli: Cli, line: SerialConsole, { listenMs }: { listenMs: number }): Promise<void> {
  const { stdin, stdout } = cli
  const reading = (async () => {
    for await (const characters of line.output as AsyncIterable<Buffer>) {
      if (!stdout.write(characters)) await new Promise(resolve => stdout.once('drain', resolve))
    }
  })()
  const isTerminal = stdin.isTTY === true
  // Every key is the machine's, Ctrl-C too.
  if (isTerminal) stdin.setRawMode(true)
  try {
    await Promise.race([reading, typing(cli, line, { isTerminal, listenMs })])
  } finally {
    if (isTerminal) stdin.setRawMode(false)
    stdin.destroy()
    await line.close()
    // What had come before the end is still to be shown; a loss has been thrown already.
    await reading.catch(() => undefined)
  }
}

async function typing(cli: Cli, line: SerialConsole, { isTerminal, listenMs }: { isTerminal: boolean; listenMs: number }): Promise<void> {
  const escapes = new Escapes()
  for await (const keys of cli.stdin as AsyncIterable<Buffer | string>) {
    let rest = Buffer.from(keys)
    if (!isTerminal) {
      await line.write(rest)
      continue
    }
    while (rest.length > 0) {
      const typed = escapes.read(rest)
      await line.write(typed.send)
      if (typed.asks === 'close') return
      if (typed.asks === 'break') await line.sendBreak()
      rest = Buffer.from(typed.rest)
    }
  }
  await sleep(listenMs, undefined, { signal: cli.signal })
}
