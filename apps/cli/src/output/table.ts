// Tables for people: no frames, so that grep, awk and copying work, and never wider than the terminal.
import type { Cli } from '../cli.ts'
import { cutTo, paint, printable, widthOf } from './text.ts'

export interface Column<Row> {
  readonly title: string
  readonly text: (row: Row) => string
  /** Only `-o wide` shows it. */
  readonly wide?: true
  /** May be cut to so many characters on a narrow terminal. Columns without it are never cut: a cut id is of no use. */
  readonly least?: number
  /** Leaves a terminal that is too narrow all the same; the highest goes first. */
  readonly leaves?: number
  readonly align?: 'right'
  readonly style?: (row: Row) => Parameters<typeof paint>[1] | undefined
}

const gap = 2

/** Which columns fit into `width`, and how wide each may be. */
function fit<Row>(columns: readonly Column<Row>[], natural: readonly number[], width: number): { column: Column<Row>; width: number }[] {
  let shown = columns.map((column, index) => ({ column, width: natural[index] as number }))
  const total = () => shown.reduce((sum, entry) => sum + entry.width + gap, -gap)
  const least = () => shown.reduce((sum, { column, width }) => sum + Math.min(width, column.least ?? width) + gap, -gap)
  while (least() > width) {
    const goes = shown
      .filter(({ column }) => column.leaves !== undefined)
      .sort((a, b) => (b.column.leaves ?? 0) - (a.column.leaves ?? 0))[0]
    if (!goes) break
    shown = shown.filter(entry => entry !== goes)
  }
  while (total() > width) {
    const cut = shown.filter(({ column, width }) => column.least !== undefined && width > column.least).sort((a, b) => b.width - a.width)[0]
    if (!cut) break
    cut.width--
  }
  return shown
}

/** The rows as text. A terminal's width is kept; a pipe gets everything, uncut. */
export function tableText<Row>(cli: Cli, rows: readonly Row[], all: readonly Column<Row>[], options: { wide?: boolean } = {}): string {
  const columns = all.filter(column => options.wide || !column.wide)
  const cells = rows.map(row => columns.map(column => printable(column.text(row)) || '-'))
  const natural = columns.map((column, index) =>
    cells.reduce((most, row) => Math.max(most, widthOf(row[index] as string)), column.title.length),
  )
  const width = cli.stdout.isTTY && !options.wide ? cli.stdout.columns : Number.POSITIVE_INFINITY
  const shown = fit(columns, natural, width)
  const line = (textOf: (column: Column<Row>, index: number) => string, paintCell: (column: Column<Row>, padded: string) => string) =>
    shown
      .map(({ column, width }, position) => {
        const text = cutTo(textOf(column, columns.indexOf(column)), width)
        const space = ' '.repeat(width - widthOf(text))
        const isLast = position === shown.length - 1
        return column.align === 'right' ? space + paintCell(column, text) : paintCell(column, text) + (isLast ? '' : space)
      })
      .join(' '.repeat(gap))
  const head = line(
    column => column.title,
    (_, text) => paint(cli.stdout, 'bold', text),
  )
  const body = rows.map((row, index) =>
    line(
      (_, at) => (cells[index] as string[])[at] as string,
      (column, text) => {
        const style = column.style?.(row)
        return style ? paint(cli.stdout, style, text) : text
      },
    ),
  )
  return [head, ...body].map(text => `${text}\n`).join('')
}

/** One thing as `Name  value` lines; empty values are left out. */
export function fieldsText(cli: Cli, fields: readonly (readonly [name: string, value: string | number | null | undefined])[]): string {
  const shown = fields.filter(([, value]) => value !== null && value !== undefined && value !== '')
  const width = Math.max(0, ...shown.map(([name]) => name.length))
  return shown.map(([name, value]) => `${paint(cli.stdout, 'bold', name.padEnd(width))}  ${printable(String(value))}\n`).join('')
}
