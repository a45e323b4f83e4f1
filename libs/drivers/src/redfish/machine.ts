/** Beside power: the identify light, and who the machine and its BMC are. */
import type { Controller, Identity } from '../driver.ts'
import { Failure } from '../failure.ts'
import { type JsonObject, linkOf, list, object, pathOf, text, texts } from './answer.ts'
import { vendorOfSystem } from './boot-next.ts'
import { change } from './change.ts'
import { meaningOf, wordsOf } from './meanings.ts'
import { failureOf, type Resource, type Turn } from './service.ts'

/** Blinking is what "find me" looks like; on some boards only Lit is taken, on Dell Lit means "all is well". */
const ledValues = { on: ['Blinking', 'Lit'], off: ['Off'] } as const

/** The identify light, on until further notice or off. Redfish has no light that goes out by itself: a number of seconds throws `unsupported`. */
export async function identify(turn: Turn, light: number | 'on' | 'off'): Promise<void> {
  if (typeof light === 'number') {
    throw new Failure({
      kind: 'unsupported',
      got: 'Redfish knows no identify light for a number of seconds',
      hint: 'Turn the light on, and off when the machine was found.',
    })
  }
  const place = await lightPlace(turn)
  let refused: Failure | undefined
  for (const fields of lightFields(place.answer.body, light)) {
    const answer = await change(turn, place.path, fields)
    if (answer.status < 300) return
    refused = failureOf(answer, `the identify light (${light})`)
    if (meaningOf(answer).again !== 'other value') break
    turn.log('the BMC does not take a value of the identify light', { got: wordsOf(answer) })
  }
  throw refused ?? noLight()
}

/** LocationIndicatorActive replaced IndicatorLED in 2020. */
function lightFields(body: JsonObject, light: 'on' | 'off'): JsonObject[] {
  if (typeof body.LocationIndicatorActive === 'boolean') return [{ LocationIndicatorActive: light === 'on' }]
  const offered = texts(body['IndicatorLED@Redfish.AllowableValues'])
  return ledValues[light].filter(value => !offered?.length || offered.includes(value)).map(value => ({ IndicatorLED: value }))
}

/** The system where it has a light, else its first chassis that has one. */
async function lightPlace(turn: Turn): Promise<Resource> {
  const system = await turn.system()
  if (hasLight(system.answer.body)) return system
  const chassis = list(object(system.answer.body.Links).Chassis).map(link => pathOf(linkOf(link)))
  for (const path of chassis.slice(0, chassisMax)) {
    if (path === undefined) continue
    const answer = await turn.get(path)
    if (hasLight(answer.body)) return { path, answer }
  }
  throw noLight()
}

/** A server stands in one or two. */
const chassisMax = 4

function hasLight(body: JsonObject): boolean {
  return typeof body.LocationIndicatorActive === 'boolean' || text(body.IndicatorLED) !== undefined
}

function noLight(): Failure {
  return new Failure({
    kind: 'unsupported',
    got: 'neither the system nor its chassis shows an identify light',
    hint: 'This chassis may have none.',
  })
}

/** Who the BMC says it is: its manager's firmware, the vendor's enterprise number, the version of Redfish. Redfish has no product numbers: 0. */
export async function controller(turn: Turn): Promise<Controller> {
  const system = await turn.system()
  const root = await turn.root()
  const path = pathOf(linkOf(list(object(system.answer.body.Links).ManagedBy)[0])) ?? (await firstManager(turn, root))
  const firmware = path === undefined ? undefined : text((await turn.get(path)).body.FirmwareVersion)
  return {
    manufacturer: (await vendorOfSystem(turn, system)).iana,
    product: 0,
    firmware: firmware ?? '',
    protocol: `Redfish ${text(root.RedfishVersion) ?? '1'}`,
  }
}

async function firstManager(turn: Turn, root: JsonObject): Promise<string | undefined> {
  const managers = pathOf(linkOf(root.Managers))
  return managers === undefined ? undefined : pathOf(linkOf(list((await turn.get(managers)).body.Members)[0]))
}

/** What the factory wrote into the computer system; empty texts where it wrote nothing. */
export async function identity(turn: Turn): Promise<Identity> {
  const { body } = (await turn.system()).answer
  const word = (value: unknown) => (text(value) ?? '').trim()
  return { maker: word(body.Manufacturer), product: word(body.Model), serial: word(body.SerialNumber), assetTag: word(body.AssetTag) }
}
