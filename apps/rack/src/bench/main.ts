// The benchmarks: `npm run bench -- --help`. Figures are ratios to a floor or a peer measured in the same run, because machines differ; beside
// the rates stands CPU per operation, because neighbours differ. A slow machine fails nothing; a wrong result does.
import { writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { Command, InvalidArgumentError } from 'commander'
import { auditPartitions, measureAudit } from './audit.ts'
import { measureBoot } from './boot.ts'
import { measureCommissioning } from './commission.ts'
import { measureP1 } from './p1.ts'
import { measureP2 } from './p2.ts'
import { measureP3 } from './p3.ts'
import { type Plan, quickPlan, wholePlan } from './plan.ts'
import { measurePower } from './power.ts'
import { type Rig, startRig } from './rig.ts'

/** Those that need servers, and those that bring what they need. */
const withRig = { p1: measureP1, p2: measureP2, p3: measureP3, audit: measureAudit } as const
const alone = { power: measurePower, boot: measureBoot, commission: measureCommissioning } as const
type Name = keyof typeof withRig | keyof typeof alone
const names = [...Object.keys(withRig), ...Object.keys(alone)] as Name[]
const isAlone = (name: Name): name is keyof typeof alone => name in alone

interface Arguments {
  only: Name[]
  quick?: true
  seconds?: number
  partitions?: number
  machines?: number
  json?: string
}

const program = new Command('bench')
  .description(
    'Measures allocations: through a front (p1), on a partition (p2), as the fleet grows (p3), with and without the audit log (audit); reading the power of many BMCs (power), booting (boot), and commissioning (commission). About ten minutes.',
  )
  .argument('[names]', `some of ${names.join(',')}`, chosen)
  .option('--only <names>', 'the same', chosen, names)
  .option('--quick', 'small and short: to see that it works, not to be quoted')
  .option('--seconds <n>', 'length of a slice', number)
  .option('--partitions <n>', 'how many partitions', number)
  .option('--machines <n>', 'how many machines each', number)
  .option('--json <file>', 'writes the JSON line there as well')
  .addHelpText('after', '\nProgress is on standard error; standard output carries the tables and, as its last line, everything as JSON.')

program.parse()
const [named] = program.processedArgs as [Name[] | undefined]
const faults = await run({ ...program.opts<Arguments>(), ...(named && { only: named }) })
process.exit(faults > 0 ? 1 : 0)

async function run(args: Arguments): Promise<number> {
  const plan = planOf(args)
  const say = (line: string) => process.stderr.write(`${line}\n`)
  const ofRig = args.only.filter(name => !isAlone(name))
  const rig: Rig | undefined =
    ofRig.length === 0
      ? undefined
      : await startRig({ partitions: Math.max(...ofRig.map(name => partitionsOf(name, plan))), machines: plan.machines, say })
  const result: Record<string, unknown> = {
    bench: 'muster',
    at: new Date().toISOString(),
    node: process.version,
    cores: cpus().length,
    ...(rig && { broker: rig.brokerText, postgres: rig.postgresText }),
  }
  const texts: string[] = []
  const all: string[] = []
  // Helpers end when we do; PostgreSQL and the broker are tied to us.
  process.once('SIGINT', () => void Promise.resolve(rig?.stop()).then(() => process.exit(130)))
  try {
    for (const name of args.only) {
      const { text, figures, faults } = isAlone(name) ? await alone[name](plan, say) : await withRig[name](rig as Rig, plan, say)
      texts.push(text)
      result[name] = figures
      all.push(...faults)
    }
  } finally {
    await rig?.stop()
  }
  const line = JSON.stringify({ ...result, faults: all })
  const head = rig ? `\nbroker: ${rig.brokerText}; PostgreSQL: ${rig.postgresText}; CPU in µs per allocation\n` : ''
  process.stdout.write(`${head}\n${texts.join('\n\n')}\n\n${line}\n`)
  if (args.json !== undefined) writeFileSync(args.json, `${line}\n`)
  return all.length
}

function planOf(args: Arguments): Plan {
  const plan = args.quick ? quickPlan : wholePlan
  const partitions = args.partitions ?? plan.partitions
  return {
    ...plan,
    partitions,
    machines: args.machines ?? plan.machines,
    seconds: args.seconds ?? plan.seconds,
    sizes: [...new Set([...plan.sizes.filter(size => size < partitions), partitions])],
  }
}

function partitionsOf(name: Name, { partitions }: Plan): number {
  return name === 'p2' ? 1 : name === 'audit' ? Math.min(auditPartitions, partitions) : partitions
}

function chosen(text: string): Name[] {
  return text.split(',').map(name => {
    if (!names.includes(name as Name)) throw new InvalidArgumentError(`there is no ${name}; there are ${names.join(', ')}`)
    return name as Name
  })
}

function number(text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text) || Number(text) <= 0) throw new InvalidArgumentError('must be a number above 0')
  return Number(text)
}
