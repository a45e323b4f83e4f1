// The checker as a program: a federation of real processes, clients, faults, and a verdict. `node apps/rack/src/chaos/main.ts --help`.
// Ends with 1 where a single promise was broken.
import { Command, InvalidArgumentError } from 'commander'
import { wholeNumber } from '../whole-number.ts'
import { type FaultKind, faultKinds } from './history.ts'
import { verdictTable } from './report.ts'
import { runChaos } from './run.ts'

interface Arguments {
  allocations: number
  clients: number
  fronts: number
  partitions: number
  replicas: 1 | 2
  machines: number
  rackMachines: number
  faults: FaultKind[]
  seed: number
  freeze: [number, number]
  minutes: number
  keep: boolean
  json: boolean
}

const program = new Command('chaos')
  .description('Allocates over a whole federation while its parts are killed at random, then judges the history.')
  .option('--allocations <n>', 'how many must be acknowledged', wholeNumber(1, 10_000_000), 20_000)
  .option('--clients <n>', 'concurrent clients', wholeNumber(1, 512), 32)
  .option('--fronts <n>', 'fronts', wholeNumber(1, 8), 2)
  .option('--partitions <n>', 'partitions', wholeNumber(1, 20), 3)
  .option('--replicas <n>', 'processes per partition, on one database', wholeNumber(1, 2), 1)
  .option('--machines <n>', 'machines over all partitions; the fewer, the more clients want the same', wholeNumber(1, 20_000), 150)
  .option('--rack-machines <n>', 'how many of them have a (virtual) BMC', wholeNumber(0, 20_000), 30)
  .option('--faults <list>', `what breaks: ${faultKinds.join(', ')}, or none`, faultList, [
    'front',
    'partition',
    'broker',
    'freeze',
  ] as FaultKind[])
  .option('--freeze <from-to>', 'seconds that a partition is frozen; beyond 45 every claim of its workers has run out', span, [1, 6] as [
    number,
    number,
  ])
  .option('--minutes <n>', 'the clients stop by then, whatever they have reached', wholeNumber(1, 10_000), 30)
  .option('--seed <n>', 'decides wishes and faults', wholeNumber(0, 2 ** 31 - 1), Math.floor(Math.random() * 2 ** 31))
  .option('--keep', 'keep the folder with the logs and databases', false)
  .option('--json', 'only the line of JSON on standard output, no table', false)
  .addHelpText(
    'after',
    '\nA long run:  node apps/rack/src/chaos/main.ts --allocations 1000000 --freeze 30-120 --faults front,partition,broker,freeze,postgres --minutes 600',
  )

const args = program.parse().opts<Arguments>()
const say = (line: string) => process.stderr.write(`${line}\n`)
say(`seed ${args.seed}`)
try {
  const outcome = await runChaos({
    ...args,
    freezeSeconds: args.freeze,
    faultEveryMs: [500, 5_000],
    folder: args.keep ? 'keep' : 'remove',
    limitMs: args.minutes * 60_000,
    say,
  })
  if (!args.json) process.stdout.write(`${verdictTable(outcome)}\n`)
  const isWhole = outcome.figures.acknowledged >= args.allocations
  const isPassed = isWhole && outcome.verdict.violations === 0
  if (!isWhole) say(`only ${outcome.figures.acknowledged} of ${args.allocations} allocations were acknowledged in time`)
  process.stdout.write(`${JSON.stringify({ chaos: isPassed ? 'passed' : 'failed', ...outcome, history: undefined })}\n`)
  process.exitCode = isPassed ? 0 : 1
} catch (error) {
  say(`chaos could not run: ${(error as Error).message}`)
  process.exitCode = 2
}

function faultList(text: string): FaultKind[] {
  if (text === 'none') return []
  return text.split(',').map(name => {
    const kind = faultKinds.find(known => known === name)
    if (!kind) throw new InvalidArgumentError(`"${name}" is none of ${faultKinds.join(', ')}`)
    return kind
  })
}

function span(text: string): [number, number] {
  const [from, to = from] = text.split('-').map(Number)
  if (from === undefined || to === undefined || !(from > 0 && to >= from)) throw new InvalidArgumentError('must read from-to, e.g. 30-120')
  return [from, to]
}
