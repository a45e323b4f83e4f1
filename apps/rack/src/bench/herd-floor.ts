// A helper that answers every request with one text: what a bare node:http server makes of the same herd.
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { beHelper } from './helper.ts'

/** As many may be on their way in as the partition lets. */
const backlog = 4_096

let text = ''
const server = createServer({ noDelay: true, keepAliveTimeout: 65_000 }, (_, outgoing) => {
  outgoing.writeHead(200, { 'content-type': 'text/plain; charset=UTF-8', 'content-length': Buffer.byteLength(text) }).end(text)
})

const floor = {
  /** Answers the URL. */
  start: (answer: string): Promise<string> => {
    text = answer
    return new Promise(resolve =>
      server.listen({ port: 0, host: '127.0.0.1', backlog }, () => resolve(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)),
    )
  },
}

export type HerdFloor = typeof floor

beHelper<HerdFloor>(floor, () => {
  server.closeAllConnections()
})
