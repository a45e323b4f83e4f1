// A helper that is a fleet of BMCs, each on an address of its own and all with one account, and an echo beside them for the floor.
import { createSocket, type Socket } from 'node:dgram'
import { type Bmc, startBmc } from '../bmc/bmc.ts'
import { BootOptions } from '../bmc/boot-options.ts'
import { bmcAddressOf } from '../rack/addresses.ts'
import { beHelper } from './helper.ts'

const fleet: Bmc[] = []
let echo: Socket | undefined

const bmcs = {
  /** Answers the BMCs' addresses. */
  start: async (options: { count: number; network: number; port: number; user: string; password: string }): Promise<string[]> => {
    const { count, network, port, user, password } = options
    for (let index = 0; index < count; index++) {
      const guid = Buffer.alloc(16)
      guid.writeUInt32LE(index)
      fleet.push(
        await startBmc({
          ...bmcAddressOf({ layout: 'address each', network, port }, index),
          users: [{ name: user, password, privilege: 'ADMINISTRATOR' }],
          guid,
          chassis: { power: () => 'on', control: () => 'accepted' },
          bootOptions: new BootOptions({ expiryMs: 60_000 }),
        }),
      )
    }
    return fleet.map(({ address }) => address)
  },

  /** Starts to send back whatever comes; answers its port on 127.0.0.1. */
  echo: async (_: undefined): Promise<number> => {
    const socket = createSocket({ type: 'udp4', recvBufferSize: 4_194_304, lookup: (host, _options, callback) => callback(null, host, 4) })
    echo = socket
    socket.on('message', (datagram, { port, address }) => socket.send(datagram, port, address))
    await new Promise<void>(resolve => socket.bind(0, '127.0.0.1', resolve))
    return socket.address().port
  },

  /** Loses that share of the datagrams, each way. */
  drop: (rate: number): void => {
    for (const { faults } of fleet) faults.dropRate = rate
  },

  /** The most sessions that any BMC had at once since the start. */
  sessionsAtOnce: (_: undefined): number => Math.max(...fleet.map(({ counters }) => counters.sessionsOpenMax)),
}

export type PowerBmcs = typeof bmcs
beHelper<PowerBmcs>(bmcs, async () => {
  echo?.close()
  await Promise.all(fleet.map(bmc => bmc.close()))
})
