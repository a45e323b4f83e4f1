/** A virtual machine with both of its management doors: the IPMI BMC and the Redfish service, on one chassis. For tests. */
import { type Bmc, startBmc } from '../src/bmc/bmc.ts'
import { BootOptions } from '../src/bmc/boot-options.ts'
import { machineFacts } from '../src/machine/facts.ts'
import { HttpClient, openConnections } from '../src/machine/http.ts'
import { Machine } from '../src/machine/machine.ts'
import { type Pace, Pacer } from '../src/machine/pace.ts'
import { type Redfish, type RedfishOptions, startRedfish } from '../src/redfish/redfish.ts'

export interface TwoDoors extends AsyncDisposable {
  machine: Machine
  redfish: Redfish
  bmc: Bmc
  bootOptions: BootOptions
  /** Settings of the redfish driver, the certificate pinned. */
  settings: { address: string; user: string; password: string; certificate?: string }
}

export const account = { name: 'admin', password: 'correct-horse', privilege: 'ADMINISTRATOR' } as const

/** Starts a machine that is off and has nothing to boot: only its power matters. `powerEffectMs`: from an order to its effect. */
export async function startTwoDoors(options: Partial<RedfishOptions> & { powerEffectMs?: number; pace?: Pace } = {}): Promise<TwoDoors> {
  const facts = machineFacts({ seed: 1, index: 0 })
  const bootOptions = new BootOptions({ expiryMs: 60_000 })
  const connections = openConnections()
  const pacer = new Pacer(options.pace ?? 'instant', { random: Math.random, powerEffectMs: options.powerEffectMs })
  let redfish: Redfish | undefined
  const machine = new Machine({
    name: 'two-doors',
    facts,
    behaviour: {},
    // The port "discard": nothing listens, and the firmware goes round its boot order.
    bootUrl: 'http://127.0.0.1:9',
    bootOrder: 'network first',
    bootOptions,
    bmc: () => ({ address: '127.0.0.1', user: account.name, password: account.password }),
    bootFileMax: 1024,
    pacer,
    http: new HttpClient(connections, pacer),
    now: Date.now,
    changed: () => {},
    powerChanged: () => redfish?.powerChanged(),
    log: () => {},
  })
  const shared = { users: [{ ...account }], chassis: machine, bootOptions }
  const bmc = await startBmc({ ...shared, address: '127.0.0.1', port: 0, guid: Buffer.from(facts.uuid.replaceAll('-', ''), 'hex') })
  const started = await startRedfish({ ...shared, address: '127.0.0.1', port: 0, uuid: facts.uuid, ...options })
  redfish = started
  return {
    machine,
    redfish: started,
    bmc,
    bootOptions,
    settings: {
      address: started.url,
      user: account.name,
      password: account.password,
      ...(started.certificate && { certificate: started.certificate.fingerprint }),
    },
    [Symbol.asyncDispose]: async () => {
      await machine.close()
      await started.close()
      await bmc.close()
      connections.close()
    },
  }
}
