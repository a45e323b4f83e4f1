// What a replica keeps in memory of its machines: the candidates for allocation, and enough to tell a machine "boot from your disk" when the
// database is away. Filled from the rows at start, kept up by own changes at once and by the log for those of other replicas.
import type { Place } from '@muster/shared/allocation/matcher'
import type { BootRow, MachineRow } from '../db/machines.ts'
import { Candidates } from './candidates.ts'

export class Memory {
  readonly candidates: Candidates
  readonly #byMac = new Map<string, BootRow & { version: number }>()
  readonly #macsOf = new Map<string, string[]>()

  constructor(place: Place) {
    this.candidates = new Candidates(place)
  }

  /** Takes over a row, unless a newer one is known. */
  put(row: MachineRow): void {
    this.candidates.put(row)
    const macs = row.interfaces.map(({ mac }) => mac)
    const known = this.#byMac.get(macs[0] ?? '')
    if (known?.id === row.id && known.version > row.version) return
    for (const mac of this.#macsOf.get(row.id) ?? []) this.#byMac.delete(mac)
    const facts = {
      id: row.id,
      state: row.state,
      netboot: row.netboot,
      erase: row.erase,
      run: row.run,
      arch: row.arch,
      version: row.version,
    }
    for (const mac of macs) this.#byMac.set(mac, facts)
    this.#macsOf.set(row.id, macs)
  }

  /** Takes over that a machine was held: all that a hold changes of what is known here. */
  putHeld(held: { id: string; version: number }): void {
    this.candidates.putHeld(held)
    for (const mac of this.#macsOf.get(held.id) ?? []) {
      const known = this.#byMac.get(mac)
      if (known && known.version < held.version) this.#byMac.set(mac, { ...known, state: 'reserved', version: held.version })
    }
  }

  remove(id: string): void {
    this.candidates.remove(id)
    for (const mac of this.#macsOf.get(id) ?? []) this.#byMac.delete(mac)
    this.#macsOf.delete(id)
  }

  /** What was last known of the machine with this address, or undefined. */
  bootFacts(mac: string): BootRow | undefined {
    return this.#byMac.get(mac)
  }
}
