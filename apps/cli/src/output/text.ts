// Text for terminals: its width, what must never reach a terminal, and how quantities and times read.
import { styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

/** Western letters and our own signs, each one column wide: nearly all there is, and the tables for the rest cost a start 14 ms. */
const isPlain = (text: string) => /^[\x20-\x7e\xa0-\xac\xae-\u02ff\u2010-\u2026\ufffd]*$/.test(text)

/**
 * `text` on one line, without control and formatting characters: a host name or a note comes from anybody, and a terminal would obey an
 * escape sequence in it.
 */
export function printable(text: string): string {
  return isPlain(text) ? text : text.replace(/\s*\n\s*/g, ' ').replace(/\p{C}/gu, '\ufffd')
}

/** Each character as a person sees it, with the columns it takes on a terminal. */
function* charactersOf(text: string): Generator<{ character: string; width: number }> {
  const wide = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\uff01-\uff60]|\p{Emoji_Presentation}/u
  for (const { segment } of new Intl.Segmenter().segment(text)) yield { character: segment, width: wide.test(segment) ? 2 : 1 }
}

/** Columns that printable text takes on a terminal. */
export function widthOf(text: string): number {
  return isPlain(text) ? text.length : charactersOf(text).reduce((sum, { width }) => sum + width, 0)
}

/** `text` cut to at most `most` columns, with an ellipsis where something is missing. */
export function cutTo(text: string, most: number): string {
  if (widthOf(text) <= most) return text
  let cut = ''
  let used = 0
  for (const { character, width } of charactersOf(text)) {
    used += width
    if (used > most - 1) break
    cut += character
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
