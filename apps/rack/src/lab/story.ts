// The life of one computer of the lab, from a press of its button with an empty disk to its disk erased again, as a user of the API sees it.
import { Resolver } from 'node:dns/promises'
import { createReadStream } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Client } from '@muster/shared/client'
import type { State } from '@muster/shared/life-cycle'
import type { Machine } from '@muster/shared/machine'
import type { Child } from '../federation/child.ts'
import type { Computer } from './computer.ts'
import { type Disturbance, Disturber, type Stage } from './disturbance.ts'
import { duringOf, type FaultName, type FaultOptions, sufferFault } from './faults.ts'
import { type NetworkKind, type Promised, promiseNetwork, seeNetwork } from './networks.ts'
import { addressOf, lan } from './place.ts'
import { enterRescue, leaveRescue, type RescueOptions } from './rescue.ts'
import { runThere } from './shell.ts'
import { expectThat, type StepTime, Teller } from './teller.ts'

/** What a root tarball is put on, and what its root file system is then seen to be on. */
export const rootOn = {
  flat: /^\/dev\/vda3$/,
  lvm: /^\/dev\/mapper\/system-root$/,
  raid1: /^\/dev\/md\d+$/,
} as const
export type Layout = keyof typeof rootOn

export interface StoryOptions {
  readonly client: Client
  readonly computer: Computer
  readonly os: string
  /** Left out: the image is a whole disk. */
  readonly layout: Layout | undefined
  /** Left out: it asks by DHCP. */
  readonly network: NetworkKind | undefined
  /** Whether this computer is on the machines' VLAN too. */
  readonly isOnVlan: boolean
  /** Whether it is put into the rescue system, and back. */
  readonly isRescued: boolean
  /** What the machine suffers before the same order is carried out. */
  readonly fault: { readonly name: FaultName; readonly image: FaultOptions['image'] } | undefined
  /** The private key of the user; the public one is beside it. */
  readonly keyFile: string
  readonly publicKey: string
  /** What befalls it on its way. */
  readonly disturbances: readonly Disturbance[]
  readonly partition: Mortal
  readonly stepLimitMs: number
  readonly say: (line: string) => void
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

export async function tellStory(options: StoryOptions): Promise<readonly StepTime[]> {
  return new Story(options).run()
}

/** An installed system: the same one has the same machine id, and each of its boots another boot id. */
interface Installed {
  readonly machine: string
  readonly boot: string
}

class Story {
  readonly #options: StoryOptions
  readonly #teller: Teller
  readonly #disturber: Disturber
  #promised: Promised | undefined

  constructor(options: StoryOptions) {
    this.#options = options
    this.#teller = new Teller({ ...options, partitionIsUp: () => options.partition.up() })
    const { disturbances: planned, partition } = options
    this.#disturber = new Disturber({ ...options, teller: this.#teller, planned, killPartition: () => partition.killAndRestart() })
  }

  async run(): Promise<readonly StepTime[]> {
    const { client, computer, os, layout, network, isRescued, publicKey } = this.#options
    const id = await this.#teller.step('enlisted', () => this.#teller.enlist())
    expectThat(/muster: starting on Linux [\s\S]*muster: enlisted as /.test(computer.console()), 'the agent’s words are on its serial line')
    await this.#suffer('commissioning', id)
    await this.#teller.step('commissioned', async () => {
      const { cpus, memoryMib, disks } = await this.#carryOut('the order to commission', {
        ...{ id, give: () => client.machines.commission({ id }), to: 'ready' },
        fits: ({ power }) => power === 'off',
      })
      const serials = disks.map(({ serial }) => serial)
      const isOurs = cpus === 1 && memoryMib > 500 && computer.serials.every(serial => serials.includes(serial))
      expectThat(isOurs, 'the inventory is of this machine', { cpus, memoryMib, serials })
    })
    const allocation = await this.#teller.order('its allocation', () =>
      client.allocations.create({ constraints: { hostnames: [computer.name] } }),
    )
    await this.#suffer('deploying', id)
    this.#promised = network && (await promiseNetwork(network, { ...this.#options, teller: this.#teller, id }))
    await this.#teller.step('deployed', async () => {
      const more = { ...(layout && { storage: { kind: layout } }), ...(this.#promised && { network: this.#promised.document }) }
      const give = () => client.machines.deploy({ id, os, sshKeys: [publicKey], ...more })
      await this.#carryOut('the order to deploy', { id, give, to: 'deployed' })
    })
    const first = await this.#teller.step('logged in', () => this.#login())
    expectThat((await this.#nameResolves()) === 'to its address', 'the partition’s DNS knows where the machine is')
    if (layout) {
      const root = (await this.#ssh('findmnt -no SOURCE /')).trim()
      expectThat(rootOn[layout].test(root), `the root file system is on what the layout ${layout} says`, { root })
    }
    await this.#seeNetwork()
    await this.#teller.step('rebooted', async () => {
      await this.#ssh(`echo ${pattern} >pattern && sync`)
      expectThat(await oneHolds(computer.disks, pattern), 'the pattern is on a disk')
      await this.#teller.order('the power cycle', () => client.machines.power({ id, action: 'cycle' }))
      await this.#bootsAgain(id, first)
    })
    await this.#seeNetwork()
    if (isRescued) await this.#rescue(id)
    await this.#teller.step('released', async () => {
      const { owner, deployment } = await this.#carryOut('the release', {
        ...{ id, give: () => client.allocations.release({ id: allocation.id as string }), to: 'ready' },
        fits: ({ power }) => power === 'off',
      })
      expectThat(owner === null && deployment === null, 'a released machine is nobody’s')
    })
    expectThat(!(await oneHolds(computer.disks, pattern)), 'the pattern is gone from the disks')
    expectThat(this.#disturber.left.length === 0, 'it was disturbed wherever that was asked for', { left: this.#disturber.left })
    return this.#teller.times
  }

  async #suffer(during: Stage, id: string): Promise<void> {
    const { fault } = this.#options
    if (!fault || duringOf(fault.name) !== during) return
    await this.#teller.step('failed first', () => sufferFault({ ...this.#options, ...fault, teller: this.#teller, id }))
  }

  /** The installed system comes up from its disk once more, and the machine is still deployed. */
  async #bootsAgain(id: string, before: Installed): Promise<void> {
    const again = await this.#teller.until('another boot from the same disk', async () => {
      const now = await this.#login().catch(() => undefined)
      return now && now.boot !== before.boot ? now : undefined
    })
    expectThat(again.machine === before.machine, 'the same system after the reboot', { before, again })
    const { state } = await this.#teller.order('its state', () => this.#options.client.machines.get({ id }))
    expectThat(state === 'deployed', 'a deployed machine stays deployed over a reboot', { state })
  }

  async #rescue(id: string): Promise<void> {
    const before = await this.#login()
    const written = { file: `/home/${user}/pattern`, text: pattern }
    const options: RescueOptions = { ...this.#options, folder: path.dirname(this.#options.keyFile), teller: this.#teller, written }
    await this.#teller.step('rescued', () => enterRescue(options, id))
    await this.#teller.step('back on its disk', async () => {
      await leaveRescue(options, id)
      await this.#bootsAgain(id, before)
    })
    expectThat((await this.#ssh('cat pattern')).trim() === pattern, 'its files are as they were')
    await this.#seeNetwork()
  }

  async #seeNetwork(): Promise<void> {
    const { computer, keyFile, isOnVlan } = this.#options
    const promised = this.#promised
    if (!promised) return
    const runAt = (address: string, command: string) => runThere({ user, address, keyFile }, command)
    await this.#teller.step(`seen: ${promised.kind}`, () => seeNetwork(promised, { computer, runAt, isOnVlan }))
  }

  /** Gives the order and waits until it is carried out, whatever befalls the machine meanwhile. */
  async #carryOut(
    what: string,
    wanted: { id: string; give: () => Promise<unknown>; to: State; fits?: (machine: Machine) => boolean },
  ): Promise<Machine> {
    const { id, give, to, fits } = wanted
    const order = () => this.#teller.order(what, () => give().then(() => 'given' as const))
    await order()
    return this.#teller.comesTo(id, to, { ...(fits && { fits }), meanwhile: machine => this.#disturber.see(machine, order) })
  }

  async #login(): Promise<Installed> {
    const said = await this.#teller.until('a login with the user’s key', () =>
      this.#ssh('cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id').catch(() => undefined),
    )
    const [hostname = '', machine = '', boot = ''] = said.trim().split('\n')
    expectThat(hostname === this.#options.computer.name, 'the host name is the machine’s', { hostname })
    return { machine, boot }
  }

  async #nameResolves(): Promise<'to its address' | 'elsewhere'> {
    const resolver = new Resolver({ timeout: 2_000, tries: 3 })
    resolver.setServers([lan.address])
    const found = await resolver.resolve4(`${this.#options.computer.name}.${lan.zone}`)
    return found[0] === (await this.#address()) ? 'to its address' : 'elsewhere'
  }

  /** The one it was promised, or where it was last heard. */
  async #address(): Promise<string | undefined> {
    return this.#promised?.address ?? (await addressOf(this.#options.computer.mac))
  }

  async #ssh(command: string): Promise<string> {
    const { computer, keyFile } = this.#options
    const address = await this.#address()
    if (address === undefined) throw new Error(`${computer.name} is not heard on the network`)
    return runThere({ user, address, keyFile }, command)
  }
}

async function oneHolds(files: readonly string[], text: string): Promise<boolean> {
  for (const file of files) if (await holds(file, text)) return true
  return false
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
