// JSON as the bytes that the bus carries.

/** JSON as bytes. */
export function encodeJson(value: unknown): Uint8Array {
  return Buffer.from(JSON.stringify(value))
}

/** What the bytes say as JSON, or undefined. */
export function decodeJson(data: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString())
  } catch {
    return undefined // every reader checks the shape, which undefined never has
  }
}
