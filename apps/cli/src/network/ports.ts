// Who has a port of this host, from /proc.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

export interface Holder {
  protocol: 'udp' | 'tcp'
  port: number
  /** Where it listens; `0.0.0.0` or `::`: everywhere. */
  address: string
  /** Undefined where only root can see it. */
  process: { pid: number; name: string; command: string[] } | undefined
}

/** Who listens at one of these ports, in the network that this process is in. */
export function holdersOf(ports: readonly number[]): Holder[] {
  const files = [
    ['udp', 'udp'],
    ['udp', 'udp6'],
    ['tcp', 'tcp'],
    ['tcp', 'tcp6'],
  ] as const
  const sockets = files.flatMap(([protocol, file]) =>
    socketsIn(read(`/proc/net/${file}`)).flatMap(socket =>
      ports.includes(socket.port) && (protocol === 'udp' || socket.isListening) ? [{ protocol, ...socket }] : [],
    ),
  )
  if (sockets.length === 0) return []
  const processes = processesBySocket()
  return sockets.map(({ protocol, port, address, inode }) => ({ protocol, port, address, process: processes.get(inode) }))
}

/** The lines of /proc/net/udp and its like. */
export function socketsIn(text: string): { port: number; address: string; inode: string; isListening: boolean }[] {
  return text
    .split('\n')
    .slice(1)
    .flatMap(line => {
      const words = line.trim().split(/\s+/)
      const [address, port] = words[1]?.split(':') ?? []
      const inode = words[9]
      if (address === undefined || port === undefined || inode === undefined) return []
      return [{ port: Number.parseInt(port, 16), address: addressIn(address), inode, isListening: words[3] === '0A' }]
    })
}

/** The kernel writes each 32 bits in the host's own byte order, which is little-endian wherever Muster runs. */
function addressIn(hex: string): string {
  const bytes = (hex.match(/.{8}/g) ?? []).flatMap(word => (word.match(/../g) as string[]).reverse().map(byte => Number.parseInt(byte, 16)))
  if (bytes.length === 4) return bytes.join('.')
  if (bytes.every(byte => byte === 0)) return '::'
  const groups = Array.from({ length: 8 }, (_, index) =>
    (((bytes[index * 2] as number) << 8) | (bytes[index * 2 + 1] as number)).toString(16),
  )
  return groups.join(':')
}

function processesBySocket(): Map<string, NonNullable<Holder['process']>> {
  const found = new Map<string, NonNullable<Holder['process']>>()
  for (const pid of readdirSync('/proc').filter(name => /^\d+$/.test(name))) {
    for (const link of linksIn(`/proc/${pid}/fd`)) {
      const inode = /^socket:\[(\d+)\]$/.exec(link)?.[1]
      if (inode === undefined) continue
      const command = read(`/proc/${pid}/cmdline`).split('\0').filter(Boolean)
      found.set(inode, { pid: Number(pid), name: read(`/proc/${pid}/comm`).trim(), command })
    }
  }
  return found
}

/** Processes end while they are looked at, and others' are not ours to see. */
function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

function linksIn(folder: string): string[] {
  try {
    return readdirSync(folder).flatMap(name => linkAt(`${folder}/${name}`) ?? [])
  } catch {
    return []
  }
}

function linkAt(file: string): string | undefined {
  try {
    return readlinkSync(file)
  } catch {
    return undefined
  }
}

/** Whether it is the dnsmasq of a partition: its configuration says so. */
export function isMusters({ process }: Holder): boolean {
  const file = process?.command.find(word => word.startsWith('--conf-file='))?.slice('--conf-file='.length)
  return file !== undefined && read(file).startsWith('# Written by Muster')
}
