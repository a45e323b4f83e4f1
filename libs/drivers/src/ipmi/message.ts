/**
 * IPMI messages, the commands inside the packets: request and response with their two checksums, and the numbers of the commands we
 * use (IPMI v2.0 13.8, appendix G; facts 4.1).
 */

/** Network function and command number. A reply's network function is one higher. */
export interface Command {
  readonly netFn: number
  readonly command: number
}

export const commands = {
  getChassisStatus: { netFn: 0x00, command: 0x01 },
  chassisControl: { netFn: 0x00, command: 0x02 },
  chassisIdentify: { netFn: 0x00, command: 0x04 },
  getSystemRestartCause: { netFn: 0x00, command: 0x07 },
  setBootOptions: { netFn: 0x00, command: 0x08 },
  getBootOptions: { netFn: 0x00, command: 0x09 },
  getSensorReading: { netFn: 0x04, command: 0x2d },
  getDeviceId: { netFn: 0x06, command: 0x01 },
  coldReset: { netFn: 0x06, command: 0x02 },
  getDeviceGuid: { netFn: 0x06, command: 0x08 },
  getChannelAuthCapabilities: { netFn: 0x06, command: 0x38 },
  setSessionPrivilege: { netFn: 0x06, command: 0x3b },
  closeSession: { netFn: 0x06, command: 0x3c },
  getUserAccess: { netFn: 0x06, command: 0x44 },
  getUserName: { netFn: 0x06, command: 0x46 },
  setUserPassword: { netFn: 0x06, command: 0x47 },
  activatePayload: { netFn: 0x06, command: 0x48 },
  deactivatePayload: { netFn: 0x06, command: 0x49 },
  getChannelCipherSuites: { netFn: 0x06, command: 0x54 },
  getFruInventoryInfo: { netFn: 0x0a, command: 0x10 },
  readFru: { netFn: 0x0a, command: 0x11 },
  getSdrRepositoryInfo: { netFn: 0x0a, command: 0x20 },
  reserveSdrRepository: { netFn: 0x0a, command: 0x22 },
  getSdr: { netFn: 0x0a, command: 0x23 },
  getSelInfo: { netFn: 0x0a, command: 0x40 },
  reserveSel: { netFn: 0x0a, command: 0x42 },
  getSelEntry: { netFn: 0x0a, command: 0x43 },
  clearSel: { netFn: 0x0a, command: 0x47 },
} as const satisfies Record<string, Command>

export interface IpmiRequest extends Command {
  /** rqSeq, 0 to 63: a repetition of the same command keeps it. */
  sequence: number
  data: Buffer
}

export interface IpmiResponse extends Command {
  /** The request's rqSeq. */
  sequence: number
  completionCode: number
  data: Buffer
}

/** Parsed messages say whether both checksums held: some firmware computes them wrongly inside good authcodes (Supermicro X9). */
export type Parsed<Message> = Message & { checksumsHold: boolean }

/** A request from a console (address 81) to the BMC (address 20, LUN 0). `netFn` is even. */
export function encodeRequest(request: IpmiRequest): Buffer {
  const message = Buffer.allocUnsafe(7 + request.data.length)
  writeHead(message, bmcAddress, request.netFn, consoleAddress, request)
  request.data.copy(message, 6)
  writeTail(message)
  return message
}

/** A BMC's response; `netFn` is the response's own, odd one. */
export function encodeResponse(response: IpmiResponse): Buffer {
  const message = Buffer.allocUnsafe(8 + response.data.length)
  writeHead(message, consoleAddress, response.netFn, bmcAddress, response)
  message.writeUInt8(response.completionCode, 6)
  response.data.copy(message, 7)
  writeTail(message)
  return message
}

/** The request in a payload; undefined if it is shorter than 7 bytes or has a response's network function. */
export function parseRequest(payload: Buffer): Parsed<IpmiRequest> | undefined {
  if (payload.length < 7) return undefined
  const head = parseHead(payload)
  if (head.netFn % 2 !== 0) return undefined
  return { ...head, data: payload.subarray(6, -1) }
}

/** The response in a payload; undefined if it is shorter than 8 bytes or has a request's network function. */
export function parseResponse(payload: Buffer): Parsed<IpmiResponse> | undefined {
  if (payload.length < 8) return undefined
  const head = parseHead(payload)
  if (head.netFn % 2 === 0) return undefined
  return { ...head, completionCode: payload.readUInt8(6), data: payload.subarray(7, -1) }
}

const bmcAddress = 0x20
const consoleAddress = 0x81

/** Two's complement of the sum: the covered bytes and their checksum add up to 0. */
function checksum(message: Buffer, start: number, end: number): number {
  let sum = 0
  for (let i = start; i < end; i++) sum += message.readUInt8(i)
  return -sum & 0xff
}

function writeHead(message: Buffer, to: number, netFn: number, from: number, numbers: { sequence: number; command: number }): void {
  message.writeUInt8(to, 0)
  message.writeUInt8((netFn << 2) & 0xff, 1)
  message.writeUInt8(checksum(message, 0, 2), 2)
  message.writeUInt8(from, 3)
  message.writeUInt8((numbers.sequence << 2) & 0xff, 4)
  message.writeUInt8(numbers.command, 5)
}

function writeTail(message: Buffer): void {
  message.writeUInt8(checksum(message, 3, message.length - 1), message.length - 1)
}

function parseHead(message: Buffer): Command & { sequence: number; checksumsHold: boolean } {
  return {
    netFn: message.readUInt8(1) >> 2,
    sequence: message.readUInt8(4) >> 2,
    command: message.readUInt8(5),
    checksumsHold:
      checksum(message, 0, 2) === message.readUInt8(2) &&
      checksum(message, 3, message.length - 1) === message.readUInt8(message.length - 1),
  }
}
