// Tokens of machines: per machine, per run (one commissioning, one deployment) and per purpose. They are computed, not stored; they die
// when the machine's run changes. Whom a boot script hands one to: boot-origin.ts.
import { Refusal } from '@muster/shared/errors'
import type { Seal } from './seal.ts'

/** `agent`: do the job and report. `metadata`: read what the deployed system is told, and phone home. */
export type TokenPurpose = 'agent' | 'metadata'

/** A token that is none of ours, or comes from where it was not given to: somebody tries. One whose run is over is not strange: each machine comes to have one. */
export class StrangeToken extends Refusal {}

export function machineToken(seal: Seal, purpose: TokenPurpose, machine: { id: string; run: string }): string {
  const body = `${machine.id}.${machine.run}`
  return `${body}.${seal.sign(`${purpose}.${body}`)}`
}

/** The machine and run a token names, or undefined where it is not ours. The caller still compares the run with the machine's. */
export function readMachineToken(seal: Seal, purpose: TokenPurpose, token: string): { id: string; run: string } | undefined {
  const [id, run, signature, ...rest] = token.split('.')
  if (!id || !run || !signature || rest.length > 0) return undefined
  return seal.isSignature(signature, `${purpose}.${id}.${run}`) ? { id, run } : undefined
}
