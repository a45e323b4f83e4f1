// The log: one JSON object per line on stderr. Secrets are masked by the name of their field, wherever it stands, and by their form in texts.
import { pino } from 'pino'

export type Log = pino.Logger
export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof logLevels)[number]

/** Names of fields whose value is never printed. `kg` is IPMI's BMC key. Digests and keys' names are secrets to us as well. */
const secretName = /^(?:kg|cookie|set-cookie|x-auth-token)$|authorization|passw(?:or)?d|secret|token|private_?key|api_?key/i

/** A copy of `value` in which secret fields read `***`. Class instances (errors, secrets, dates) are left to their own ways of printing. */
export function masked(value: unknown, depth = 0): unknown {
  // Deeper than eight levels nobody reads a log line, and a cycle ends.
  if (depth > 8) return '…'
  if (Array.isArray(value)) return value.map(item => masked(item, depth + 1))
  if (typeof value !== 'object' || value === null) return value
  const prototype = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) return value
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, secretName.test(name) && item != null ? '***' : masked(item, depth + 1)]),
  )
}

/** Masks what looks like a secret inside a text: a bearer token, the password of a URL, and the token that a broker's URL has for a user. */
export function maskedText(text: string): string {
  return text
    .replace(/\b(Bearer|Basic)\s+[\w.~+/=-]+/gi, '$1 ***')
    .replace(/(\w:\/\/[^\s/:@"]*):[^\s/@"]+@/g, '$1:***@')
    .replace(/\b(nats|tls|wss?):\/\/[^\s/:@"]+@/g, '$1://***@')
}

/** An error as a line shows it: never its other fields, where drivers keep parameters of queries and whole requests. */
function printableError(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { message: String(error) }
  const { code } = error as { code?: unknown }
  return {
    type: error.name,
    message: error.message,
    ...(typeof code === 'string' && { code }),
    stack: error.stack,
    ...(error.cause !== undefined && { cause: printableError(error.cause) }),
  }
}

/**
 * Opens the log of a process. `name` is the server's (`front`, `lon1`). Written synchronously: a line that explains a crash must be out
 * before the process is.
 */
export function createLog(options: { level: LogLevel; name: string; destination?: pino.DestinationStream }): Log {
  return pino(
    {
      level: options.level,
      base: { name: options.name, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: {
        level: label => ({ level: label }),
        log: facts => masked(facts) as Record<string, unknown>,
      },
      serializers: { err: printableError, error: printableError },
      hooks: { streamWrite: maskedText },
    },
    options.destination ?? pino.destination({ dest: 2, sync: true }),
  )
}
