// What people type for sizes, speeds and lists of settings, and what the API takes. Throws InvalidArgumentError, which commander reports
// with the option it came from.
import { durationMs } from '@muster/shared/duration'
import { InvalidArgumentError } from 'commander'

const bytesOf = { KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 } as const

/** Bytes of `500GB` or `64GiB`. A bare `64G` is refused: it means 7 % more or less to different people. */
export function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?) ?([A-Za-z]+)$/.exec(text)
  const unit = match?.[2] as keyof typeof bytesOf | undefined
  if (!match || !unit || !Object.hasOwn(bytesOf, unit)) throw new InvalidArgumentError(`"${text}" is not a size such as 500GB or 64GiB.`)
  return Number(match[1]) * bytesOf[unit]
}

/** Whole MiB of a size, rounded up: less would not be what was asked for. */
export function parseMebibytes(text: string): number {
  return Math.ceil(parseBytes(text) / 2 ** 20)
}

/** Mbit/s of `10G`, `2.5G`, `1000M` or `1000`. */
export function parseSpeed(text: string): number {
  const match = /^(\d+(?:\.\d+)?) ?(M|G)?(?:b(?:it)?(?:\/s|ps)?)?$/i.exec(text)
  if (!match) throw new InvalidArgumentError(`"${text}" is not a speed such as 10G or 1000M.`)
  return Math.round(Number(match[1]) * (match[2]?.toUpperCase() === 'G' ? 1000 : 1))
}

/** A whole number, at least `least`. */
export function parseCount(text: string, least = 0): number {
  const number = Number(text)
  if (!/^\d{1,15}$/.test(text) || number < least) throw new InvalidArgumentError(`"${text}" is not a whole number from ${least} upwards.`)
  return number
}

/** A duration such as 30s or 10m, kept as text once it is known to be one. */
export function parseDuration(text: string): string {
  try {
    durationMs(text)
  } catch (error) {
    throw new InvalidArgumentError(`${(error as RangeError).message}.`)
  }
  return text
}

/** `a=1,b=2` as an object with each value read by its parser; unknown and repeated names are refused. */
export function parsePairs<Parsers extends { readonly [name: string]: (text: string) => unknown }>(
  text: string,
  parsers: Parsers,
): { [Name in keyof Parsers]?: ReturnType<Parsers[Name]> } {
  const result: Record<string, unknown> = {}
  for (const part of text.split(',')) {
    const [name, value] = splitOnce(part)
    const parser = Object.hasOwn(parsers, name) ? parsers[name] : undefined
    if (!parser || value === undefined || Object.hasOwn(result, name))
      throw new InvalidArgumentError(`"${part}" is not one of ${Object.keys(parsers).join('=…, ')}=…, each at most once.`)
    result[name] = parser(value)
  }
  return result as { [Name in keyof Parsers]?: ReturnType<Parsers[Name]> }
}

/** `name=value` → both; value undefined where there is no `=`. */
export function splitOnce(text: string): [name: string, value: string | undefined] {
  const at = text.indexOf('=')
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)]
}

/** An option that may be repeated and takes commas: adds the items of `text` to those before. */
export function collect(text: string, before: readonly string[] | undefined): string[] {
  return [...(before ?? []), ...text.split(',').filter(item => item !== '')]
}

/** An option that may be repeated and whose values have commas of their own. */
export function collectOf<Item>(parse: (text: string) => Item): (text: string, before: Item[] | undefined) => Item[] {
  return (text, before) => [...(before ?? []), parse(text)]
}
