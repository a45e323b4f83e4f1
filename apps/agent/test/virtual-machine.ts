// A computer made of QEMU that boots the agent's kernel at once, its network the user's own: no root, no DHCP server, and the test's own ports at 10.0.2.2.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'

export interface VirtualMachine {
  /** What was written on its serial line so far. */
  console(): string
  /** Resolves when the machine has switched itself off or rebooted; rejects after `limitMs` with the end of its console. */
  ended(limitMs: number): Promise<void>
  /** Takes the power away. */
  kill(): Promise<void>
}

export interface MachineOptions {
  readonly folder: string
  /** What is booted at once; left out: its disks, by its firmware. */
  readonly system?: { readonly kernel: string; readonly initrd: string; readonly args: readonly string[] }
  /** SeaBIOS where left out. */
  readonly firmware?: 'uefi'
  readonly memoryMib?: number
  /** One where left out: several of these machines share two real ones. */
  readonly cpus?: number
  /** A port of this host's loopback that leads to the machine's SSH. */
  readonly sshPort?: number
  /** A second network port, whose other end are UDP ports of this host's loopback: a frame is a datagram. */
  readonly wire?: { readonly machine: number; readonly here: number }
  /** The port of this host's loopback where the machine's BMC listens for its machine (ipmi_sim's VM protocol). */
  readonly bmcPort?: number
  /** Raw files, by the way they are attached. */
  readonly disks?: readonly { readonly file: string; readonly as: 'virtio' | 'nvme' | 'scsi'; readonly serial: string }[]
}

let count = 0

export function startMachine(options: MachineOptions): VirtualMachine {
  const { folder, system, firmware, memoryMib = 768, cpus = 1, disks = [], sshPort, wire, bmcPort } = options
  const log = path.join(folder, `console-${++count}`)
  writeFileSync(log, '')
  const drives = disks.flatMap(({ file, as, serial }, index) => [
    '-drive',
    `file=${file},format=raw,if=none,id=disk${index},cache=unsafe,discard=unmap`,
    '-device',
    {
      virtio: `virtio-blk-pci,drive=disk${index},serial=${serial}`,
      nvme: `nvme,drive=disk${index},serial=${serial}`,
      scsi: `scsi-hd,drive=disk${index},serial=${serial}`,
    }[as],
  ])
  const child: ChildProcess = spawn(
    'qemu-system-x86_64',
    [
      ...[
        '-machine',
        'q35,graphics=off',
        '-display',
        'none',
        '-vga',
        'none',
        '-nodefaults',
        '-no-reboot',
        '-m',
        String(memoryMib),
        '-smp',
        String(cpus),
      ],
      // Plain emulation: KVM within a virtual machine hangs with some hosts after it has started well.
      ...['-accel', 'tcg,tb-size=256', '-cpu', 'max'],
      ...[
        '-smbios',
        'type=1,manufacturer=Muster,product=Lab,serial=LAB-0042,uuid=11111111-2222-3333-4444-555555555555',
        '-smbios',
        'type=17,manufacturer=Maker,loc_pfx=DIMM,serial=D1',
      ],
      ...[
        '-netdev',
        `user,id=net0,restrict=off${sshPort === undefined ? '' : `,hostfwd=tcp:127.0.0.1:${sshPort}-:22`}`,
        '-device',
        'virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01',
      ],
      ...(wire
        ? [
            '-netdev',
            `socket,id=net1,udp=127.0.0.1:${wire.here},localaddr=127.0.0.1:${wire.machine}`,
            // A model of a real card: the agent expects nothing of virtual ones.
            '-device',
            'vmxnet3,netdev=net1,mac=52:54:00:00:00:02',
          ]
        : []),
      ...(bmcPort === undefined
        ? []
        : [
            '-chardev',
            `socket,id=bmc-line,host=127.0.0.1,port=${bmcPort},reconnect=10`,
            ...['-device', 'ipmi-bmc-extern,id=bmc,chardev=bmc-line', '-device', 'isa-ipmi-kcs,bmc=bmc'],
          ]),
      ...(system ? startOf(system) : []),
      ...(firmware ? uefi(path.join(folder, `vars-${count}`)) : []),
      ...['-device', 'virtio-scsi-pci'],
      ...['-serial', `file:${log}`],
      ...drives,
    ],
    { stdio: ['ignore', 'ignore', openSync(path.join(folder, 'qemu.log'), 'a')] },
  )
  const exited = once(child, 'exit')
  const text = () => readFileSync(log, 'utf8')
  return {
    console: text,
    ended: async limitMs => {
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`the machine still runs after ${limitMs / 1000} s:\n${text().slice(-3000)}`)), limitMs)
      })
      try {
        await Promise.race([exited, late])
      } finally {
        clearTimeout(timer)
      }
    },
    kill: async () => {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
      await exited
    },
  }
}

const startOf = ({ kernel, initrd, args }: NonNullable<MachineOptions['system']>) => {
  const words = ['console=ttyS0', 'panic=-1', 'BOOTIF=01-52-54-00-00-00-01', ...args]
  return ['-kernel', kernel, '-initrd', initrd, '-append', words.join(' ')]
}

/** Where Debian's package ovmf has it. */
const ovmf = '/usr/share/OVMF/OVMF_'

/** UEFI, with variables of its own. */
function uefi(variables: string): string[] {
  copyFileSync(`${ovmf}VARS_4M.fd`, variables)
  const drive = (more: string) => ['-drive', `if=pflash,format=raw,${more}`]
  return [...drive(`readonly=on,file=${ovmf}CODE_4M.fd`), ...drive(`file=${variables}`)]
}

/** An empty disk that takes no room until it is written. */
export function emptyDisk(file: string, bytes: number): string {
  writeFileSync(file, '')
  truncateSync(file, bytes)
  return file
}
