// Text for terminals: its width, what must never reach a terminal, and how quantities and times read.
import { styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

const graphemes = new Intl.Segmenter()
const wide = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\uff01-\uff60]|\p{Emoji_Presentation}/u
/** Control and formatting characters. A host name or a note comes from anybody, and an escape sequence in it would obey them. */
const unprintable = /\p{C}/gu

/** `text` on one line, without anything a terminal would obey. */
export function printable(text: string): string {
  return text.replace(/\s*\n\s*/g, ' ').replace(unprintable, '\ufffd')
}

/** Columns that printable text takes on a terminal. */
export function widthOf(text: string): number {
  // Plain ASCII is nearly all there is, and a list of thousands should not pay for the rest.
  if (/^[\x20-\x7e]*$/.test(text)) return text.length
  let width = 0
  for (const { segment } of graphemes.segment(text)) width += wide.test(segment) ? 2 : 1
  return width
}

/** `text` cut to at most `width` columns, with an ellipsis where something is missing. */
export function cutTo(text: string, width: number): string {
  if (widthOf(text) <= width) return text
  let cut = ''
  let used = 0
  for (const { segment } of graphemes.segment(text)) {
    const next = wide.test(segment) ? 2 : 1
    if (used + next > width - 1) break
    cut += segment
    used += next
  }
  return `${cut}…`
}

/** Colours `text` where the stream is a terminal and NO_COLOR is not set. */
export function paint(stream: NodeJS.WriteStream, style: Style, text: string): string {
  return styleText(style, text, { stream })
}

/** `65536` MiB → `64 GiB`. */
export function memoryText(mib: number): string {
  return mib >= 1024 ? `${Number((mib / 1024).toFixed(1))} GiB` : `${mib} MiB`
}

/** Disks are sold in powers of ten: `480103981056` → `480 GB`. */
export function diskText(bytes: number): string {
  return bytes >= 1e12 ? `${Number((bytes / 1e12).toFixed(1))} TB` : `${Math.round(bytes / 1e9)} GB`
}

/** How long ago, in the largest unit that says enough: `12s`, `4m`, `3h`, `9d`. */
export function ageText(at: string, now: number): string {
  const seconds = Math.max(0, Math.round((now - Date.parse(at)) / 1000))
  if (seconds < 120) return `${seconds}s`
  if (seconds < 7200) return `${Math.round(seconds / 60)}m`
  if (seconds < 172_800) return `${Math.round(seconds / 3600)}h`
  return `${Math.round(seconds / 86_400)}d`
}

/** A time and how far away it is: `2026-01-02T03:04:05Z (4m ago)`. */
export function timeText(at: string, now: number): string {
  const when = Date.parse(at)
  return when > now ? `${at} (in ${ageText(new Date(now).toISOString(), when)})` : `${at} (${ageText(at, now)} ago)`
}
