/** The one visible list of power drivers. To add one: write its file, add it here, and run the conformance suite over it. */
import { DriverError, type PowerContext, type PowerDriver, type PowerSession } from './driver.ts'
import { ipmi } from './ipmi.ts'
import { manual } from './manual.ts'
import { proxmox } from './proxmox.ts'
import { qemu } from './qemu.ts'
import { redfish } from './redfish.ts'
import { snmpPdu } from './snmp-pdu.ts'
import { virsh } from './virsh.ts'
import { wakeOnLan } from './wake-on-lan.ts'
import { webhook } from './webhook.ts'

export const drivers: readonly PowerDriver[] = [ipmi, redfish, webhook, wakeOnLan, snmpPdu, virsh, proxmox, qemu, manual]

/** The driver of that type, or undefined. */
export function driverOf(type: string): PowerDriver | undefined {
  return drivers.find(driver => driver.type === type)
}

/**
 * Checks stored settings against their driver and opens a session. Throws DriverError `settings` naming each wrong field, never its
 * value: it may be a secret.
 */
export function openPower(power: { type: string; settings: unknown }, context: PowerContext = {}): PowerSession {
  const driver = driverOf(power.type)
  if (!driver) {
    throw new DriverError({
      kind: 'settings',
      tried: 'open',
      target: `driver "${power.type}"`,
      got: 'no such power driver',
      hint: `Choose one of: ${drivers.map(known => known.type).join(', ')}.`,
    })
  }
  const checked = driver.settings.safeParse(power.settings)
  if (!checked.success) {
    throw new DriverError({
      kind: 'settings',
      tried: 'open',
      target: driver.type,
      got: checked.error.issues.map(issue => `${issue.path.join('.') || 'settings'}: ${issue.message}`).join('; '),
      hint: `Correct the machine's ${driver.type} power settings.`,
    })
  }
  return driver.open(checked.data, context)
}
