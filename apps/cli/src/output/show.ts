// One answer, in the format asked for. A command says what its table looks like; the other formats follow from the data.
import type { Coverage } from '@muster/shared/contract/call'
import { type Cli, type Format, remark } from '../cli.ts'
import { type Column, tableText } from './table.ts'
import { printable } from './text.ts'

export interface Shape<Item> {
  readonly columns: readonly Column<Item>[]
  /** What `-o name` prints and what goes on a line of its own in a pipe. */
  readonly name: (item: Item) => string
  /** What a person reads when there is nothing. */
  readonly none: string
}

/** Pretty JSON with a final newline. */
export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`
}

/** One JSON value on one line. */
export function ndjsonText(value: unknown): string {
  return `${JSON.stringify(value)}\n`
}

/** A list: `whole` is the answer as the API gave it, for JSON. */
export function showList<Item>(
  cli: Cli,
  format: Format,
  whole: { items: readonly Item[]; coverage?: Coverage | undefined },
  shape: Shape<Item>,
): void {
  if (format === 'json') cli.stdout.write(jsonText(whole))
  else if (format === 'ndjson') cli.stdout.write(whole.items.map(ndjsonText).join(''))
  else if (format === 'name') cli.stdout.write(whole.items.map(item => `${printable(shape.name(item))}\n`).join(''))
  else if (whole.items.length > 0) cli.stdout.write(tableText(cli, whole.items, shape.columns, { wide: format === 'wide' }))
  else remark(cli, shape.none)
  // JSON carries the coverage itself; in every other format a partial answer must not look whole.
  if (format !== 'json') remarkCoverage(cli, whole.coverage)
}

/** One thing: JSON formats print it, `name` its name, the others what `text` gives. */
export function showOne<Item>(
  cli: Cli,
  format: Format,
  item: Item,
  shape: { name: (item: Item) => string; text: (item: Item) => string },
): void {
  if (format === 'json') cli.stdout.write(jsonText(item))
  else if (format === 'ndjson') cli.stdout.write(ndjsonText(item))
  else if (format === 'name') cli.stdout.write(`${printable(shape.name(item))}\n`)
  else cli.stdout.write(shape.text(item))
}

/** Says which partitions did not answer: nothing when all did. */
export function remarkCoverage(cli: Cli, coverage: Coverage | undefined): void {
  if (coverage && coverage.answered < coverage.asked) remark(cli, coverageText(coverage))
}

/** `48 of 50 partitions answered; silent: par2 (3000 ms)`. */
export function coverageText(coverage: Coverage): string {
  const missing = (outcome: 'refused' | 'silent') =>
    coverage.partitions
      .filter(partition => partition.outcome === outcome)
      .map(({ name, ms, reason }) => printable(`${name} (${Math.round(ms)} ms${reason ? `: ${reason}` : ''})`))
      .join(', ')
  const parts = (['silent', 'refused'] as const).flatMap(outcome => (missing(outcome) ? [`${outcome}: ${missing(outcome)}`] : []))
  return [`${coverage.answered} of ${coverage.asked} partitions answered`, ...parts].join('; ')
}
