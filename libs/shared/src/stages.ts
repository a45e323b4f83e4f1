// How long each stage of a deployment took, from when each began.
import type { Deployment } from './machine.ts'

export interface Stage {
  stage: string
  seconds: number
}

/** In order; a stage that a power loss made the agent repeat is there again. The last one ends when the machine is deployed, or at `until`; without either it is left out. */
export function stagesOf({ startedAt, steps = [], installedAt, deployedAt }: Deployment, until?: string): Stage[] {
  const begun = [{ step: 'power', at: startedAt }, ...steps, ...(installedAt === null ? [] : [{ step: 'first boot', at: installedAt }])]
  return begun.flatMap(({ step, at }, index) => {
    const end = begun[index + 1]?.at ?? deployedAt ?? until
    return end === undefined ? [] : [{ stage: step, seconds: secondsBetween(at, end) }]
  })
}

/** Rounded; of two times as ISO 8601. */
export const secondsBetween = (from: string, to: string): number => Math.round((Date.parse(to) - Date.parse(from)) / 1000)
