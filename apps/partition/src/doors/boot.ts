// The boot door, the script a machine asks for; the files that it names are files.ts. Anonymous: a machine that boots has no secret yet. Where it
// asks from is all that speaks for it: domain/boot-origin.ts.
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import { Together } from '@muster/database/together'
import { Refusal } from '@muster/shared/errors'
import { normalMac } from '@muster/shared/ids'
import { type Architecture, architecture } from '@muster/shared/machine'
import { isDatabaseAway } from '../db/connect.ts'
import { type BootRow, bootRows } from '../db/machines.ts'
import type { BootOrigins } from '../domain/boot-origin.ts'
import { archParameter, type BootPlan, bootPlan, ipxeScript } from '../domain/boot-plan.ts'
import type { Core } from '../domain/core.ts'
import { machineToken } from '../domain/machine-token.ts'
import { askedFrom, refusalOfMachine, refuse } from './machine-requests.ts'

export const bootPath = '/boot/ipxe'

/** `baseUrl`: how machines reach this partition. Serves `/boot/ipxe/MAC` and `/boot/ipxe?mac=MAC`, both also with `arch=ARCHITECTURE`, beneath the framework: a herd waits for the sum of what each costs. */
export function bootDoor(core: Core, place: { readonly baseUrl: string; readonly origins: BootOrigins }): RequestListener {
  const lookUps = new Together((macs: string[]) => look(core, macs))
  const answer = async (incoming: IncomingMessage, outgoing: ServerResponse) => {
    const mac = askedMac(incoming.url ?? '')
    // How long a script is hangs on whether it would be given, and that would be written down: RFC 9110, 9.3.2 lets a HEAD leave it out.
    if (incoming.method === 'HEAD') return outgoing.writeHead(200, { 'content-type': scriptType }).end()
    const text = await script(incoming, mac)
    return outgoing.writeHead(200, { 'content-type': scriptType, 'content-length': Buffer.byteLength(text) }).end(text)
  }
  const script = async (incoming: IncomingMessage, mac: string) => {
    const machine = await lookUps.add(mac)
    if (machine === 'unknown while the database is away') return retryScript(place.baseUrl, mac)
    const plan = bootPlan({ machine, loaderArch: saidArch(incoming.url ?? ''), hasAgent: arch => core.catalogue.hasAgent(arch) })
    const common = { baseUrl: place.baseUrl, agentParameters: core.rules.agentParameters }
    if (plan.kind !== 'agent' || plan.machine === null) return ipxeScript(plan, { ...common, token: null })
    const address = askedFrom(incoming, place.origins.proxies)
    const granted = await unlessAway(place.origins.grant({ ...plan.machine, mac, address }))
    if (granted === 'unknown while the database is away') return retryScript(place.baseUrl, mac)
    const given: BootPlan = granted.kind === 'granted' ? plan : { kind: 'unavailable', because: granted.because }
    return ipxeScript(given, { ...common, token: machineToken(core.seal, 'agent', plan.machine) })
  }
  return (incoming, outgoing) => {
    if (incoming.method !== 'GET' && incoming.method !== 'HEAD') {
      refuse(outgoing, new Refusal('method-not-allowed', `scripts are read, not ${incoming.method}`), { allow: 'GET, HEAD' })
      return
    }
    answer(incoming, outgoing).catch(error => refuse(outgoing, refusalOfMachine(error, { log: core.log, path: bootPath })))
  }
}

const scriptType = 'text/plain; charset=UTF-8'

function askedMac(url: string): string {
  const text = macIn(url)
  const mac = normalMac(text)
  if (mac !== undefined) return mac
  throw new Refusal('invalid-input', `"${text}" is not a MAC address`, { errors: [{ field: 'mac', message: 'is not a MAC address' }] })
}

/** As it was written, in the path or as a parameter; empty where neither names one. */
function macIn(url: string): string {
  const rest = url.slice(bootPath.length)
  if (rest.startsWith('/')) return decoded(rest.slice(1).replace(/\?.*$/, ''))
  return new URLSearchParams(rest).get('mac') ?? ''
}

/** What a loader says that it is; what is no architecture is not said. */
function saidArch(url: string): Architecture | undefined {
  const [, query] = url.split('?')
  // Most say nothing, and a herd waits for the sum of what each costs.
  return query === undefined ? undefined : architecture.safeParse(new URLSearchParams(query).get(archParameter)).data
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text // no address either way, and named as it came
  }
}

type Found = BootRow | undefined | 'unknown while the database is away'

/**
 * The rows as they are: what another replica changed a moment ago counts, and one that slept answers nothing from before. A herd shares a few statements. Without the
 * database, what is remembered, as long as that says "boot from disk".
 */
async function look(core: Core, macs: readonly string[]): Promise<Found[]> {
  try {
    const rows = new Map((await bootRows(core.sql, macs)).map(({ mac, ...row }) => [mac, row]))
    return macs.map(mac => rows.get(mac))
  } catch (error) {
    if (!isDatabaseAway(error)) throw error
    return macs.map(mac => {
      const remembered = core.memory.bootFacts(mac)
      const hasWork = remembered === undefined || bootPlan({ machine: remembered, hasAgent: () => true }).kind === 'agent'
      return hasWork ? 'unknown while the database is away' : remembered
    })
  }
}

async function unlessAway<T>(answer: Promise<T>): Promise<T | 'unknown while the database is away'> {
  try {
    return await answer
  } catch (error) {
    if (!isDatabaseAway(error)) throw error
    return 'unknown while the database is away'
  }
}

/** The loader asks again by itself. */
const retryScript = (baseUrl: string, mac: string) =>
  `#!ipxe\necho Muster: the partition cannot look this machine up just now; asking again\nsleep 5\nchain ${baseUrl}/boot/ipxe/${mac}\n`
