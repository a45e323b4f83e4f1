/**
 * The type/length strings of SDRs and FRUs: one byte that tells encoding and length, then the text (FRU Information Storage
 * Definition, chapter 13; IPMI v2.0 43.15).
 */

/** A field and where the next one starts; undefined at the end mark C1 or where the bytes end. */
export function readField(bytes: Buffer, at: number): { text: string; next: number } | undefined {
  if (at >= bytes.length) return undefined
  const typeLength = bytes.readUInt8(at)
  const length = typeLength & 0x3f
  const next = at + 1 + length
  if (typeLength === endMark || next > bytes.length) return undefined
  return { text: decode(typeLength >> 6, bytes.subarray(at + 1, next)), next }
}

/** A field of 8-bit text, cut to 63 bytes. One byte long, it gets a space behind it: C1 would mean the end. */
export function writeField(text: string): Buffer {
  const bytes = Buffer.from(text.length === 1 ? `${text} ` : text, 'latin1').subarray(0, 0x3f)
  return Buffer.concat([Buffer.of(0xc0 | bytes.length), bytes])
}

export const endMark = 0xc1

function decode(encoding: number, bytes: Buffer): string {
  const text = encoding === 1 ? bcdPlus(bytes) : encoding === 2 ? sixBit(bytes) : bytes.toString('latin1')
  // Boards fill fixed fields with zeros and spaces.
  return text.replace(/[\0 ]+$/, '')
}

const bcdDigits = '0123456789 -.:,_'

function bcdPlus(bytes: Buffer): string {
  return [...bytes].map(byte => bcdDigits.charAt(byte >> 4) + bcdDigits.charAt(byte & 0x0f)).join('')
}

/** Packed 6-bit ASCII: four characters in three bytes, lowest bits first, counted from the space. */
function sixBit(bytes: Buffer): string {
  let text = ''
  let bits = 0
  let count = 0
  for (const byte of bytes) {
    bits |= byte << count
    count += 8
    while (count >= 6) {
      text += String.fromCharCode((bits & 0x3f) + 0x20)
      bits >>= 6
      count -= 6
    }
  }
  return text
}
