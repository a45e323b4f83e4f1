// Machines that ask for their script all at once, each on a connection of its own, as loaders do. On bare sockets: on two cores a costlier client would take its CPU
// from what is measured, and its own turns would be counted as waiting.
import { connect } from 'node:net'
import { kernelArguments } from '@muster/shared/agent'

const limitMs = 60_000

export interface Herd {
  latenciesMs: number[]
  /** No answer, no 200, or no script. */
  lost: number
  /** Scripts with a token: those of machines that have work to do. */
  working: number
}

export async function herd(server: URL, macs: readonly string[]): Promise<Herd> {
  const answers = await Promise.all(macs.map(mac => ask(server, mac)))
  const scripts = answers.filter(answer => answer !== undefined)
  return {
    latenciesMs: scripts.map(({ latencyMs }) => latencyMs),
    lost: answers.length - scripts.length,
    working: scripts.filter(({ isWork }) => isWork).length,
  }
}

/** Milliseconds from before the connection until the script is whole; undefined: lost. */
function ask(server: URL, mac: string): Promise<{ latencyMs: number; isWork: boolean } | undefined> {
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
      const answer = Buffer.concat(pieces).toString('latin1')
      resolve(isScript(answer) ? { latencyMs, isWork: answer.includes(` ${kernelArguments.token}=`) } : undefined)
    })
  })
}

function isScript(answer: string): boolean {
  const length = Number(/\r\ncontent-length: *(\d+)/i.exec(answer)?.[1])
  const body = answer.slice(answer.indexOf('\r\n\r\n') + 4)
  // "Cannot boot", "cannot look this machine up": an answer, and no boot.
  return answer.startsWith('HTTP/1.1 200 ') && body.startsWith('#!ipxe\n') && body.length === length && !body.includes('cannot')
}
