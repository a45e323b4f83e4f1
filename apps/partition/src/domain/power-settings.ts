// A machine's power settings: checked by its driver's own schema, split into what may be shown and what is sealed.
import { driverOf } from '@muster/drivers/drivers'
import { invalidInput, wrongFields } from '@muster/shared/errors'
import type { Core } from './core.ts'

export interface StoredPowerSettings {
  driver: string | null
  settings: Record<string, unknown>
  secrets: Buffer | null
}

export const powerContext = (machine: string) => `power ${machine}`

/** Checks settings against the driver and seals its secrets. Throws invalid-input naming `powerDriver` or the field. */
export function storedPowerSettings(
  core: Core,
  machine: string,
  driver: string | null,
  settings: Record<string, unknown>,
): StoredPowerSettings {
  if (driver === null) return { driver: null, settings: {}, secrets: null }
  const found = driverOf(driver)
  if (!found) {
    const message = `there is no power driver ${driver}`
    throw wrongFields([{ field: 'powerDriver', message }])
  }
  if (found.place === 'lab' && core.rules.place !== 'lab') {
    const message = `the power driver ${driver} runs programs on this server; only a lab takes it (MUSTER_PLACE=lab)`
    throw wrongFields([{ field: 'powerDriver', message }])
  }
  const checked = found.settings.safeParse(settings)
  if (!checked.success) {
    const refusal = invalidInput(checked.error)
    const errors = (refusal.facts.errors as { field: string; message: string }[]).map(error => ({
      ...error,
      field: `powerSettings.${error.field}`,
    }))
    throw wrongFields(errors)
  }
  const secretNames = new Set<string>(found.secrets)
  const entries = Object.entries(checked.data)
  const secret = Object.fromEntries(entries.filter(([name, value]) => secretNames.has(name) && value !== undefined))
  return {
    driver,
    settings: Object.fromEntries(entries.filter(([name]) => !secretNames.has(name))),
    secrets: Object.keys(secret).length === 0 ? null : core.seal.seal(secret, powerContext(machine)),
  }
}

/** The whole settings again, for the driver only. */
export function openPowerSettings(
  core: Pick<Core, 'seal'>,
  stored: { machine_id: string; settings: Record<string, unknown>; secrets: Buffer | null },
): Record<string, unknown> {
  if (stored.secrets === null) return stored.settings
  return { ...stored.settings, ...(core.seal.open(stored.secrets, powerContext(stored.machine_id)) as Record<string, unknown>) }
}
