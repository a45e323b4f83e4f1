// Machines that ask for their script all at once, each on a connection of its own, as loaders do. herd.py asks; here is what is made of the answers.
import { execFile } from 'node:child_process'
import { findProgram } from '@muster/embedded/find-program'
import { kernelArguments } from '@muster/shared/agent'

const limitSeconds = 60
/** Two thousand scripts are one megabyte. */
const outputMostBytes = 2 ** 28

export interface Herd {
  /** From before the connection until the server has closed it. */
  latenciesMs: number[]
  /** No answer, no 200, or no script. */
  lost: number
  /** Scripts with a token: those of machines that have work to do. */
  working: number
  /** What asking cost, in CPU microseconds. */
  clientMicros: number
}

interface Answers {
  cpuMicros: number
  answers: ([latencyMs: number, text: string] | null)[]
}

/** Asks for all of the paths at once. Throws where there is no Python. */
export async function herd(server: URL, paths: readonly string[]): Promise<Herd> {
  const questions = paths.map(
    path => `GET ${path} HTTP/1.1\r\nhost: ${server.host}\r\nuser-agent: iPXE/1.21.1\r\nconnection: close\r\n\r\n`,
  )
  const { answers, cpuMicros } = await ask({ host: server.hostname, port: Number(server.port), questions, limitSeconds })
  const scripts = answers.filter(answer => answer !== null).filter(([, text]) => isScript(text))
  return {
    latenciesMs: scripts.map(([latencyMs]) => latencyMs),
    lost: answers.length - scripts.length,
    working: scripts.filter(([, text]) => text.includes(` ${kernelArguments.token}=`)).length,
    clientMicros: cpuMicros,
  }
}

function ask(asked: { host: string; port: number; questions: string[]; limitSeconds: number }): Promise<Answers> {
  const python = findProgram('python3')
  if (python === undefined) throw new Error('the herd needs Python: apt-get install python3')
  return new Promise((resolve, reject) => {
    const child = execFile(
      python,
      [new URL('./herd.py', import.meta.url).pathname],
      { maxBuffer: outputMostBytes, timeout: 2 * limitSeconds * 1000 },
      (error, output) => (error ? reject(error) : resolve(JSON.parse(output))),
    )
    child.stdin?.end(JSON.stringify(asked))
  })
}

function isScript(answer: string): boolean {
  const length = Number(/\r\ncontent-length: *(\d+)/i.exec(answer)?.[1])
  const body = answer.slice(answer.indexOf('\r\n\r\n') + 4)
  // "Cannot boot", "cannot look this machine up": an answer, and no boot.
  return answer.startsWith('HTTP/1.1 200 ') && body.startsWith('#!ipxe\n') && body.length === length && !body.includes('cannot')
}
