// Tables for people.

export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = [head, ...rows].map(row => row.map(String))
  const widths = head.map((_, column) => Math.max(...cells.map(row => row[column]?.length ?? 0)))
  return cells
    .map(
      row => `  ${row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0))).join('  ')}`,
    )
    .join('\n')
}

export const percent = (share: number) => `${Math.round(share * 100)} %`

/** What was wanted, and whether it came so; undefined: this run cannot tell. */
export interface Goal {
  goal: string
  met: boolean | undefined
}

/** A line each. A goal that is not met fails nothing: machines and their neighbours differ. */
export function goalsText(goals: readonly Goal[]): string {
  return goals.map(({ goal, met }) => `  goal ${goal}: ${met === undefined ? 'not measured' : met ? 'met' : 'not met'}`).join('\n')
}
