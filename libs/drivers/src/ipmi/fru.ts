/** FRU inventory: maker, model and serial numbers as the factory wrote them (FRU Information Storage Definition 1.3; IPMI 34). */
import type { Identity } from '../driver.ts'
import { completed, type Turn, tooShort } from './client.ts'
import { commands } from './codec.ts'
import { endMark, readField, writeField } from './type-length.ts'

export interface Fru {
  chassis?: { type: number; partNumber: string; serial: string; custom: string[] }
  /** `madeAt` is missing where the factory left it at 0. */
  board?: { madeAt?: Date; maker: string; product: string; serial: string; partNumber: string; file: string; custom: string[] }
  product?: {
    maker: string
    name: string
    partNumber: string
    version: string
    serial: string
    assetTag: string
    file: string
    custom: string[]
  }
}

/** Reads one FRU; 0 is the machine itself. Throws Failure `unsupported` or `refused` where there is none, `protocol` for rubbish. */
export async function readFru(turn: Turn, device = 0): Promise<Fru> {
  const info = completed(
    await turn.command(commands.getFruInventoryInfo, { data: Buffer.of(device) }),
    'Get FRU Inventory Area Info',
    'This BMC keeps no inventory.',
  )
  if (info.length < 3) throw tooShort('Get FRU Inventory Area Info', info)
  const size = info.readUInt16LE(0)
  const inWords = (info.readUInt8(2) & 1) !== 0
  const pieces: Buffer[] = []
  let pieceBytes = 16
  for (let have = 0; have < size; ) {
    const count = Math.min(pieceBytes, size - have)
    const data = Buffer.alloc(4)
    data.writeUInt8(device, 0)
    data.writeUInt16LE(inWords ? have / 2 : have, 1)
    data.writeUInt8(inWords ? Math.ceil(count / 2) : count, 3)
    const reply = await turn.command(commands.readFru, { data })
    if ([0xc7, 0xc8, 0xca, 0xff].includes(reply.completionCode) && pieceBytes > 2) {
      pieceBytes /= 2
      continue
    }
    const answer = completed(reply, 'Read FRU Data', 'The inventory cannot be read just now.')
    const piece = answer.subarray(1, 1 + count)
    if (piece.length === 0 || (inWords && piece.length % 2 !== 0)) throw tooShort('Read FRU Data', answer)
    pieces.push(Buffer.from(piece))
    have += piece.length
  }
  return parseFru(Buffer.concat(pieces))
}

/** Who the machine is: the product area, and where it is silent the board and chassis areas. */
export function identityOf({ chassis, board, product }: Fru): Identity {
  return {
    maker: product?.maker || board?.maker || '',
    product: product?.name || board?.product || '',
    serial: product?.serial || chassis?.serial || board?.serial || '',
    assetTag: product?.assetTag ?? '',
  }
}

/** Reads the areas of a FRU whose checksums hold; areas that are absent, cut or damaged are left out. Never throws. */
export function parseFru(bytes: Buffer): Fru {
  const fru: Fru = {}
  if (bytes.length < 8 || sum(bytes.subarray(0, 8)) !== 0) return fru
  const area = (at: number) => areaAt(bytes, bytes.readUInt8(at) * 8)
  const chassis = area(2)
  if (chassis) {
    const [partNumber = '', serial = '', ...custom] = fields(chassis, 3)
    fru.chassis = { type: chassis.readUInt8(2), partNumber, serial, custom }
  }
  const board = area(3)
  if (board) {
    const [maker = '', product = '', serial = '', partNumber = '', file = '', ...custom] = fields(board, 6)
    const minutes = board.readUIntLE(3, 3)
    fru.board = { ...(minutes > 0 && { madeAt: new Date(epoch + minutes * 60_000) }), maker, product, serial, partNumber, file, custom }
  }
  const product = area(4)
  if (product) {
    const [maker = '', name = '', partNumber = '', version = '', serial = '', assetTag = '', file = '', ...custom] = fields(product, 3)
    fru.product = { maker, name, partNumber, version, serial, assetTag, file, custom }
  }
  return fru
}

/** The bytes of a FRU, as a BMC keeps it. */
export function encodeFru(fru: Fru): Buffer {
  const { chassis, board, product } = fru
  const minutes = Buffer.alloc(3)
  if (board?.madeAt) minutes.writeUIntLE(Math.floor((board.madeAt.getTime() - epoch) / 60_000), 0, 3)
  const areas = [
    chassis && encodeArea(Buffer.of(chassis.type), [chassis.partNumber, chassis.serial, ...chassis.custom]),
    board &&
      encodeArea(Buffer.concat([Buffer.of(english), minutes]), [
        board.maker,
        board.product,
        board.serial,
        board.partNumber,
        board.file,
        ...board.custom,
      ]),
    product &&
      encodeArea(Buffer.of(english), [
        ...[product.maker, product.name, product.partNumber, product.version, product.serial, product.assetTag, product.file],
        ...product.custom,
      ]),
  ]
  const header = Buffer.alloc(8)
  header.writeUInt8(formatVersion, 0)
  let at = 8
  for (const [index, area] of areas.entries()) {
    if (!area) continue
    header.writeUInt8(at / 8, 2 + index)
    at += area.length
  }
  header.writeUInt8(-sum(header) & 0xff, 7)
  return Buffer.concat([header, ...areas.filter(area => area !== undefined)])
}

const formatVersion = 1
const english = 25
/** Board dates count minutes from here. */
const epoch = Date.UTC(1996, 0, 1)
/** More fields than any area of 2,040 bytes sensibly holds. */
const fieldsMax = 64

function sum(bytes: Buffer): number {
  return bytes.reduce((total, byte) => total + byte, 0) & 0xff
}

function areaAt(bytes: Buffer, at: number): Buffer | undefined {
  if (at === 0 || at + 8 > bytes.length) return undefined
  const length = bytes.readUInt8(at + 1) * 8
  if (length < 8 || at + length > bytes.length) return undefined
  const area = bytes.subarray(at, at + length)
  return sum(area) === 0 ? area : undefined
}

function fields(area: Buffer, at: number): string[] {
  const texts: string[] = []
  // The last byte is the checksum.
  const content = area.subarray(0, -1)
  for (let field = readField(content, at); field && texts.length < fieldsMax; field = readField(content, field.next)) texts.push(field.text)
  return texts
}

function encodeArea(head: Buffer, texts: string[]): Buffer {
  const content = Buffer.concat([Buffer.of(formatVersion, 0), head, ...texts.map(writeField), Buffer.of(endMark)])
  const area = Buffer.alloc(Math.ceil((content.length + 1) / 8) * 8)
  content.copy(area)
  area.writeUInt8(area.length / 8, 1)
  area.writeUInt8(-sum(area) & 0xff, area.length - 1)
  return area
}
