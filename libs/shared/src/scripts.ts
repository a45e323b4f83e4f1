// Commissioning and test scripts: what a script is, which come with the agent, and what is told of each that ran. Those of a partition are files of its
// own (apps/partition/src/domain/script-files.ts); docs/scripts.md shows how to write one.
import { z } from 'zod'
import { durationMs } from './duration.ts'
import { diskKind, duration, machineId, partitionName, timestamp } from './machine.ts'

export const scriptName = z
  .string()
  .regex(/^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$/, 'is not the name of a script (at most 40 lower-case letters, digits and dashes)')

/** `commissioning` scripts look, and run first; `test` scripts judge. One that fails fails the commissioning, whichever it is. */
export const scriptKinds = ['commissioning', 'test'] as const
/** What a script runs on: once, or once for each disk or network interface. */
export const scriptTargets = ['machine', 'disk', 'interface'] as const

/** Becomes a variable of the script's environment, by its own name: none of those can be one that a program knows. */
const parameterName = z.string().regex(/^[a-z][A-Za-z0-9]{0,31}$/, 'is not the name of a parameter such as limitMib')
const text = z
  .string()
  .max(200)
  .regex(/^[^\p{Cc}]*$/u, 'has control characters in it')
export const parameterValue = z.union([z.boolean(), z.number().int(), text])
export type ParameterValue = z.output<typeof parameterValue>

const says = text.default('')
export const scriptParameter = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('integer'), default: z.number().int(), min: z.number().int().default(0), max: z.number().int(), says }),
  z.strictObject({ type: z.literal('boolean'), default: z.boolean(), says }),
  z.strictObject({ type: z.literal('text'), default: text, choices: z.array(text).min(1).max(20).optional(), says }),
])
export type ScriptParameter = z.output<typeof scriptParameter>

/** No script runs for longer. */
const timeoutMaxMs = durationMs('6h')
/** So many bytes of text at most. */
export const scriptBytesMax = 65_536
export const scriptsMax = 32

/** What a script says of itself in its head. */
export const scriptHead = z.strictObject({
  title: z.string().min(1).max(120),
  kind: z.enum(scriptKinds),
  on: z.enum(scriptTargets).default('machine'),
  /** For each disk or interface where it runs on those. */
  timeout: duration.refine(text => !isLonger(text, timeoutMaxMs), 'is longer than 6h'),
  parameters: z
    .record(parameterName, scriptParameter)
    .default({})
    .refine(all => Object.keys(all).length <= 16, 'are more than 16'),
  /** Where it runs only; it is skipped elsewhere. */
  only: z
    .strictObject({
      /** A part of the system's maker as its firmware says it, in any case. */
      vendor: text.min(1).optional(),
      diskKinds: z.array(diskKind).min(1).optional(),
    })
    .default({}),
})
export type ScriptHead = z.output<typeof scriptHead>

function isLonger(text: string, limitMs: number): boolean {
  try {
    return durationMs(text) > limitMs
  } catch {
    // Not a duration: that is said already.
    return false
  }
}

export interface Script extends ScriptHead {
  readonly name: string
  /** Null where it comes with the agent. */
  readonly text: string | null
}

const builtIn = (head: z.input<typeof scriptHead>) => scriptHead.parse(head)

/** The scripts of the agent: apps/agent/root/muster/scripts/<name>.sh. */
export const builtInScripts: Readonly<Record<string, ScriptHead>> = {
  cpu: builtIn({
    title: 'All processors at work, and their results checked',
    kind: 'test',
    timeout: '70m',
    parameters: { seconds: { type: 'integer', default: 60, min: 1, max: 3600, says: 'for so long' } },
  }),
  memory: builtIn({
    title: 'Patterns written to the free memory and read back',
    kind: 'test',
    timeout: '70m',
    parameters: {
      percent: { type: 'integer', default: 80, min: 1, max: 90, says: 'of the free memory' },
      limitMib: { type: 'integer', default: 0, max: 1_000_000_000, says: 'at most so much; 0: no limit' },
      seconds: { type: 'integer', default: 600, min: 1, max: 3600, says: 'begins no further pattern after this time' },
    },
  }),
  'disk-health': builtIn({
    title: 'What each disk says of its own health, also those behind a RAID controller',
    kind: 'test',
    on: 'disk',
    timeout: '3m',
    parameters: { wearPercentMax: { type: 'integer', default: 100, min: 1, max: 255, says: 'fails a disk that is worn more' } },
  }),
  'disk-speed': builtIn({
    title: 'Each disk read from its start; nothing is written',
    kind: 'test',
    on: 'disk',
    timeout: '10m',
    parameters: {
      sizeMib: { type: 'integer', default: 1024, min: 1, max: 1_048_576, says: 'reads so much' },
      leastMibPerSecond: { type: 'integer', default: 0, max: 100_000, says: 'fails a disk that is slower; 0: none' },
    },
  }),
  network: builtIn({
    title: 'The way to the partition from each interface with a link: loss, latency and speed',
    kind: 'test',
    on: 'interface',
    timeout: '3m',
    parameters: {
      requests: { type: 'integer', default: 20, min: 1, max: 1000, says: 'so many over each interface' },
      lossPercentMax: { type: 'integer', default: 0, max: 100, says: 'fails an interface that loses more' },
      leastMbps: { type: 'integer', default: 0, max: 10_000_000, says: 'fails an interface whose link is slower; 0: none' },
      everywhere: { type: 'boolean', default: false, says: 'fails where the partition is not reached; else only the one that booted is' },
    },
  }),
}

/**
 * The values that a script is run with: those given, and defaults for the rest. `problems`: what is wrong with those given, by parameter; an unknown one is.
 */
export function parametersOf(
  script: Pick<ScriptHead, 'parameters'>,
  given: Readonly<Record<string, ParameterValue>> = {},
): { values: Record<string, ParameterValue>; problems: { parameter: string; message: string }[] } {
  const defaults = Object.fromEntries(Object.entries(script.parameters).map(([name, parameter]) => [name, parameter.default]))
  const problems = Object.entries(given).flatMap(([name, value]) => {
    const parameter = Object.hasOwn(script.parameters, name) ? script.parameters[name] : undefined
    const message = parameter ? problemWith(parameter, value) : `is none of its parameters (${Object.keys(script.parameters).join(', ')})`
    return message === undefined ? [] : [{ parameter: name, message }]
  })
  return { values: { ...defaults, ...given }, problems }
}

function problemWith(parameter: ScriptParameter, value: ParameterValue): string | undefined {
  switch (parameter.type) {
    case 'boolean':
      return typeof value === 'boolean' ? undefined : 'is to be true or false'
    case 'integer':
      return typeof value === 'number' && value >= parameter.min && value <= parameter.max
        ? undefined
        : `is to be a whole number from ${parameter.min} to ${parameter.max}`
    case 'text':
      if (typeof value !== 'string') return 'is to be a text'
      return !parameter.choices || parameter.choices.includes(value) ? undefined : `is to be one of ${parameter.choices.join(', ')}`
  }
}

/** Parameters by script, as a commissioning is asked for with them. */
export const scriptInputs = z.record(scriptName, z.record(parameterName, parameterValue))

/** What one commissioning runs: chosen when it is asked for. */
export const scriptChoice = z.object({ name: scriptName, parameters: z.record(z.string(), parameterValue) })
export type ScriptChoice = z.output<typeof scriptChoice>

/** A script as the agent's job has it. */
export const jobScript = z.object({
  name: scriptName,
  kind: z.enum(scriptKinds),
  on: z.enum(scriptTargets),
  timeoutSeconds: z.number().int().min(1),
  parameters: z.record(z.string(), parameterValue),
  only: scriptHead.shape.only,
  /** Null: the agent has it. */
  text: z.string().nullable(),
})
export type JobScript = z.output<typeof jobScript>

/** `skipped`: it did not concern the machine or this part of it, or the part could not say. */
export const scriptStatuses = ['passed', 'failed', 'timed-out', 'skipped'] as const

const resultBytesMax = 16_384

/** What the agent says of one script on one part of the machine. */
export const scriptResult = z.strictObject({
  script: scriptName,
  /** The disk or interface, by the kernel's name; empty where it ran on the whole machine. */
  part: z.string().max(64),
  status: z.enum(scriptStatuses),
  /** Null where it was not run, or did not end by itself. */
  exitCode: z.number().int().min(0).max(255).nullable(),
  seconds: z.number().int().min(0),
  /** Why, in a line. */
  message: z.string().max(1000),
  /** The end of what it wrote. */
  output: z.string().max(65_536),
  /** What it found, as it structured it. */
  result: z
    .record(z.string().max(64), z.unknown())
    .nullable()
    .refine(value => JSON.stringify(value).length <= resultBytesMax, `has more than ${resultBytesMax} characters as JSON`),
})
export type ScriptResult = z.output<typeof scriptResult>

/** A result as people see it in lists; what the script wrote is asked for by its id. */
export const scriptReport = z.object({
  id: z.number().int(),
  at: timestamp,
  machine: machineId,
  /** Which commissioning; the results of one have the same. */
  run: z.string(),
  script: scriptName,
  kind: z.enum(scriptKinds),
  part: z.string(),
  status: z.enum(scriptStatuses),
  exitCode: z.number().int().nullable(),
  seconds: z.number().int(),
  message: z.string(),
  result: z.record(z.string(), z.unknown()).nullable(),
})
export type ScriptReport = z.infer<typeof scriptReport>

/** A script as it is listed: its head, where it comes from, and which partitions have it like this. */
export const scriptEntry = z.object({
  name: scriptName,
  source: z.enum(['agent', 'partition']),
  title: z.string(),
  kind: z.enum(scriptKinds),
  on: z.enum(scriptTargets),
  timeout: z.string(),
  parameters: z.record(z.string(), scriptParameter),
  only: scriptHead.shape.only,
  /** Whether it runs where a commissioning does not say which. */
  default: z.boolean(),
  partitions: z.array(partitionName),
})
export type ScriptEntry = z.infer<typeof scriptEntry>
