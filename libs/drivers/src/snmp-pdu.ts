/** The PDU driver: a machine on a switched outlet, whose strip takes orders over SNMP version 1 or 2c. */
import { z } from 'zod'
import type { PowerDriver, PowerState } from './driver.ts'
import { endpointOf, endpointSetting } from './endpoint.ts'
import { Failure } from './failure.ts'
import { type Agent, ask } from './snmp/client.ts'
import { type Maker, makerNames, makers, outletIndex } from './snmp/makers.ts'
import { openSwitch, type Turn } from './turns.ts'

const snmpPort = 161

const settings = z
  .strictObject({
    address: endpointSetting(snmpPort).describe(
      'Host name or IP address of the PDU; a port other than 161 after a colon, IPv6 in brackets then',
    ),
    maker: z.enum(makerNames).describe(
      `Whose PDU it is: ${Object.entries(makers)
        .map(([name, { title }]) => `${name} (${title})`)
        .join('; ')}`,
    ),
    outlet: z
      .string()
      .regex(/^\d{1,5}(\.\d{1,5}){0,2}$/, 'not an outlet: write its number, e.g. 7, or with the unit before it, e.g. 2.7')
      .describe('The outlet’s number, e.g. 7; on a chain of PDUs with the unit before it, e.g. 2.7'),
    version: z.enum(['1', '2c']).default('1').describe('SNMP version. Nearly every PDU speaks 1'),
    community: z
      .string()
      .min(1)
      .max(255)
      .describe('Community that may write. SNMP 1 and 2c send it readably: keep the PDU on a network of its own'),
  })
  .refine(({ maker, outlet }) => outletIndex(makers[maker], outlet) !== undefined, {
    path: ['outlet'],
    error: 'has more parts than the outlets of this maker',
  })

export interface SnmpPduOptions {
  /** Waits for the answer to each sending, in milliseconds. */
  waitsMs?: readonly number[]
}

/** Network cards of PDUs need up to some seconds for a write. */
const defaultWaitsMs = [1000, 2000, 4000]

/** Makes the driver; the options are for tests. */
export function snmpPduDriver({ waitsMs = defaultWaitsMs }: SnmpPduOptions = {}): PowerDriver<typeof settings> {
  return {
    type: 'snmp-pdu',
    title: 'Switched outlet of a PDU, by SNMP',
    settings,
    secrets: ['community'],
    open(given, context = {}) {
      const agent: Agent = { ...given, endpoint: endpointOf(given.address, snmpPort), waitsMs }
      const outlet = { agent, maker: makers[given.maker], index: outletIndex(makers[given.maker], given.outlet) ?? given.outlet }
      return openSwitch({
        target: `snmp-pdu ${given.address} outlet ${given.outlet}`,
        context,
        orders: {
          power: turn => state(turn, outlet),
          on: turn => order(turn, outlet, 'on'),
          off: (turn, how) => (how === 'hard' ? order(turn, outlet, 'off') : cannotAsk()),
          // The makers disagree on what a cycle does to an outlet that is off.
          cycle: async turn => order(turn, outlet, (await state(turn, outlet)) === 'off' ? 'on' : 'cycle'),
        },
      })
    },
  }
}

export const snmpPdu = snmpPduDriver()

interface Outlet {
  agent: Agent
  maker: Maker
  index: string
}

async function order(turn: Turn, { agent, maker, index }: Outlet, what: 'on' | 'off' | 'cycle'): Promise<void> {
  const [oid, value] = maker[what]
  await ask(turn, agent, { type: 'set', oid: `${oid}.${index}`, value, sends: what === 'cycle' ? 'once' : 'repeatedly' })
}

async function state(turn: Turn, { agent, maker, index }: Outlet): Promise<PowerState> {
  const read = await ask(turn, agent, { type: 'get', oid: `${maker.state.oid}.${index}`, sends: 'repeatedly' })
  if (maker.state.on.includes(read)) return 'on'
  if (maker.state.off.includes(read)) return 'off'
  throw new Failure({
    kind: 'protocol',
    got: `the outlet’s state reads ${read}, which is neither on nor off`,
    hint: 'Check the maker. Some PDUs read so for a moment while they switch, or while they have lost a unit of their chain.',
  })
}

async function cannotAsk(): Promise<never> {
  throw new Failure({
    kind: 'unsupported',
    got: 'an outlet cannot ask the operating system to shut down',
    hint: 'Shut the machine down by itself, or cut its power with a hard power off.',
  })
}
