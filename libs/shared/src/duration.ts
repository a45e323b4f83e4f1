// Durations are text in tables and in the API ('30m'); here they become milliseconds, once.

const unitMs = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** The form a duration may take: a positive whole number and a unit, e.g. `250ms`, `15s`, `30m`, `2h`, `1d`. */
export const durationPattern = /^([1-9]\d{0,8})(ms|s|m|h|d)$/

export type Duration = `${number}${keyof typeof unitMs}`

/** Milliseconds of `text`. Throws RangeError, naming the text, where it is not a duration. */
export function durationMs(text: string): number {
  const match = durationPattern.exec(text)
  if (!match) throw new RangeError(`"${text}" is not a duration such as 250ms, 15s, 30m, 2h or 1d`)
  return Number(match[1]) * unitMs[match[2] as keyof typeof unitMs]
}

/** The shortest exact text of `ms` (whole, positive): 90000 → `90s`. */
export function durationText(ms: number): Duration {
  for (const unit of ['d', 'h', 'm', 's'] as const) if (ms % unitMs[unit] === 0) return `${ms / unitMs[unit]}${unit}`
  return `${ms}ms`
}
