// The virtual rack as a program: machines spread over partitions, buttons pressed for those that never enlisted, one JSON line when it
// stands. `node apps/rack/src/main.ts --help`.
import { Command, InvalidArgumentError, Option } from 'commander'
import { paces } from './machine/pace.ts'
import { isSadName, sadNames } from './machine/sad.ts'
import { type Arguments, machineSpecs, type PartitionTarget } from './rack/specs.ts'
import { type MachineSpec, startRack } from './rack.ts'

const program = new Command('rack')
  .description('Virtual BMCs (IPMI 2.0 on UDP) and machines that boot from Muster partitions.')
  .option('--machines <count>', 'how many machines', wholeNumber(1, 60_000), 60)
  .requiredOption('--partition <name=url>', "a partition and its boot door's URL; repeat to spread machines over several", collectPartition)
  .option('--data <dir>', 'keeps disks, power states and BMC addresses there over restarts')
  .addOption(new Option('--pace <pace>', 'how fast machines are').choices(paces).default('quick'))
  .option('--seed <number>', 'decides all hardware, MACs and passwords', wholeNumber(0, 2 ** 31 - 1), 1)
  .option('--sad <name>', `a machine that misbehaves: ${sadNames.join(', ')}, perhaps with a number (slow-bmc-2); repeat`, collectSad, [])
  .option('--bmc-network <n>', 'BMCs listen on 127.<n>.x.y; found free where absent', wholeNumber(1, 254))
  .option('--bmc-port <port>', 'their UDP port; 623, the usual one, needs root', wholeNumber(1, 65_535))
  .addOption(new Option('--bmc-layout <layout>', 'addresses or ports apart').choices(['address each', 'port each']).default('address each'))
  .option('--spread <ms>', 'the buttons are pressed over this time', wholeNumber(0, 3_600_000), 2_000)
  .option('--no-power-on', 'presses no buttons')
  .option('--json', 'writes log lines as JSON too; the ready line always is')
  .addHelpText(
    'after',
    '\nStandard output carries one JSON line when all BMCs listen and the buttons are about to be pressed; the log is on standard error.',
  )

await endWith(main(program.parse().opts<Arguments>()))

async function main(args: Arguments): Promise<void> {
  const log = args.json ? logJson : logText
  const specs = machineSpecs(args)
  const rack = await startRack({
    machines: specs,
    seed: args.seed,
    pace: args.pace,
    bmc: {
      layout: args.bmcLayout,
      ...(args.bmcNetwork !== undefined && { network: args.bmcNetwork }),
      ...(args.bmcPort !== undefined && { port: args.bmcPort }),
    },
    ...(args.data !== undefined && { dataDir: args.data }),
    log,
  })
  const stop = async (signal: NodeJS.Signals) => {
    log('stopping', { signal })
    await rack.close()
  }
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => void endWith(stop(signal)))

  const strangers = rack.machines.filter(machine => machine.isEnlisted === 'no' && machine.power === 'off')
  console.log(JSON.stringify(readyLine(args, { specs, place: rack.bmcPlace, poweringOn: args.powerOn ? strangers.length : 0 })))
  if (!args.powerOn || strangers.length === 0) return
  const pressed = await rack.powerOnAll({ spreadMs: args.spread, only: machine => machine.isEnlisted === 'no' })
  log('buttons pressed', { machines: pressed })
}

/** Open sockets keep the process alive until the rack is closed: only a failure needs an exit code. */
async function endWith(work: Promise<void>): Promise<void> {
  try {
    await work
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  }
}

function readyLine(
  { partition, seed, pace, data }: Arguments,
  {
    specs,
    place,
    poweringOn,
  }: { specs: readonly MachineSpec[]; place: { layout: string; network: number; port: number }; poweringOn: number },
) {
  const partitions = Object.fromEntries(partition.map(({ name, url }) => [name, specs.filter(spec => spec.bootUrl === url).length]))
  const named = specs.flatMap(({ name, index }) => (name ? [{ name, index }] : []))
  return {
    event: 'ready',
    pid: process.pid,
    machines: specs.length,
    partitions,
    seed,
    pace,
    bmc: place,
    poweringOn,
    sad: named,
    data: data ?? null,
  }
}

function logText(message: string, facts: Readonly<Record<string, string | number>>): void {
  console.error(
    `${message}  ${Object.entries(facts)
      .map(([name, value]) => `${name}=${value}`)
      .join(' ')}`.trimEnd(),
  )
}

function logJson(message: string, facts: Readonly<Record<string, string | number>>): void {
  console.error(JSON.stringify({ at: new Date().toISOString(), message, ...facts }))
}

function wholeNumber(min: number, max: number): (text: string) => number {
  return text => {
    const value = Number(text)
    if (text.trim() === '' || !Number.isInteger(value) || value < min || value > max)
      throw new InvalidArgumentError(`not a whole number from ${min} to ${max}`)
    return value
  }
}

function collectPartition(text: string, before: readonly PartitionTarget[] = []): PartitionTarget[] {
  const [, name, url] = /^([^=]+)=(https?:\/\/.+)$/.exec(text) ?? []
  if (!name || !url || !URL.canParse(url)) throw new InvalidArgumentError('must read name=http://host:port')
  if (before.some(target => target.name === name)) throw new InvalidArgumentError(`partition ${name} is named twice`)
  return [...before, { name, url }]
}

function collectSad(text: string, before: readonly string[]): string[] {
  if (!isSadName(text.replace(/-\d+$/, ''))) throw new InvalidArgumentError(`there is no such sadness; there are ${sadNames.join(', ')}`)
  if (before.includes(text)) throw new InvalidArgumentError(`${text} is there already; give the second a number, ${text}-2`)
  return [...before, text]
}
