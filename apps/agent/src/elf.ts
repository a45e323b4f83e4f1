// What is read off programs without running them: they may be another architecture's.
import { readFile } from 'node:fs/promises'

const magic = 0x7f454c46
/** Kinds of program headers, and of entries of the dynamic section (System V ABI, chapter 5). */
const kinds = { load: 1, dynamic: 2 } as const
const tags = { needed: 1n, strings: 5n } as const

/** The libraries that a program, or a library, names. None where it is linked statically. Throws where the file is no 64-bit little-endian ELF. */
export async function librariesOf(file: string): Promise<string[]> {
  const elf = await readFile(file)
  if (elf.length < 64 || elf.readUInt32BE(0) !== magic || elf.readUInt16LE(4) !== 0x0102)
    throw new Error(`${file} is no program of 64 bits`)
  const [place, size, count] = [Number(elf.readBigUInt64LE(32)), elf.readUInt16LE(54), elf.readUInt16LE(56)]
  const headers = Array.from({ length: count }, (_, index) => {
    const at = place + index * size
    const word = (offset: number) => Number(elf.readBigUInt64LE(at + offset))
    return { kind: elf.readUInt32LE(at), offset: word(8), address: word(16), bytes: word(32) }
  })
  const dynamic = headers.find(({ kind }) => kind === kinds.dynamic)
  if (!dynamic) return []
  const entries = Array.from({ length: dynamic.bytes / 16 }, (_, index) => {
    const at = dynamic.offset + index * 16
    return { tag: elf.readBigUInt64LE(at), value: Number(elf.readBigUInt64LE(at + 8)) }
  })
  const address = entries.find(({ tag }) => tag === tags.strings)?.value ?? 0
  const holder = headers.find(header => header.kind === kinds.load && header.address <= address && address < header.address + header.bytes)
  if (!holder) throw new Error(`${file} has no names of libraries where it says`)
  const strings = holder.offset + address - holder.address
  return entries.filter(({ tag }) => tag === tags.needed).map(({ value }) => textAt(elf, strings + value))
}

/** The applets of a busybox: their names stand in it in a row, the first one "[", an empty one at the end. Throws where it has no such row. */
export async function appletsOf(file: string): Promise<string[]> {
  const program = await readFile(file)
  const names: string[] = []
  const start = program.indexOf('\0[\0[[\0')
  for (let at = start + 1; start >= 0; at += (names.at(-1) as string).length + 1) {
    const name = textAt(program, at)
    if (name === '') break
    names.push(name)
  }
  if (!names.includes('sh')) throw new Error(`${file} names no applets: it is no busybox, or of another kind than was known`)
  return names
}

const textAt = (content: Buffer, at: number) => content.toString('latin1', at, content.indexOf(0, at))
