// What befalls a computer of the lab in the middle of its work, step by step: the partition is killed, its power goes, somebody aborts. Each time it must
// end right, or with a reason after which the same order is carried out.
import type { Client } from '@muster/shared/client'
import { lifeCycle, type State } from '@muster/shared/life-cycle'
import type { Machine } from '@muster/shared/machine'
import type { Computer } from './computer.ts'
import { expectThat, type Teller } from './teller.ts'

/** The stages of a machine's life in which it works, and the steps in each, as its progress shows them: the agent's own, and the first boot behind it. */
export const stepsOf = {
  commissioning: ['inventory', 'disk-health'],
  deploying: ['download', 'layout', 'write', 'seed', 'boot', 'first-boot'],
  releasing: ['erase'],
} as const
export type Stage = keyof typeof stepsOf
export const stages = Object.keys(stepsOf) as Stage[]
export type Moment = Stage | (typeof stepsOf)[Stage][number]
export const moments: readonly Moment[] = stages.flatMap(stage => [stage, ...stepsOf[stage]])

/** Steps that only a root tarball has, which is unpacked onto a layout. */
const ofLayouts: readonly Moment[] = ['layout', 'boot']
/** Every step that a machine with that kind of image comes through. */
export const everyStep = (image: 'disk' | 'tar') => moments.filter(at => !isStage(at) && (image === 'tar' || !ofLayouts.includes(at)))

export interface Disturbance {
  /** `kill`: the partition dies (kill -9) and is started again; `cut`: the machine's power goes; `abort`: somebody aborts, and gives the order again. */
  readonly how: 'kill' | 'cut' | 'abort'
  readonly at: Moment
}

export interface DisturberOptions {
  readonly client: Client
  readonly computer: Computer
  readonly teller: Teller
  /** Each happens once, the next time that the machine is there. */
  readonly planned: readonly Disturbance[]
  readonly killPartition: () => Promise<void>
  readonly say: (line: string) => void
}

export class Disturber {
  readonly #options: DisturberOptions
  #left: readonly Disturbance[]
  /** Since the last order. */
  #cuts = 0

  constructor(options: DisturberOptions) {
    this.#options = options
    this.#left = options.planned
  }

  /** Those whose moment has not come. */
  get left(): readonly Disturbance[] {
    return this.#left
  }

  /** Does what is planned for where the machine is. `again` gives the order that it carries out once more. Answers whether the machine is another now. */
  async see(machine: Machine, again: () => Promise<unknown>): Promise<'disturbed' | 'left alone'> {
    const { computer, say } = this.#options
    if (machine.fault?.code === 'power-lost' && machine.state.startsWith('failed_') && this.#cuts > 0) {
      say(`${computer.name}:   ${machine.state}: ${machine.fault.message}; the same order again`)
      await this.#orderAgain(machine.id, { in: machine.state, again })
      return 'disturbed'
    }
    const found = this.#left.find(({ at }) => isAt(machine, at))
    if (!found) return 'left alone'
    this.#left = this.#left.filter(each => each !== found)
    say(`${computer.name}:   ${words[found.how]} at ${found.at} (${machine.state}: ${machine.waitingFor})`)
    await this.#do(found, machine, again)
    return 'disturbed'
  }

  async #do({ how }: Disturbance, { id, state }: Machine, again: () => Promise<unknown>): Promise<void> {
    const { client, computer, teller, killPartition } = this.#options
    if (how === 'kill') return killPartition()
    if (how === 'cut') {
      this.#cuts++
      await computer.cutPower()
      // Where the engine stands otherwise it is no longer at this step.
      await teller.until('that the loss of its power is seen', async () => {
        const now = await client.machines.get({ id })
        return now.state !== state || now.waitingFor?.startsWith('the power') || undefined
      })
      return
    }
    const after = lifeCycle[state].moves.abort?.to
    expectThat(after !== undefined, 'what it does can be aborted', { state })
    await teller.order('the abort', () => client.machines.abort({ id }))
    await this.#orderAgain(id, { in: after as State, again })
  }

  async #orderAgain(id: string, to: { in: State; again: () => Promise<unknown> }): Promise<void> {
    await this.#options.teller.comesTo(id, to.in, { fits: ({ power }) => power === 'off' })
    this.#cuts = 0
    await to.again()
  }
}

const words = { kill: 'the partition is killed', cut: 'the power goes', abort: 'somebody aborts' } as const

const isStage = (at: Moment): at is Stage => stages.some(stage => stage === at)

/** Whether the machine is there just now: in the stage, its agent at work; or at the step, as it said last. */
function isAt({ state, progress, waitingFor }: Machine, at: Moment): boolean {
  if (isStage(at)) return state === at && progress !== null
  if (!stepsOf[state as Stage]?.some(step => step === at)) return false
  if (at === 'first-boot') return waitingFor?.startsWith('the first boot') ?? false
  return /^the agent: (\S+)/.exec(waitingFor ?? '')?.[1] === at
}
