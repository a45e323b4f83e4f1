// The life of one computer of the lab, from a press of its button with an empty disk to its disk erased again, as a user of the API sees it.
import { execFile } from 'node:child_process'
import { Resolver } from 'node:dns/promises'
import { createReadStream } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { type Client, UnreachableError } from '@muster/shared/client'
import { errorTable, Refusal } from '@muster/shared/errors'
import type { State } from '@muster/shared/life-cycle'
import type { Machine } from '@muster/shared/machine'
import type { Child } from '../federation/child.ts'
import type { Computer } from './computer.ts'
import { addressOf, lan } from './place.ts'

const run = promisify(execFile)

/** The stages in which a partition can be killed. */
export const stages = ['commissioning', 'deploying', 'releasing'] as const
export type Stage = (typeof stages)[number]

export interface StoryOptions {
  readonly client: Client
  readonly computer: Computer
  readonly os: string
  /** The private key of the user; the public one is beside it. */
  readonly keyFile: string
  readonly publicKey: string
  /** The partition dies, kill -9, once in the middle of each of these stages, and is started again. */
  readonly killIn: readonly Stage[]
  readonly partition: Mortal
  readonly stepLimitMs: number
  readonly say: (line: string) => void
}

export interface StepTime {
  readonly step: string
  readonly ms: number
}

const pattern = 'muster-lab-pattern-that-must-not-survive-a-release'
const user = 'debian'
/** A server that is killed comes back, as a service manager would bring it. */
const restartPauseMs = 500

/** A partition that stories kill; they share it. */
export class Mortal {
  readonly #child: Child
  #restart: Promise<void> = Promise.resolve()

  constructor(child: Child) {
    this.#child = child
  }

  /** Resolves once nobody is killing it. */
  up(): Promise<void> {
    return this.#restart
  }

  async killAndRestart(): Promise<void> {
    this.#restart = (async () => {
      await this.#child.kill()
      await sleep(restartPauseMs)
      await this.#child.start()
    })()
    await this.#restart
  }
}

export async function tellStory(options: StoryOptions): Promise<StepTime[]> {
  const story = new Story(options)
  await story.run()
  return story.times
}

class Story {
  readonly times: StepTime[] = []
  readonly #options: StoryOptions
  readonly #toKillIn: Set<Stage>

  constructor(options: StoryOptions) {
    this.#options = options
    this.#toKillIn = new Set(options.killIn)
  }

  async run(): Promise<void> {
    const { client, computer, os, publicKey } = this.#options
    const id = await this.#step('enlisted', () => this.#enlist())
    await this.#step('commissioned', async () => {
      await this.#order('the order to commission', () => client.machines.commission({ id }))
      const { cpus, memoryMib, disks } = await this.#comesTo(id, 'ready', ({ power }) => power === 'off')
      const serials = disks.map(({ serial }) => serial)
      expectThat(
        cpus === 1 && memoryMib > 500 && serials.includes(`${computer.name.toUpperCase()}-0`),
        'the inventory is of this machine',
        {
          cpus,
          memoryMib,
          serials,
        },
      )
    })
    const allocation = await this.#order('its allocation', () => client.allocations.create({ constraints: { hostnames: [computer.name] } }))
    await this.#step('deployed', async () => {
      await this.#order('the order to deploy', () => client.machines.deploy({ id, os, sshKeys: [publicKey] }))
      await this.#comesTo(id, 'deployed')
    })
    const first = await this.#step('logged in', () => this.#login())
    expectThat((await this.#nameResolves()) === 'to its address', 'the partition’s DNS knows where the machine is')
    await this.#step('rebooted', async () => {
      await this.#ssh(`echo ${pattern} >pattern && sync`)
      expectThat(await holds(computer.disk, pattern), 'the pattern is on the disk')
      await this.#order('the power cycle', () => client.machines.power({ id, action: 'cycle' }))
      const again = await this.#until('another boot from the same disk', async () => {
        const now = await this.#login().catch(() => undefined)
        return now && now.boot !== first.boot ? now : undefined
      })
      expectThat(again.machine === first.machine, 'the same system after the reboot', { first, again })
      const { state } = await this.#order('its state', () => client.machines.get({ id }))
      expectThat(state === 'deployed', 'a deployed machine stays deployed over a reboot', { state })
    })
    await this.#step('released', async () => {
      await this.#order('the release', () => client.allocations.release({ id: allocation.id as string }))
      const { owner, deployment } = await this.#comesTo(id, 'ready', ({ power }) => power === 'off')
      expectThat(owner === null && deployment === null, 'a released machine is nobody’s')
    })
    expectThat(!(await holds(computer.disk, pattern)), 'the pattern is gone from the disk')
    expectThat(this.#toKillIn.size === 0, 'the partition was killed in each stage asked for', { left: [...this.#toKillIn] })
  }

  /** Somebody presses the button; the operator tells where the BMC is. */
  async #enlist(): Promise<string> {
    const { client, computer } = this.#options
    computer.press()
    const found = await this.#until('its enlistment', async () => {
      const { items } = await client.machines.list({ mac: computer.mac })
      return items[0]
    })
    const { address, account } = { address: computer.bmcAddress, account: computer.account }
    await this.#order('its power settings', () =>
      client.machines.update({
        id: found.id,
        hostname: computer.name,
        powerDriver: 'ipmi',
        powerSettings: { address, user: account.name, password: account.password },
      }),
    )
    return found.id
  }

  async #login(): Promise<{ hostname: string; machine: string; boot: string }> {
    const said = await this.#until('a login with the user’s key', () =>
      this.#ssh('cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id').catch(() => undefined),
    )
    const [hostname = '', machine = '', boot = ''] = said.trim().split('\n')
    expectThat(hostname === this.#options.computer.name, 'the host name is the machine’s', { hostname })
    return { hostname, machine, boot }
  }

  async #nameResolves(): Promise<'to its address' | 'elsewhere'> {
    const { name, mac } = this.#options.computer
    const resolver = new Resolver({ timeout: 2_000, tries: 3 })
    resolver.setServers([lan.address])
    const found = await resolver.resolve4(`${name}.${lan.zone}`)
    return found[0] === (await addressOf(mac)) ? 'to its address' : 'elsewhere'
  }

  async #ssh(command: string): Promise<string> {
    const { computer, keyFile } = this.#options
    const address = await addressOf(computer.mac)
    if (address === undefined) throw new Error(`${computer.name} is not heard on the network`)
    const fixed = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'BatchMode=yes', 'ConnectTimeout=5', 'LogLevel=ERROR']
    const { stdout } = await run('ssh', [...fixed.flatMap(each => ['-o', each]), '-i', keyFile, `${user}@${address}`, command], {
      timeout: 30_000,
    })
    return stdout
  }

  async #step<Answer>(name: string, act: () => Promise<Answer>): Promise<Answer> {
    const { computer, say } = this.#options
    const startedAt = performance.now()
    say(`${computer.name}: … ${name}`)
    const answer = await act()
    const ms = Math.round(performance.now() - startedAt)
    this.times.push({ step: name, ms })
    say(`${computer.name}: ${name} after ${(ms / 1000).toFixed(0)} s`)
    return answer
  }

  /** Waits for the state; what the machine waits for meanwhile is shown. A failure ends the story with its fault. */
  async #comesTo(id: string, state: State, fits: (machine: Machine) => boolean = () => true): Promise<Machine> {
    const { client, computer, say } = this.#options
    let shown = ''
    return this.#until(`state ${state}`, async () => {
      const machine = await client.machines.get({ id })
      const text = `${machine.state}${machine.waitingFor ? `: ${machine.waitingFor}` : ''}`
      if (text !== shown) say(`${computer.name}:   ${text}`)
      shown = text
      await this.#killWhere(machine)
      if (machine.state === state && fits(machine)) return machine
      if (machine.state.startsWith('failed_')) throw new Error(`${machine.state}: ${JSON.stringify(machine.fault)}`)
      return undefined
    })
  }

  /** In the middle of the stage: the agent has begun to report. */
  async #killWhere({ state, progress }: Machine): Promise<void> {
    const { partition, computer, say } = this.#options
    const stage = stages.find(name => name === state)
    if (!stage || !this.#toKillIn.has(stage) || progress === null) return
    this.#toKillIn.delete(stage)
    say(`${computer.name}:   the partition is killed while it is ${stage}`)
    await partition.killAndRestart()
  }

  /** Asks for a change, once the partition is there: another story may be killing it just now. */
  #order<Answer>(what: string, ask: () => Promise<Answer & {}>): Promise<Answer & {}> {
    return this.#until(what, async () => {
      await this.#options.partition.up()
      return ask()
    })
  }

  async #until<Answer>(what: string, look: () => Promise<Answer | undefined>): Promise<Answer> {
    const { computer, stepLimitMs } = this.#options
    const until = Date.now() + stepLimitMs
    for (;;) {
      const found = await look().catch((error: unknown) => {
        if (isPassing(error)) return undefined
        throw error
      })
      if (found !== undefined) return found
      if (Date.now() > until) throw new Error(`${computer.name}: ${what} did not come within ${stepLimitMs / 1000} s`)
      await sleep(500)
    }
  }
}

/** The partition is being killed and started again: it is away, or a front says that it is silent. */
function isPassing(error: unknown): boolean {
  if (error instanceof UnreachableError) return true
  return error instanceof Refusal && errorTable[error.code].status >= 500 && errorTable[error.code].retryable === 'yes'
}

function expectThat(isTrue: boolean, what: string, facts: object = {}): void {
  if (!isTrue) throw new Error(`not so: ${what} ${JSON.stringify(facts)}`)
}

/** Whether the file holds the text anywhere. */
async function holds(file: string, text: string): Promise<boolean> {
  let before = Buffer.alloc(0)
  for await (const chunk of createReadStream(path.resolve(file), { highWaterMark: 4 * 2 ** 20 })) {
    const now = Buffer.concat([before, chunk as Buffer])
    if (now.includes(text)) return true
    before = now.subarray(-text.length)
  }
  return false
}
