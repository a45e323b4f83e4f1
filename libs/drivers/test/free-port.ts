/** Ports nobody uses. Somebody could take one before the test does, which the test then reports. */
import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'

/** An unused TCP port of 127.0.0.1. */
export async function freeTcpPort(): Promise<number> {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
