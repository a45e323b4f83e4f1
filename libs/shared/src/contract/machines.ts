// Calls about machines.
import { z } from 'zod'
import { dataSources, oneTimeSecrets, userData } from '../cloud-init.ts'
import { partitionOf } from '../ids.ts'
import {
  allocationId,
  architecture,
  credentialRotation,
  disk,
  duration,
  erasePolicies,
  erasureCertificate,
  explanation,
  hostname,
  label,
  mac,
  machine,
  machineDetail,
  machineId,
  networkInterface,
  osName,
  partitionName,
  powerOrder,
  powerStates,
  state,
} from '../machine.ts'
import { networkDocument } from '../network.ts'
import { scriptInputs, scriptName, scriptReport, scriptsMax } from '../scripts.ts'
import { storageLayout } from '../storage.ts'
import { declareCall } from './call.ts'
import { type Key, mergePages, pageInput, pageOf } from './page.ts'

const id = { id: machineId }
const ofMachine = { kind: 'owner', of: (input: unknown) => partitionOf((input as { id: string }).id) } as const

export const machineSorts = ['id', 'hostname', 'state', 'pool', 'zone', 'rack', 'cpus', 'memoryMib', 'createdAt'] as const
export type MachineSort = (typeof machineSorts)[number]

const machineFilter = {
  state: z.array(state).max(20).optional().describe('any of'),
  tag: z.array(label).max(20).optional().describe('all of'),
  notTag: z.array(label).max(20).optional().describe('none of'),
  pool: z.array(label).max(20).optional(),
  zone: z.array(label).max(20).optional(),
  rack: z.array(label).max(20).optional(),
  arch: z.array(architecture).max(5).optional(),
  partition: z.array(partitionName).max(100).optional(),
  owner: z.string().max(100).optional(),
  allocation: allocationId.optional(),
  power: z.enum(powerStates).optional(),
  locked: z.boolean().optional(),
  fault: z.boolean().optional().describe('true: only machines with a fault'),
  hostname: z.string().max(63).optional().describe('contains this text'),
  mac: mac.optional(),
}

/** Public keys, one line each, as in authorized_keys. */
const sshKeys = z
  .array(
    z
      .string()
      .max(8192)
      .trim()
      .regex(/^[^\r\n]+$/, 'is not one line'),
  )
  .max(50)
  .default([])

/** Optional, not a default: a partition of the release before knows no such field. */
const ownKeys = z.boolean().optional().describe("false: the keys of the caller's own document are left out")

/** Only operators may ask for less than the partition's rule. */
export const releaseErase = z
  .enum(erasePolicies)
  .optional()
  .describe("how the disks are erased; the partition's rule where left out, and a weaker one for operators only")

const machinesList = z.strictObject({
  ...machineFilter,
  sort: z
    .enum([...machineSorts, ...machineSorts.map(name => `-${name}` as const)])
    .default('id')
    .describe('a leading dash sorts downwards'),
  ...pageInput,
})
export type MachinesListInput = z.output<typeof machinesList>

/** Where a machine stands in a list sorted by `sort`. */
export function machineKey(item: z.infer<typeof machine>, sort: string): Key {
  return [item[sort.replace(/^-/, '') as MachineSort], item.id]
}

/** What a person may set on a machine. */
const settable = {
  hostname,
  arch: architecture,
  pool: label,
  zone: label,
  rack: label,
  tags: z.array(label).max(100),
  note: z.string().max(4000),
  interfaces: z.array(networkInterface).min(1).max(64),
  powerDriver: z.string().max(32).nullable().describe('ipmi, manual … ; null: none'),
  powerSettings: z.record(z.string().max(64), z.unknown()).describe("the driver's settings; secrets are sealed and never shown again"),
}

const machineNetwork = z.object({
  /** What an operator set for the machine; null: nothing, it asks by DHCP. */
  document: networkDocument.nullable(),
  /** What its deployment was given instead. */
  deployment: networkDocument.nullable(),
  /** The outcome, as version 2 of cloud-init's network configuration. */
  config: z.record(z.string(), z.unknown()),
})

const atFront = partitionName.optional().describe('needed at a front')

/** What there is to say of a machine that is added by hand. */
const described = {
  hostname: hostname.optional().describe('the id where left out'),
  arch: architecture.default('amd64'),
  interfaces: z.array(networkInterface).min(1).max(64),
  disks: z.array(disk).max(256).default([]),
  cpus: z.number().int().min(0).max(100_000).default(0),
  memoryMib: z.number().int().min(0).max(1_000_000_000).default(0),
  pool: label.default('default'),
  zone: label.default('default'),
  rack: label.default('default'),
  tags: settable.tags.default([]),
  note: settable.note.default(''),
  powerDriver: z.string().max(32).optional(),
  powerSettings: settable.powerSettings.optional(),
}

/** A machine as somebody says it who keeps it elsewhere. What is left out stays as it is, or as it is by default. */
const definition = z.strictObject({
  interfaces: described.interfaces,
  ...z
    .object({
      hostname,
      arch: architecture,
      cpus: z.number().int().min(0).max(100_000),
      memoryMib: z.number().int().min(0).max(1_000_000_000),
      pool: label,
      zone: label,
      rack: label,
      tags: settable.tags,
      note: settable.note,
      powerDriver: z.string().max(32),
      powerSettings: settable.powerSettings,
    })
    .partial().shape,
})
const definitionAnswer = machine.extend({
  /** `learnt`: it was not known here; `changed`: it was, otherwise. */
  outcome: z.enum(['learnt', 'changed', 'known']),
  order: powerOrder,
})
const definitionErrors = ['already-exists', 'wrong-state', 'locked', 'no-power-driver', 'stale-version'] as const

export const machines = {
  list: declareCall({
    summary: 'List machines',
    rest: { method: 'GET', path: '/machines' },
    status: 200,
    role: 'read-only',
    input: machinesList,
    answer: pageOf(machine),
    spread: {
      kind: 'gather',
      merge: (gathered, input) =>
        mergePages(gathered, { sort: input.sort, limit: input.limit, cursor: input.cursor, keyOf: item => machineKey(item, input.sort) }),
    },
    errors: [],
  }),
  get: declareCall({
    summary: 'One machine, with its inventory; operators see its power settings too',
    rest: { method: 'GET', path: '/machines/{id}' },
    status: 200,
    role: 'read-only',
    input: z.strictObject(id),
    answer: machineDetail,
    spread: ofMachine,
    errors: ['not-found'],
  }),
  explain: declareCall({
    summary: 'Why is it as it is: state, since, waiting for, deadline, last fault, next step',
    rest: { method: 'GET', path: '/machines/{id}/explain' },
    status: 200,
    role: 'read-only',
    input: z.strictObject(id),
    answer: explanation,
    spread: ofMachine,
    errors: ['not-found'],
  }),
  create: declareCall({
    summary: 'Add a machine by hand',
    rest: { method: 'POST', path: '/machines' },
    status: 201,
    role: 'operator',
    input: z.strictObject({ partition: atFront, ...described }),
    answer: machine,
    spread: { kind: 'owner', of: input => input.partition },
    errors: ['already-exists'],
  }),
  update: declareCall({
    summary: 'Change what a person may set on a machine',
    rest: { method: 'PATCH', path: '/machines/{id}' },
    status: 200,
    role: 'operator',
    input: z.strictObject({
      ...id,
      version: z.number().int().optional().describe('refuse when it changed since'),
      ...z.object(settable).partial().shape,
    }),
    answer: machine,
    spread: ofMachine,
    errors: ['not-found', 'already-exists', 'stale-version', 'locked'],
  }),
  delete: declareCall({
    summary: 'Forget a machine that nobody uses',
    rest: { method: 'DELETE', path: '/machines/{id}' },
    status: 204,
    role: 'operator',
    input: z.strictObject(id),
    answer: z.null(),
    spread: ofMachine,
    errors: ['not-found', 'wrong-state', 'machine-owned', 'locked'],
  }),
  commission: move(
    'commission',
    'Look inside and test a machine',
    'operator',
    {
      scripts: z.array(scriptName).max(scriptsMax).optional().describe("commissioning scripts; the partition's own where left out"),
      tests: z.array(scriptName).max(scriptsMax).optional().describe("test scripts; the partition's rule where left out"),
      parameters: scriptInputs.optional().describe('by script and parameter'),
    },
    ['no-power-driver'],
  ),
  adopt: move('adopt', 'Take a machine that is in use already as it is: deployed, and yours', 'operator', {}),
  abort: move('abort', 'Stop commissioning, deploying or releasing', 'user', {}),
  deploy: move(
    'deploy',
    'Put an operating system on an allocated machine',
    'user',
    {
      os: osName,
      userData: userData.optional(),
      sshKeys: sshKeys.describe("who may log in; the owner's own keys are added where the owner deploys"),
      ownKeys,
      secrets: oneTimeSecrets.optional(),
      network: networkDocument.optional().describe("for this deployment, instead of the machine's own"),
      storage: storageLayout.optional().describe('how its disks are to be, where the image is a root tarball; flat where left out'),
      dataSource: z.enum(dataSources).optional().describe('how the installed system reads its metadata; the image says so where left out'),
    },
    ['not-installable', 'not-yet-installable', 'no-power-driver', 'already-taken'],
  ),
  release: move('release', 'Give a machine back', 'user', { erase: releaseErase }),
  markBroken: move('mark-broken', 'Take a machine out of service', 'operator', { reason: z.string().max(1000).default('') }),
  fix: move('fix', 'Return a broken machine to service', 'operator', {}, ['machine-owned']),
  rescue: move(
    'rescue',
    'Boot the rescue system',
    'user',
    { sshKeys: sshKeys.describe("who may log in to it, as root; the caller's own keys are added"), ownKeys },
    ['no-power-driver'],
  ),
  exitRescue: move('exit-rescue', 'Leave the rescue system, back to the state before', 'user', {}),
  retire: move('retire', 'Take a machine out for good; its row stays', 'operator', {}, ['machine-owned']),
  restore: move('restore', 'Bring a retired machine back as new', 'operator', {}),
  lock: move('lock', 'Protect a machine from every change', 'user', { reason: z.string().max(1000).default('') }),
  unlock: move('unlock', 'Lift the lock', 'user', {}),
  power: declareCall({
    summary: 'Switch the power, where the life cycle leaves it to people',
    description:
      'Records the order and answers at once. An order equal to the one under way joins it; another one takes its place. The answer names the order.',
    rest: { method: 'POST', path: '/machines/{id}/power' },
    status: 202,
    role: 'user',
    input: z.strictObject({
      ...id,
      action: z.enum(['on', 'off', 'cycle']),
      how: z.enum(['soft', 'hard']).default('hard').describe('off: ask the operating system first'),
      wait: duration.optional().describe('answer when the order has ended, or after this time'),
    }),
    answer: machine.extend({ order: powerOrder }),
    spread: ofMachine,
    errors: ['not-found', 'wrong-state', 'locked', 'no-power-driver'],
  }),
  start: declareCall({
    summary: 'Switch a machine on by its whole definition, known here or not',
    description:
      'For who keeps the machines elsewhere: addresses, power settings and labels travel with each order. A machine that this partition never heard of is learnt from it, as in use by the caller; one that is known, by a MAC address or else by its name, is brought in step first. May be repeated.',
    rest: { method: 'POST', path: '/machine-starts' },
    status: 202,
    role: 'operator',
    input: z.strictObject({
      partition: atFront,
      definition,
      action: z.enum(['on', 'cycle']).default('on'),
      boot: z.enum(['network', 'disk']).optional().describe('what the next boot is from'),
      wait: duration.optional().describe('answer when the order has ended, or after this time'),
    }),
    answer: definitionAnswer,
    spread: { kind: 'owner', of: input => input.partition },
    errors: definitionErrors,
  }),
  stop: declareCall({
    summary: 'Switch a machine off by its whole definition, known here or not',
    description: 'As starting: what is not known is learnt, what is known is brought in step.',
    rest: { method: 'POST', path: '/machine-stops' },
    status: 202,
    role: 'operator',
    input: z.strictObject({
      partition: atFront,
      definition,
      how: z.enum(['soft', 'hard']).default('hard').describe('ask the operating system first'),
      wait: duration.optional().describe('answer when the order has ended, or after this time'),
    }),
    answer: definitionAnswer,
    spread: { kind: 'owner', of: input => input.partition },
    errors: definitionErrors,
  }),
  rotateCredentials: declareCall({
    summary: "Give the account of a machine's BMC a new password, which nobody ever sees",
    description:
      'Records the request and answers at once. Machines that share the account change together. It is safe to lose power at any moment: old and new password are kept, sealed, until a login has shown which is true.',
    rest: { method: 'POST', path: '/machines/{id}/rotate-credentials' },
    status: 202,
    role: 'operator',
    input: z.strictObject({ ...id, wait: duration.optional().describe('answer when it has ended, or after this time') }),
    answer: machine.extend({ rotation: credentialRotation }),
    spread: ofMachine,
    errors: ['not-found', 'locked', 'no-power-driver', 'wrong-state'],
  }),
  confirmPower: move('confirm-power', 'Say that somebody has switched a machine that only people can switch', 'user', {
    power: z.enum(['on', 'off']),
  }),
  network: declareCall({
    summary: 'How the network of a machine is to be, and what its cloud-init is told',
    rest: { method: 'GET', path: '/machines/{id}/network' },
    status: 200,
    role: 'read-only',
    input: z.strictObject(id),
    answer: machineNetwork,
    spread: ofMachine,
    errors: ['not-found'],
  }),
  setNetwork: declareCall({
    summary: 'Say how the network of a machine is to be, from its next deployment on',
    rest: { method: 'PUT', path: '/machines/{id}/network' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ ...id, document: networkDocument.nullable().describe('null: DHCP') }),
    answer: machineNetwork,
    spread: ofMachine,
    errors: ['not-found', 'locked', 'already-taken'],
  }),
  erasures: declareCall({
    summary: 'The erasure certificates of a machine, latest first: which disk, how, and signed by the partition',
    rest: { method: 'GET', path: '/machines/{id}/erasures' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ ...id, limit: z.number().int().min(1).max(1000).default(100) }),
    answer: z.object({ items: z.array(erasureCertificate) }),
    spread: ofMachine,
    errors: ['not-found'],
  }),
  scriptResults: declareCall({
    summary: 'What came of the scripts of a machine, latest first',
    rest: { method: 'GET', path: '/machines/{id}/script-results' },
    status: 200,
    role: 'operator',
    input: z.strictObject({
      ...id,
      run: z.string().max(64).optional().describe('only of this commissioning; `latest`: of the last that ran any'),
      script: scriptName.optional(),
      limit: z.number().int().min(1).max(1000).default(100),
      cursor: z
        .string()
        .regex(/^\d{1,15}$/, 'is not a cursor that Muster gave out')
        .optional()
        .describe('nextCursor of the page before'),
    }),
    answer: pageOf(scriptReport),
    spread: ofMachine,
    errors: ['not-found'],
  }),
  scriptOutput: declareCall({
    summary: 'What a script wrote, at most the last 64 KiB of it',
    rest: { method: 'GET', path: '/machines/{id}/script-output' },
    status: 200,
    role: 'operator',
    input: z.strictObject({ ...id, result: z.number().int().min(1).max(Number.MAX_SAFE_INTEGER).describe('id of the result') }),
    answer: scriptReport.extend({ output: z.string() }),
    spread: ofMachine,
    errors: ['not-found'],
  }),
  powerOrders: declareCall({
    summary: 'The power orders of a machine, latest first: what was asked, by whom, and what came of it',
    rest: { method: 'GET', path: '/machines/{id}/power-orders' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ ...id, limit: z.number().int().min(1).max(1000).default(100) }),
    answer: z.object({ items: z.array(powerOrder) }),
    spread: ofMachine,
    errors: ['not-found'],
  }),
}

/** A call that asks something of one machine: intent is recorded and answered with 202 at once; the engine does the work. */
function move<const Shape extends z.core.$ZodShape>(
  verb: string,
  summary: string,
  role: 'user' | 'operator',
  shape: Shape,
  errors: readonly ('no-power-driver' | 'not-installable' | 'not-yet-installable' | 'machine-owned' | 'already-taken')[] = [],
) {
  return declareCall({
    summary,
    rest: { method: 'POST', path: `/machines/{id}/${verb}` },
    status: 202,
    role,
    input: z.strictObject({ ...id, ...shape }),
    answer: machine,
    spread: ofMachine,
    errors: ['not-found', 'wrong-state', 'locked', ...errors],
  })
}
