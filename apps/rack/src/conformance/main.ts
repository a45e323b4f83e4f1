#!/usr/bin/env node
// `npx muster-conformance`: is what answers on the bus under a partition's name a partition? Ends with 1 where a promise is broken.
import { readFileSync } from 'node:fs'
import { connectNats } from '@muster/server/bus/nats-bus'
import { inboxOf } from '@muster/shared/bus/permissions'
import { partitionNamePattern } from '@muster/shared/ids'
import { Command, InvalidArgumentError } from 'commander'
import { type Check, checks } from './checks.ts'
import { Broken, FarEnd } from './far-end.ts'

interface Arguments {
  nats: string
  partition: string
  nkeyFile?: string
  take: boolean
  json: boolean
}

type Result = { readonly check: string; readonly outcome: 'passed' | 'skipped' | 'broken'; readonly why?: string }

const program = new Command('muster-conformance')
  .description('Asks a partition over NATS what fronts ask, and says which promises of the protocol (docs/protocol.md) it keeps.')
  .requiredOption('--nats <url>', 'the broker, nats://host:4222; may hold token@ or user:password@')
  .requiredOption('--partition <name>', 'the partition under test', partitionName)
  .option('--nkey-file <file>', "the seed of a front's nkey, where the broker wants keys")
  .option('--no-take', 'leave out the checks that hold a machine for a moment and give it back')
  .option('--json', 'one line of JSON on standard output', false)
  .addHelpText('after', '\nExample:\n  npx muster-conformance --nats nats://127.0.0.1:4222 --partition lon1 --no-take')

const marks = { passed: 'ok     ', skipped: 'skipped', broken: 'BROKEN ' } as const

const args = program.parse().opts<Arguments>()
try {
  process.exitCode = await run()
} catch (error) {
  process.stderr.write(`muster-conformance: ${(error as Error).message}\n`)
  process.exitCode = 2
}

async function run(): Promise<number> {
  const nkey = args.nkeyFile === undefined ? undefined : readFileSync(args.nkeyFile, 'utf8').trim()
  const warn = (_: object, text: string) => process.stderr.write(`  ${text}\n`)
  const log = { info: () => undefined, warn, error: warn }
  const bus = await connectNats({ url: args.nats, nkey, inbox: inboxOf({ kind: 'front' }), name: 'conformance', log })
  try {
    if (!bus.isConnected()) throw new Error(`no link to ${args.nats.replace(/\/\/[^/@]*@/, '//')}`)
    const far = new FarEnd(bus, args.partition)
    const results: Result[] = []
    for (const check of checks) {
      const result = await judge(check, far)
      results.push(result)
      process.stderr.write(`  ${marks[result.outcome]} ${result.check}${result.why === undefined ? '' : `\n      ${result.why}`}\n`)
      if (results.length > 1 || result.outcome !== 'broken' || (await far.isAnswering())) continue
      process.stderr.write(`\nNobody answers under the name ${args.partition}; the other checks are left out.\n`)
      break
    }
    const count = (outcome: Result['outcome']) => results.filter(each => each.outcome === outcome).length
    process.stderr.write(`\n${args.partition}: ${count('passed')} passed, ${count('skipped')} skipped, ${count('broken')} broken\n`)
    if (args.json) process.stdout.write(`${JSON.stringify({ partition: args.partition, results })}\n`)
    return count('broken') === 0 ? 0 : 1
  } finally {
    await bus.close()
  }
}

async function judge(check: Check, far: FarEnd): Promise<Result> {
  if (check.takes && !args.take) return { check: check.name, outcome: 'skipped', why: 'it takes a machine (--no-take)' }
  try {
    const outcome = await check.run(far)
    return outcome ? { check: check.name, outcome: 'skipped', why: outcome.skipped } : { check: check.name, outcome: 'passed' }
  } catch (error) {
    if (!(error instanceof Broken)) throw error
    return { check: check.name, outcome: 'broken', why: error.message }
  }
}

function partitionName(text: string): string {
  if (partitionNamePattern.test(text)) return text
  throw new InvalidArgumentError('It is not the name of a partition, such as lon1.')
}
