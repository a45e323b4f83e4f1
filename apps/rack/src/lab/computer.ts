// A computer of the lab: a QEMU process with real firmware, switched by a BMC of the virtual rack. Each boot is a cold start of its own, so that the
// firmware asks the BMC's override anew each time, as real firmware does.
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, existsSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ChassisControl } from '@muster/drivers/ipmi/codec'
import { deathTie } from '@muster/embedded/death-tie'
import { type Bmc, startBmc } from '../bmc/bmc.ts'
import { BootOptions } from '../bmc/boot-options.ts'
import { plug, unplug } from './place.ts'

export type Firmware = 'bios' | 'uefi'
export type Acceleration = 'kvm' | 'tcg'

export interface Port {
  readonly mac: string
  /** The interface of the host that its cable ends at. */
  readonly tap: string
}

export interface ComputerOptions {
  readonly name: string
  readonly firmware: Firmware
  /** It boots from the first. */
  readonly ports: readonly [Port, ...Port[]]
  readonly bmcAddress: string
  readonly memoryMib: number
  readonly diskCount: number
  /** Of each. */
  readonly diskBytes: number
  readonly acceleration: Acceleration
  /** Disk, firmware variables, console and QEMU's own words. */
  readonly folder: string
  readonly log: (message: string, facts: Readonly<Record<string, string | number>>) => void
}

/** Debian's package ovmf: the code is shared, the variables are each machine's own. */
const ovmf = { code: '/usr/share/OVMF/OVMF_CODE_4M.fd', variables: '/usr/share/OVMF/OVMF_VARS_4M.fd' }
const ipmiPort = 623
const bootFlagsExpiryMs = 60_000
const cycleOffMs = 1_000

export class Computer implements AsyncDisposable {
  readonly name: string
  readonly mac: string
  readonly macs: readonly string[]
  readonly account: { readonly name: string; readonly password: string; readonly privilege: 'ADMINISTRATOR' }
  readonly bmcAddress: string
  readonly disks: readonly string[]
  readonly consoleFile: string
  readonly #options: ComputerOptions
  readonly #bootOptions = new BootOptions({ expiryMs: bootFlagsExpiryMs })
  #bmc: Bmc | undefined
  #process: ChildProcess | undefined
  #qmp: Socket | undefined
  /** What the guest did to itself, told by QEMU before it ends. */
  #ending: 'guest-reset' | 'other' = 'other'
  /** Orders one after the other: an on behind an off finds it off. */
  #orders: Promise<void> = Promise.resolve()
  #isClosed = false

  /** Puts the machine into the rack, off, its disk empty. */
  static async install(options: ComputerOptions): Promise<Computer> {
    const computer = new Computer(options)
    computer.#bmc = await startBmc({
      address: options.bmcAddress,
      port: ipmiPort,
      users: [computer.account],
      guid: randomBytes(16),
      chassis: computer,
      bootOptions: computer.#bootOptions,
      log: options.log,
    })
    return computer
  }

  private constructor(options: ComputerOptions) {
    const { name, ports, folder, bmcAddress } = options
    this.#options = options
    this.name = name
    this.mac = ports[0].mac
    this.macs = ports.map(({ mac }) => mac)
    this.bmcAddress = bmcAddress
    this.account = { name: 'muster', password: randomBytes(9).toString('base64url'), privilege: 'ADMINISTRATOR' }
    this.disks = Array.from({ length: options.diskCount }, (_, index) => path.join(folder, `${name}.disk${index}`))
    this.consoleFile = path.join(folder, `${name}.console`)
    this.exchangeDisks()
    writeFileSync(this.consoleFile, '')
    if (options.firmware === 'uefi') copyFileSync(ovmf.variables, this.#variables)
  }

  power(): 'on' | 'off' {
    return this.#process === undefined ? 'off' : 'on'
  }

  /** What the BMC is told; the effect follows. */
  control(order: ChassisControl): 'accepted' | 'wrong-state' {
    if (this.power() === 'off' && order !== 'on' && order !== 'off') return 'wrong-state'
    this.#orders = this.#orders
      .then(() => this.#carryOut(order))
      .catch(error => this.#options.log('a chassis order failed', { machine: this.name, order, error: (error as Error).message }))
    return 'accepted'
  }

  /** Somebody presses the button in the front. */
  press(): void {
    this.#bootOptions.buttonPressed()
    this.#start()
  }

  /** Its power goes, as by a fuse, and is there again at once: it stays off until it is switched on. */
  async cutPower(): Promise<void> {
    this.#orders = this.#orders.then(() => this.#stop())
    await this.#orders
  }

  /** Its processors stand still, as those of a machine that hangs; its power stays. */
  freeze(): void {
    this.#qmp?.write('{"execute":"stop"}\n')
  }

  /** Takes its first cable out of the switch: whatever it sends, nobody answers. */
  async unplug(): Promise<void> {
    await unplug(this.#options.ports[0].tap)
  }

  async plug(): Promise<void> {
    await plug(this.#options.ports[0].tap)
  }

  /** Takes the cable out of one of its ports, until it is put back: the port has no link. */
  pullCable(port: number): void {
    this.#setLink(port, 'down')
  }

  putCable(port: number): void {
    this.#setLink(port, 'up')
  }

  /** As its inventory has to tell them. */
  get serials(): string[] {
    return this.disks.map((_, index) => `${this.name.toUpperCase()}-${index}`)
  }

  /** Empty disks, of another size or of its own, from the next start on. */
  exchangeDisks(bytes = this.#options.diskBytes): void {
    for (const disk of this.disks) {
      writeFileSync(disk, '')
      truncateSync(disk, bytes)
    }
  }

  /** What was written on the serial line so far. */
  console(): string {
    return existsSync(this.consoleFile) ? readFileSync(this.consoleFile, 'utf8') : ''
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    await this.#orders
    await this.#stop()
    await this.#bmc?.close()
  }

  #setLink(port: number, link: 'up' | 'down'): void {
    const order = { execute: 'set_link', arguments: { name: `net${port}`, up: link === 'up' } }
    this.#qmp?.write(`${JSON.stringify(order)}\n`)
  }

  get #variables(): string {
    return path.join(this.#options.folder, `${this.name}.vars`)
  }

  async #carryOut(order: ChassisControl): Promise<void> {
    switch (order) {
      case 'on':
        return this.#start()
      case 'off':
        return this.#stop()
      case 'reset':
      case 'cycle':
        await this.#stop()
        if (order === 'cycle') await sleep(cycleOffMs)
        return this.#start()
      case 'soft':
        return void this.#qmp?.write('{"execute":"system_powerdown"}\n')
      case 'diagnosticInterrupt':
        return void this.#qmp?.write('{"execute":"inject-nmi"}\n')
    }
  }

  #start(): void {
    if (this.#process !== undefined || this.#isClosed) return
    const { log, folder } = this.#options
    const override = this.#bootOptions.takeForBoot(Date.now())
    const first = override?.device === 'disk' ? 'disk' : 'network'
    this.#ending = 'other'
    const [program, ...args] = [...deathTie('TERM'), 'qemu-system-x86_64', ...this.#words(first)]
    const child = spawn(program as string, args, { stdio: ['ignore', 'ignore', openSync(path.join(folder, `${this.name}.qemu`), 'a')] })
    this.#process = child
    child.once('error', error => log('QEMU', { machine: this.name, error: error.message }))
    child.once('exit', () => {
      this.#qmp?.destroy()
      this.#qmp = undefined
      this.#process = undefined
      if (this.#ending === 'guest-reset') this.#start()
    })
    this.#listen(child).catch(error => log('QMP', { machine: this.name, error: (error as Error).message }))
  }

  /** Follows what QEMU says: without it a reboot could not be told from a power-off. */
  async #listen(child: ChildProcess): Promise<void> {
    const file = this.#qmpFile
    for (let tries = 0; tries < 100 && this.#process === child; tries++) {
      const socket = connect(file)
      try {
        await once(socket, 'connect')
      } catch {
        // QEMU makes the socket when it is so far.
        await sleep(50)
        continue
      }
      this.#qmp = socket
      socket.on('error', () => {})
      socket.write('{"execute":"qmp_capabilities"}\n')
      for await (const line of createInterface({ input: socket })) {
        const said = JSON.parse(line) as { event?: string; data?: { reason?: string } }
        if (said.event === 'SHUTDOWN') this.#ending = said.data?.reason === 'guest-reset' ? 'guest-reset' : 'other'
      }
      return
    }
  }

  async #stop(): Promise<void> {
    const child = this.#process
    if (!child) return
    const gone = once(child, 'exit')
    this.#ending = 'other'
    child.kill('SIGKILL')
    await gone
  }

  get #qmpFile(): string {
    return path.join(this.#options.folder, `${this.name}.qmp`)
  }

  #words(first: 'disk' | 'network'): string[] {
    const { name, firmware, ports, memoryMib, acceleration } = this.#options
    const order = first === 'disk' ? { disk: 1, network: 1 + this.disks.length } : { network: 1, disk: 2 }
    // OVMF has a driver and a PXE client of its own; SeaBIOS takes both from the card's ROM, and of the first card only.
    const boots = (port: number) => (port === 0 ? `,bootindex=${order.network}` : '') + (port > 0 || firmware === 'uefi' ? ',romfile=' : '')
    return [
      ...['-name', name, '-machine', 'q35,graphics=off', '-display', 'none', '-vga', 'none', '-nodefaults'],
      // A reboot ends QEMU, and the machine is started anew.
      '-no-reboot',
      ...['-m', String(memoryMib), '-smp', '1'],
      ...(acceleration === 'kvm' ? ['-accel', 'kvm', '-cpu', 'host,-arch-capabilities'] : ['-accel', 'tcg,tb-size=256', '-cpu', 'max']),
      ...['-smbios', `type=1,manufacturer=Muster,product=Lab,serial=LAB-${name.toUpperCase()}`],
      ...(firmware === 'uefi'
        ? [
            ...['-drive', `if=pflash,format=raw,readonly=on,file=${ovmf.code}`],
            ...['-drive', `if=pflash,format=raw,file=${this.#variables}`],
          ]
        : []),
      ...ports.flatMap(({ mac, tap }, index) => [
        ...['-netdev', `tap,id=net${index},ifname=${tap},script=no,downscript=no`],
        ...['-device', `virtio-net-pci,netdev=net${index},mac=${mac}${boots(index)}`],
      ]),
      ...this.disks.flatMap((disk, index) => [
        ...['-drive', `file=${disk},format=raw,if=none,id=disk${index},cache=unsafe,discard=unmap`],
        ...['-device', `virtio-blk-pci,drive=disk${index},serial=${this.serials[index]},bootindex=${order.disk + index}`],
      ]),
      ...['-device', 'virtio-rng-pci'],
      ...['-chardev', `file,id=serial0,path=${this.consoleFile},append=on`, '-serial', 'chardev:serial0'],
      ...['-qmp', `unix:${this.#qmpFile},server=on,wait=off`],
    ]
  }
}
