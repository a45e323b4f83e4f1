// Machines that ask for their script all at once, each on a connection of its own, as loaders do. On bare sockets: on two cores a costlier client would take its CPU
// from what is measured, and its own turns would be counted as waiting.
import { connect } from 'node:net'

const limitMs = 60_000

export interface Herd {
  latenciesMs: number[]
  /** No answer, no 200, or no script. */
  lost: number
}

export async function herd(server: URL, macs: readonly string[]): Promise<Herd> {
  const answers = await Promise.all(macs.map(mac => ask(server, mac)))
  const latenciesMs = answers.filter(latency => latency !== undefined)
  return { latenciesMs, lost: answers.length - latenciesMs.length }
}

/** Milliseconds from before the connection until the script is whole; undefined: lost. */
function ask(server: URL, mac: string): Promise<number | undefined> {
  return new Promise(resolve => {
    const askedAt = performance.now()
    const pieces: Buffer[] = []
    const socket = connect({ host: server.hostname, port: Number(server.port) })
    socket.write(`GET /boot/ipxe/${mac} HTTP/1.1\r\nhost: ${server.host}\r\nuser-agent: iPXE/1.21.1\r\nconnection: close\r\n\r\n`)
    socket.setTimeout(limitMs, () => socket.destroy())
    socket.on('data', piece => pieces.push(piece))
    socket.once('error', () => resolve(undefined))
    socket.once('close', () => {
      const latencyMs = performance.now() - askedAt
      resolve(isScript(Buffer.concat(pieces).toString('latin1')) ? latencyMs : undefined)
    })
  })
}

function isScript(answer: string): boolean {
  const length = Number(/\r\ncontent-length: *(\d+)/i.exec(answer)?.[1])
  const body = answer.slice(answer.indexOf('\r\n\r\n') + 4)
  // "Cannot boot", "cannot look this machine up": an answer, and no boot.
  return answer.startsWith('HTTP/1.1 200 ') && body.startsWith('#!ipxe\n') && body.length === length && !body.includes('cannot')
}
