// A partition for the agent's tests: an HTTP server of Node's that gives one job, serves an image, and checks what it hears against the protocol.
import { createReadStream, statSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, createServer as createNetServer } from 'node:net'
import {
  type Enlistment,
  type Erasure,
  enlistment,
  erasure,
  type Inventory,
  inventory,
  type Job,
  type Signal,
  signal,
} from '@muster/shared/agent'
import { type ScriptResult, scriptResult } from '@muster/shared/scripts'

export interface TestPartition extends AsyncDisposable {
  /** As the machine sees it, through QEMU's own network. */
  readonly url: string
  job: Job | undefined
  /** What the image's address serves. */
  imageFile: string | undefined
  /** Of the run; another one ends it. */
  token: string
  readonly enlistments: Enlistment[]
  readonly inventories: Inventory[]
  readonly signals: Signal[]
  readonly erasures: Erasure[]
  readonly results: ScriptResult[]
  /** Requests that were no good: a wrong token, a body that the schema refuses. */
  readonly complaints: string[]
  /** So many requests are answered with 503 first. */
  busy: number
}

export const networkConfig = 'version: 2\nethernets:\n  port0:\n    match: {macaddress: "52:54:00:00:00:01"}\n    dhcp4: true\n'

export async function startPartition(): Promise<TestPartition> {
  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => {
      partition.complaints.push(String(error))
      response.writeHead(422).end(JSON.stringify({ detail: String(error) }))
    })
  })
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const body = await textOf(request)
    const { method, url: path } = request
    if (partition.busy > 0) {
      partition.busy--
      response.writeHead(503, { 'retry-after': '1' }).end()
      return
    }
    if (path === '/image' && partition.imageFile) return serveFile(request, response, partition.imageFile)
    if (path === '/healthz') return void response.end('{}')
    if (path === '/seed/network-config') return void response.end(networkConfig)
    if (path === '/agent/enlist') {
      partition.enlistments.push(enlistment.parse(JSON.parse(body)))
      return void response.writeHead(201).end(JSON.stringify({ id: 'p1-abcdef', outcome: 'created' }))
    }
    if (request.headers.authorization !== `Bearer ${partition.token}`) {
      partition.complaints.push(`${method} ${path} without the token`)
      return void response.writeHead(401).end('{}')
    }
    if (path === '/agent/job' && partition.job) return void response.end(JSON.stringify(partition.job))
    if (path === '/agent/inventory') partition.inventories.push(inventory.parse(JSON.parse(body)))
    else if (path === '/agent/erasure') partition.erasures.push(erasure.parse(JSON.parse(body)))
    else if (path === '/agent/script-result') partition.results.push(scriptResult.parse(JSON.parse(body)))
    else if (path === '/agent/signal') partition.signals.push(signal.parse(JSON.parse(body)))
    else return void response.writeHead(404).end('{"detail":"nothing is there"}')
    response.writeHead(204).end()
  }
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const partition: TestPartition = {
    url: `http://10.0.2.2:${(server.address() as AddressInfo).port}`,
    job: undefined,
    imageFile: undefined,
    token: 'planted-token',
    enlistments: [],
    inventories: [],
    signals: [],
    erasures: [],
    results: [],
    complaints: [],
    busy: 0,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      await new Promise(resolve => server.close(resolve))
    },
  }
  return partition
}

/** An unused TCP port of the loopback; somebody could take it before we do. */
export async function freePort(): Promise<number> {
  const server = createNetServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return port
}

async function textOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

/** With the one kind of range that the agent asks for. */
function serveFile(request: IncomingMessage, response: ServerResponse, file: string): void {
  const { size } = statSync(file)
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '')
  const [start, end] = [Number(range?.[1] ?? 0), range?.[2] ? Number(range[2]) : size - 1]
  response.writeHead(range ? 206 : 200, {
    'content-length': end - start + 1,
    'accept-ranges': 'bytes',
    ...(range && { 'content-range': `bytes ${start}-${end}/${size}` }),
  })
  createReadStream(file, { start, end }).pipe(response)
}
