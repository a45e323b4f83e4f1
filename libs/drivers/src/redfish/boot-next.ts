/** The one-time boot device: the boot override of a computer system (facts "Boot"). */
import type { BootFirmware, BootNextDevice } from '../driver.ts'
import { Failure } from '../failure.ts'
import { type Answer, type JsonObject, linkOf, object, pathOf, text, texts } from './answer.ts'
import { change } from './change.ts'
import { meaningOf, wordsOf } from './meanings.ts'
import { failureOf, isAbout, type Resource, type Turn } from './service.ts'
import { type ClearTarget, type Vendor, vendorOf } from './vendors.ts'

interface Override {
  device: string
  firmware: BootFirmware | undefined
  lasting: 'Once' | 'Continuous'
}

/** Our words for Redfish's targets; others are told in small letters as they are. */
const deviceNames: Readonly<Record<string, string>> = {
  Pxe: 'network',
  Hdd: 'disk',
  BiosSetup: 'setup',
  Diags: 'diagnostic',
  Floppy: 'floppy',
  Cd: 'cd',
}
const targets = { network: 'Pxe', disk: 'Hdd' } as const satisfies Record<BootNextDevice, string>
const modes = { legacy: 'Legacy', uefi: 'UEFI' } as const satisfies Record<BootFirmware, string>

/**
 * Sets the device for the next boot, reads it back, and says what was kept. Throws Failure `unsupported` if the service does not offer the device,
 * `refused` if it shows another one afterwards.
 */
export async function setBootNext(
  turn: Turn,
  { device, firmware }: { device: BootNextDevice; firmware: BootFirmware },
): Promise<'all' | 'device only' | 'unreadable'> {
  const system = await turn.system()
  const place = await overridePlace(turn, system)
  const target = targets[device]
  checkOffered(place, target)
  const wanted = { BootSourceOverrideEnabled: 'Once', BootSourceOverrideTarget: target, BootSourceOverrideMode: modes[firmware] }
  const path = await write(turn, { system, place, vendor: await vendorOfSystem(turn, system), wanted })
  return await readBack(turn, path, { device, firmware })
}

/** The override in force, or undefined. A change that waits for the next boot counts. */
export async function readBootNext(turn: Turn): Promise<{ device: string; firmware: BootFirmware } | undefined> {
  const system = await turn.system()
  const place = await overridePlace(turn, system)
  const found = overrideIn(place.answer) ?? overrideIn(system.answer)
  // Machines whose service tells no mode are of the years when UEFI was the only one left.
  return found && { device: found.device, firmware: found.firmware ?? 'uefi' }
}

/** Takes the override back; nothing is sent where there is none. */
export async function clearBootNext(turn: Turn): Promise<void> {
  const system = await turn.system()
  const place = await overridePlace(turn, system)
  if (!overrideIn(place.answer) && !overrideIn(system.answer)) return
  const vendor = await vendorOfSystem(turn, system)
  let refusal: Failure | undefined
  for (const clearTarget of vendor.clearTargets) {
    try {
      await write(turn, { system, place, vendor, wanted: clearedBy(clearTarget, place) })
      return
    } catch (error) {
      if (!(error instanceof Failure) || !['refused', 'unsupported'].includes(error.facts.kind)) throw error
      turn.log('the BMC does not clear the boot override this way', { target: clearTarget, got: error.facts.got })
      refusal = error
    }
  }
  throw refusal
}

function clearedBy(target: ClearTarget, place: Resource): JsonObject {
  const mode = text(bootOf(place.answer).BootSourceOverrideMode)
  return {
    BootSourceOverrideEnabled: 'Disabled',
    ...(target !== 'unsaid' && { BootSourceOverrideTarget: target }),
    ...(mode !== undefined && { BootSourceOverrideMode: mode }),
  }
}

/**
 * The resource that takes the override: the settings object where that shows one (AMI and ASRock: changes go to /SD, Lenovo: /Pending), else the
 * system itself (iDRAC has a settings object without it).
 */
async function overridePlace(turn: Turn, system: Resource): Promise<Resource> {
  const path = pathOf(linkOf(object(system.answer.body['@Redfish.Settings']).SettingsObject))
  if (path === undefined) return system
  const answer = await turn.send('GET', path)
  if (answer.status >= 400) {
    turn.log('the settings object cannot be read', { path, got: wordsOf(answer) })
    return system
  }
  return 'BootSourceOverrideTarget' in bootOf(answer) ? { path, answer } : system
}

/** Sends the wanted fields, without those the service does not take, and gives the path that took them. Throws Failure where it takes none. */
async function write(
  turn: Turn,
  { system, place, vendor, wanted }: { system: Resource; place: Resource; vendor: Vendor; wanted: JsonObject },
): Promise<string> {
  const shown = bootOf(place.answer)
  const fields: Record<string, unknown> = { ...wanted }
  const isReported = 'BootSourceOverrideMode' in shown || 'BootSourceOverrideMode' in bootOf(system.answer)
  const modeIsKnown = isReported && vendor.bootMode === 'send'
  // Services that do not report the mode refuse the whole change for it.
  if (!modeIsKnown) delete fields.BootSourceOverrideMode
  for (const field of turn.memory.refusedBootFields) delete fields[field]
  for (;;) {
    const answer = await change(turn, place.path, { Boot: fields })
    if (answer.status < 300) return place.path
    const settings = settingsNamed(answer, system)
    if (settings !== undefined && settings !== place.path) {
      return await write(turn, { system, place: { path: settings, answer: await turn.get(settings) }, vendor, wanted })
    }
    const field = spareField(answer, fields, shown)
    if (field === undefined) {
      throw failureOf(answer, `PATCH ${place.path} with boot target ${String(wanted.BootSourceOverrideTarget ?? 'unsaid')}`)
    }
    turn.log('the BMC does not take a boot field', { field, got: wordsOf(answer) })
    // An unchanged Enabled is refused by some each time it is unchanged, the mode always.
    if (field === 'BootSourceOverrideMode') turn.memory.refusedBootFields.add(field)
    delete fields[field]
  }
}

/** "Do that on the settings object" (OperationSupportedInFutureStateURI), where an ASRock board refuses a change of the system itself. */
function settingsNamed(answer: Answer, system: Resource): string | undefined {
  return isAbout(answer, 'FutureStateURI') || /FutureState/i.test(wordsOf(answer))
    ? pathOf(linkOf(object(system.answer.body['@Redfish.Settings']).SettingsObject))
    : undefined
}

/** A field the refusal is about and that the change can do without: the mode; Enabled where it is so already. */
function spareField(answer: Answer, fields: JsonObject, shown: JsonObject): string | undefined {
  if (meaningOf(answer).again !== 'other value') return undefined
  const mode = 'BootSourceOverrideMode'
  const enabled = 'BootSourceOverrideEnabled'
  if (mode in fields && isAbout(answer, mode)) return mode
  if (enabled in fields && isAbout(answer, enabled) && fields[enabled] === shown[enabled]) return enabled
  return undefined
}

async function readBack(
  turn: Turn,
  path: string,
  wanted: { device: BootNextDevice; firmware: BootFirmware },
): Promise<'all' | 'device only' | 'unreadable'> {
  let found: Override | undefined
  for (let look = 1; look <= turn.timers.readBacks; look++) {
    const answer = await turn.send('GET', path)
    if (answer.status >= 400) return 'unreadable'
    found = overrideIn(answer)
    if (found?.device === wanted.device) return found.lasting === 'Once' && found.firmware === wanted.firmware ? 'all' : 'device only'
    // Some services show the change a moment later than they answer it.
    if (look < turn.timers.readBacks) await turn.pause(turn.timers.pollMs)
  }
  throw new Failure({
    kind: 'refused',
    got: `boot device set to ${wanted.device}, but read back as ${found?.device ?? 'none'}`,
    hint: 'The BMC does not keep the boot override. Put the network first in the boot order of the firmware.',
  })
}

function checkOffered({ answer }: Resource, target: string): void {
  const offered = texts(bootOf(answer)['BootSourceOverrideTarget@Redfish.AllowableValues'])
  if (!offered?.length || offered.includes(target)) return
  throw new Failure({
    kind: 'unsupported',
    got: `the BMC offers only these boot targets: ${offered.join(', ')}`,
    hint: 'Enable network boot in the firmware settings, or put the network first in its boot order.',
  })
}

function bootOf(answer: Answer): JsonObject {
  return object(answer.body.Boot)
}

function overrideIn(answer: Answer): Override | undefined {
  const boot = bootOf(answer)
  const enabled = text(boot.BootSourceOverrideEnabled)
  const target = text(boot.BootSourceOverrideTarget) ?? 'None'
  // Once goes back to Disabled after use; a target left beside it means nothing.
  if ((enabled !== 'Once' && enabled !== 'Continuous') || target === 'None') return undefined
  const mode = text(boot.BootSourceOverrideMode)
  return {
    device: deviceNames[target] ?? target.toLowerCase(),
    firmware: mode === undefined ? undefined : mode === 'Legacy' ? 'legacy' : 'uefi',
    lasting: enabled,
  }
}

/** Who made the service: by what the root says, else by the system's manufacturer. */
export async function vendorOfSystem(turn: Turn, system: Resource): Promise<Vendor> {
  const root = await turn.root()
  const words = [
    text(root.Vendor),
    ...Object.keys(object(root.Oem)),
    text(system.answer.body.Manufacturer),
    text(root.Product),
    text(root.Name),
  ]
  return vendorOf(words.filter(word => word !== undefined))
}
