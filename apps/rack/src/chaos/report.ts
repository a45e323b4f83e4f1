// A verdict as people read it.
import type { Outcome } from './run.ts'

const shownViolations = 10

/** The table of rules, what was found, and the figures of the run. */
export function verdictTable({ seed, verdict, figures }: Pick<Outcome, 'seed' | 'verdict' | 'figures'>): string {
  const width = Math.max(...verdict.findings.map(({ rule }) => rule.length))
  const rows = verdict.findings.flatMap(({ promise, rule, looked, violations }) => [
    `${promise.padEnd(5)} ${rule.padEnd(width)} ${String(looked).padStart(9)}  ${violations.length === 0 ? 'kept' : `BROKEN ${violations.length} times`}`,
    ...violations.slice(0, shownViolations).map(violation => `        ${violation}`),
  ])
  const { latencyMs, brokerAnswerMs, antics } = figures
  const back = Object.entries(figures.backMs).map(([kind, { p50, most }]) => `${kind} ${p50} ms (at most ${most})`)
  return [
    `${'what'.padEnd(5)} ${'rule'.padEnd(width)} ${'looked at'.padStart(9)}  verdict`,
    ...rows,
    '',
    `${figures.acknowledged} allocations of ${figures.machinesGiven} machines acknowledged in ${figures.seconds} s: ${figures.rate}/s, each given back too`,
    `${figures.requests} requests in ${figures.attempts} attempts; ${figures.refused} refused in the end; ${figures.open} open at the end, ${figures.openWithMachines} of them with machines`,
    `badly behaved: ${antics.retried} retries, ${antics.abandoned} abandoned, ${antics.doubled} asked twice at once, ${antics.lateKeys} late keys, ${antics.lateReleases} late releases`,
    `faults: ${
      Object.entries(figures.faults)
        .map(([kind, count]) => `${kind} ${count}`)
        .join(', ') || 'none'
    }; back after ${back.join(', ') || '-'}`,
    `latency of the acknowledged: p50 ${latencyMs.p50} ms, p99 ${latencyMs.p99} ms, at most ${latencyMs.most} ms`,
    `around broker restarts: ${brokerAnswerMs.attempts} attempts, answered p50 ${brokerAnswerMs.p50} ms, at most ${brokerAnswerMs.most} ms after its return`,
    `${figures.holdsNotConfirmed} holds given back or expired; the longest lived ${figures.longestHoldMs} ms; ${figures.events} events, ${figures.consumed} consumed`,
    `seed ${seed}`,
  ].join('\n')
}
