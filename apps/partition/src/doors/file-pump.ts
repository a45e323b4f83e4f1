// A file into a connection, through one buffer that is used again and again. A stream makes a new one for each piece: the kernel has to clear it and the garbage collector to
// find it, and that cost more than reading and writing together.
import { type FileHandle, open } from 'node:fs/promises'
import type { ServerResponse } from 'node:http'

/** Read and written at once: few turns of the event loop for each MiB, and little held for who does not read. */
const chunkBytes = 2 ** 18
/** Who does not take one within this time gives its place to another machine: 8 kB/s, where the slowest management network has a hundred times that. */
const chunkMs = 30_000
/** Buffers kept for the next; a herd makes more, which go with it. */
const spareMost = 32

export interface Piece {
  readonly path: string
  readonly start: number
  readonly bytes: number
}

export class FilePump {
  readonly #spare: Buffer[] = []

  /** Writes the piece and ends the answer; less when `left` fires, or where it is taken too slowly. Throws what reading throws, and where the file is shorter than it was. */
  async send({ path, start, bytes }: Piece, outgoing: ServerResponse, left: AbortSignal): Promise<void> {
    const file = await open(path)
    const buffer = this.#spare.pop() ?? Buffer.allocUnsafeSlow(chunkBytes)
    try {
      for (let at = start; at < start + bytes && !left.aborted; ) {
        const chunk = await readInto(buffer, file, at, start + bytes - at)
        if (chunk.length === 0) throw new Error(`${path} ends at ${at} and had to go on to ${start + bytes}`)
        at += chunk.length
        // Node reports a write to an answer that is gone as an error of its own.
        if (!outgoing.destroyed) await written(chunk, outgoing, left)
      }
      if (!left.aborted) outgoing.end()
    } finally {
      if (this.#spare.length < spareMost) this.#spare.push(buffer)
      await file.close()
    }
  }
}

async function readInto(buffer: Buffer, file: FileHandle, at: number, bytes: number): Promise<Buffer> {
  const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, bytes), at)
  return buffer.subarray(0, bytesRead)
}

/** Resolves when the kernel has it all, or nobody wants it any more: the buffer is free then. Ends an answer that is taken too slowly. */
function written(chunk: Buffer, outgoing: ServerResponse, left: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const slow = setTimeout(() => outgoing.destroy(), chunkMs)
    const done = () => {
      clearTimeout(slow)
      left.removeEventListener('abort', done)
      resolve()
    }
    left.addEventListener('abort', done)
    outgoing.write(chunk, done)
  })
}
