// How a failure is told: what was tried, what came back, what to do; with JSON output, the problem document. Always on stderr.

import { UnreachableError } from '@muster/shared/client'
import type { NoMatchExplanation } from '@muster/shared/contract/allocations'
import type { Coverage } from '@muster/shared/contract/call'
import { type ErrorCode, problemOf, Refusal } from '@muster/shared/errors'
import { type Distrust, distrustOf } from '@muster/shared/trust/distrust'
import { type Cli, type Format, remark } from '../cli.ts'
import { Attempted, CliError, Exit, type ExitName, exitOfError } from '../exit-codes.ts'
import { coverageText, ndjsonText } from './show.ts'
import { paint, printable } from './text.ts'

/** What a person can do about a refusal, where the server's own words do not say it. */
const hints: { readonly [code in ErrorCode]?: string } = {
  unauthenticated: 'log in with: muster login URL --user NAME, or --token-file FILE',
  forbidden: 'see who you are with: muster whoami',
  'not-found': 'see what there is with the list command of the same noun',
  'method-not-allowed': 'this muster and the server are of different releases',
  'wrong-state': 'see what is allowed and why with: muster machine explain ID',
  locked: 'lift the lock with: muster machine unlock ID',
  'machine-owned': 'release it first: muster machine release ID',
  'home-lost': 'fill the database of the fronts from a partition with: muster config refill (see --help for the other way round)',
  'newer-release': 'ask a front of the newer release, or set back to before it wrote with: muster config revert GENERATION',
  'stale-version': 'look at it again, then repeat the change',
  'no-match': 'loosen a constraint, or wait for machines with --wait 10m',
  'quota-exceeded': 'release what is not needed (muster allocation list), or ask an admin for a larger quota',
  'key-reused': 'use a new --key for a new request',
  'not-yet-installable': 'ask again until it is there with --wait 1h; `muster partition status NAME` shows how it goes',
  'not-installable': 'see what can be deployed where with: muster os list',
  'no-power-driver': 'tell how to reach its BMC: muster machine update ID --power-driver ipmi --power-settings FILE',
  'too-many-requests': 'try again in a moment',
  internal: "the server's log has the details",
  'not-ready': 'try again in a moment',
  'database-away': 'try again in a moment; `muster status` shows when it is back',
  'bus-away': 'try again in a moment; a partition can also be asked directly with --url',
  'provider-away': 'log in with a password or a token, or at another server',
  'partition-silent': 'see which partitions answer with: muster partition list',
  'nothing-allocated': 'nothing is held; repeat the request',
  'deadline-passed': 'the work may still go on; look with: muster machine explain ID',
}

const unreachableHint = 'is the server running, and is this the right URL? `muster whoami -v` shows where the URL comes from'

/** What to do about a certificate. */
const certificateHints: { readonly [why in Distrust]?: string } = {
  untrusted:
    'its certificate is not from an authority that is known here: log in again with --ca FILE (the ca.crt of a server that makes its own), or with --fingerprint; or set MUSTER_CA=FILE',
  'out-of-time': 'its certificate is not good at this time: is the clock of this computer right, and was it renewed at the server?',
  'wrong-name':
    'its certificate is for other names: use one of these in the URL, or have the server make one for this name too (MUSTER_TLS_NAMES)',
}

/** The error at the bottom, and what was tried on the way to it. */
function unwrap(error: unknown): { error: unknown; tried: string | undefined } {
  return error instanceof Attempted ? { error: error.cause, tried: error.tried } : { error, tried: undefined }
}

/** Which row of the exit table a failure belongs to. */
export function exitOf(failure: unknown): ExitName {
  const { error } = unwrap(failure)
  if (error instanceof Exit || error instanceof CliError) return error.exit
  if (error instanceof Refusal) return exitOfError[error.code]
  if (error instanceof UnreachableError) return 'unreachable'
  return 'unexpected'
}

/** A failure as a document: the server's own, or one of the same shape for what failed on this side. */
function documentOf(failure: unknown): Record<string, unknown> {
  const { error, tried } = unwrap(failure)
  const more = { ...(tried !== undefined && { tried }) }
  if (error instanceof Refusal) return { ...problemOf(error), ...more }
  const exit = exitOf(failure)
  const detail = error instanceof Error ? error.message : String(error)
  const hint = hintOf(error)
  const facts = error instanceof CliError ? error.facts : {}
  const retryable = exit === 'unreachable'
  return { type: `urn:muster:cli:${exit}`, title: exit, detail, code: exit, retryable, ...(hint && { hint }), ...facts, ...more }
}

/**
 * Tells a failure on stderr; returns its row of the exit table. `format` json or ndjson prints one document on one line, so that several
 * failures of one command can be told apart.
 */
export function tellFailure(cli: Cli, failure: unknown, options: { format: Format; verbose: boolean }): ExitName {
  const exit = exitOf(failure)
  const { error, tried } = unwrap(failure)
  if (error instanceof Exit) return exit
  if (options.format === 'json' || options.format === 'ndjson') {
    cli.stderr.write(ndjsonText(documentOf(failure)))
    return exit
  }
  const what = error instanceof Refusal ? `${error.code}: ${error.message}` : error instanceof Error ? error.message : String(error)
  remark(cli, `${paint(cli.stderr, 'red', 'muster:')} ${printable(tried ? `${tried}: ${what}` : what)}`)
  if (error instanceof Refusal && error.code === 'no-match') remark(cli, explanationText(error.facts))
  const hint = hintOf(error)
  if (hint) remark(cli, `  hint: ${printable(hint)}`)
  if (options.verbose && error instanceof Error) remark(cli, error.stack ?? '')
  return exit
}

function hintOf(error: unknown): string | undefined {
  if (error instanceof CliError) return error.hint
  if (error instanceof UnreachableError) return certificateHints[distrustOf(error.cause) ?? 'bad'] ?? unreachableHint
  if (!(error instanceof Refusal)) return undefined
  return typeof error.facts.hint === 'string' ? error.facts.hint : hints[error.code]
}

/** Why nothing matched: which constraint removed how many machines, who nearly matched, and which partitions were heard. */
export function explanationText(facts: { explanation?: NoMatchExplanation; coverage?: Coverage }): string {
  const { explanation, coverage } = facts
  const lines: string[] = []
  if (explanation) {
    const { considered, matching, removed, nearest } = explanation
    lines.push(`  ${considered} ready machines were looked at; ${matching} match`)
    if (removed.length > 0) lines.push('  removed  by')
    for (const { constraint, machines } of [...removed].sort((a, b) => b.machines - a.machines))
      lines.push(`  ${String(machines).padStart(7)}  ${printable(constraint)}`)
    if (nearest.length > 0) lines.push('  nearest misses')
    for (const { machine, misses } of nearest) lines.push(`    ${printable(machine)}  misses ${printable(misses.join(', '))}`)
  }
  if (coverage) lines.push(`  ${coverageText(coverage)}`)
  return lines.join('\n')
}
