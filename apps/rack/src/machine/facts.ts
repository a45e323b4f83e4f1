// What a machine that is not there is made of: processors, memory, disks, interfaces, DMI, its place in a rack. A function of seed and
// index alone: the same machines stand in the rack after every start.
import type { Inventory } from '@muster/shared/agent'
import type { Disk, NetworkInterface } from '@muster/shared/machine'
import { seededBytes, seededRandom } from './random.ts'

export interface MachineFacts {
  readonly index: number
  /** The interface the firmware boots from: the first. */
  readonly bootMac: string
  readonly serial: string
  /** Also the BMC's GUID, byte for byte. */
  readonly uuid: string
  readonly location: { readonly zone: string; readonly rack: string; readonly unit: number }
  readonly inventory: Inventory
}

export const machinesPerRack = 40
const racksPerZone = 8
const gibibyte = 1024
const gigabyte = 1_000_000_000

/** Sizes as they are sold together. Weights by order: smaller ones are more common. */
const sizes = [
  { cpus: 4, memoryGib: [8, 16] },
  { cpus: 8, memoryGib: [16, 32, 64] },
  { cpus: 16, memoryGib: [32, 64, 128] },
  { cpus: 24, memoryGib: [64, 96, 192] },
  { cpus: 32, memoryGib: [64, 128, 256] },
  { cpus: 48, memoryGib: [128, 256, 384] },
  { cpus: 64, memoryGib: [256, 512] },
  { cpus: 96, memoryGib: [384, 768] },
  { cpus: 128, memoryGib: [512, 1024] },
] as const

const diskSizesGb = { hdd: [1_000, 4_000, 8_000, 16_000], ssd: [240, 480, 960, 1_920], nvme: [960, 1_920, 3_840, 7_680] } as const
const diskModels = { hdd: 'Virtual Spinner', ssd: 'Virtual Flash', nvme: 'Virtual NVMe' } as const

/**
 * The facts of machine `index` of the rack with this seed. MACs are locally administered and unique for indices below 2,097,152;
 * racks with different seeds differ in two further bytes.
 */
export function machineFacts({ seed, index }: { seed: number; index: number }): MachineFacts {
  const random = seededRandom('facts', seed, index)
  const location = locationOf(index)
  const size = pick(sizes, random() * random())
  const interfaces = interfacesOf({ seed, index, random })
  const serial = `VR${seededBytes(4, 'serial', seed, index).toString('hex').toUpperCase()}`
  const uuid = uuidOf(seededBytes(16, 'uuid', seed, index))
  const arch = random() < 0.9 ? 'amd64' : 'arm64'
  const inventory: Inventory = {
    arch,
    cpus: size.cpus,
    memoryMib: pick(size.memoryGib, random()) * gibibyte,
    interfaces,
    disks: disksOf({ serial, random, cpus: size.cpus }),
    facts: {
      dmi: {
        systemVendor: 'Muster Virtual Rack',
        productName: `VR-${size.cpus}`,
        serial,
        uuid,
        biosVendor: 'Muster',
        biosVersion: `1.${Math.floor(random() * 9)}.0`,
        chassisType: 'Rack Mount Chassis',
      },
      cpuModel: arch === 'amd64' ? `Virtual x86-64 processor, ${size.cpus} threads` : `Virtual Armv8 processor, ${size.cpus} cores`,
      firmware: random() < 0.7 ? 'uefi' : 'legacy',
      // Partitions read a machine's place from these names.
      zone: location.zone,
      rack: location.rack,
      unit: location.unit,
    },
  }
  return { index, bootMac: (interfaces[0] as NetworkInterface).mac, serial, uuid, location, inventory }
}

/** The name a machine gets from its place: `r03u17`. */
export function machineNameOf(index: number): string {
  const { rack, unit } = locationOf(index)
  return `${rack}u${String(unit).padStart(2, '0')}`
}

function locationOf(index: number): MachineFacts['location'] {
  const rack = Math.floor(index / machinesPerRack) + 1
  return {
    zone: `z${Math.floor((rack - 1) / racksPerZone) + 1}`,
    rack: `r${String(rack).padStart(2, '0')}`,
    unit: (index % machinesPerRack) + 1,
  }
}

function interfacesOf({ seed, index, random }: { seed: number; index: number; random: () => number }): NetworkInterface[] {
  const count = pick([1, 2, 2, 4], random())
  const speedMbps = pick([1_000, 10_000, 25_000, 100_000], random())
  const rack = Math.floor(index / machinesPerRack)
  const prefix = `10.${(rack >> 8) & 0xff}.${rack & 0xff}`
  return Array.from({ length: count }, (_, port) => ({
    mac: macOf({ seed, index, port }),
    name: `eno${port + 1}`,
    // Boards have a slow port or two beside the fast ones.
    speedMbps: port < 2 ? speedMbps : 1_000,
    subnet: port === 0 ? `${prefix}.0/24` : null,
    ip: port === 0 ? `${prefix}.${(index % machinesPerRack) + 10}` : null,
  }))
}

/** 02 (locally administered), two bytes of the seed, 21 bits of index and 3 of port. */
function macOf({ seed, index, port }: { seed: number; index: number; port: number }): string {
  const bytes = Buffer.alloc(6, 2)
  seededBytes(2, 'mac', seed).copy(bytes, 1)
  bytes.writeUIntBE(((index & 0x1fffff) << 3) | port, 3, 3)
  return (bytes.toString('hex').match(/../g) as string[]).join(':')
}

function disksOf({ serial, random, cpus }: { serial: string; random: () => number; cpus: number }): Disk[] {
  const system = pick(['ssd', 'ssd', 'nvme', 'hdd'] as const, random())
  const data = pick(['hdd', 'ssd', 'nvme'] as const, random())
  const dataCount = cpus < 16 ? 0 : Math.floor(random() * 7)
  const dataSize = pick(diskSizesGb[data], random())
  const drives = [
    { kind: system, sizeGb: pick(diskSizesGb[system], random() * 0.7) },
    ...Array.from({ length: dataCount }, () => ({ kind: data, sizeGb: dataSize })),
  ]
  const counters = { nvme: 0, sd: 0 }
  return drives.map(({ kind, sizeGb }, place) => ({
    name: kind === 'nvme' ? `nvme${counters.nvme++}n1` : `sd${String.fromCharCode(97 + counters.sd++)}`,
    serial: `${serial}-${place}`,
    model: `${diskModels[kind]} ${sizeGb}G`,
    sizeBytes: sizeGb * gigabyte,
    kind,
  }))
}

function uuidOf(bytes: Buffer): string {
  const hex = Buffer.from(bytes)
  hex.writeUInt8((hex.readUInt8(6) & 0x0f) | 0x40, 6)
  hex.writeUInt8((hex.readUInt8(8) & 0x3f) | 0x80, 8)
  return hex.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

/** `at` from 0 to below 1 says where in the list. */
function pick<Item>(list: readonly Item[], at: number): Item {
  return list[Math.floor(at * list.length)] as Item
}
