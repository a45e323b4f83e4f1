// `muster bmc power` and its neighbours against virtual BMCs over real UDP: one order each, an ending for every kind of failure, and no secret
// anywhere.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { aHome, type Ended, type Home } from '../muster.ts'
import { closedPort, kg, password, startVirtualBmc, type VirtualBmc } from './virtual-bmc.ts'

let home: Home
let machine: VirtualBmc
let passwordFile: string
beforeAll(() => {
  home = aHome()
  passwordFile = aFile('password', `${password}\n`)
})
afterAll(() => home[Symbol.dispose]())
beforeEach(async () => {
  machine = await startVirtualBmc()
})
afterEach(async () => {
  await machine[Symbol.asyncDispose]()
  expect(machine.bmc.sessionsOpen()).toBe(0)
})

function aFile(name: string, text: string | Buffer): string {
  const path = join(home.folder, name)
  writeFileSync(path, text, { mode: 0o600 })
  return path
}

/** Runs `muster bmc …` with the password file; no secret may come out. */
async function bmc(words: readonly string[], options: { stdin?: string } = {}): Promise<Ended> {
  const given = words.some(word => word.startsWith('--password')) ? [] : ['--password-file', passwordFile]
  const ended = await home.muster(['bmc', ...words, ...given], options)
  expect(ended.stdout + ended.stderr).not.toMatch(/planted/i)
  return ended
}

/** The problem document of a failure. */
function problemOf({ stderr }: Ended): Record<string, unknown> {
  return JSON.parse(stderr.trim().split('\n').at(-1) as string)
}

test('status says whether it is on, for people and for scripts', async () => {
  const url = machine.url()
  const [people, json, name] = await Promise.all([
    bmc(['power', 'status', url]),
    bmc(['power', 'status', url, '-o', 'json']),
    bmc(['power', 'status', url, '-o', 'name', '--password-stdin'], { stdin: `${password}\n` }),
  ])
  const target = `ipmi 127.0.0.1:${machine.bmc.port}`
  expect(people).toEqual({ code: 0, stdout: `${target}  power off\n`, stderr: '' })
  expect(JSON.parse(json.stdout)).toEqual({ target, power: 'off' })
  expect(name.stdout).toBe('off\n')
})

test('on, cycle, soft and off are watched until the power is as wanted', async () => {
  const outcomes = []
  for (const order of ['on', 'cycle', 'soft', 'on', 'off']) {
    const { code, stdout } = await bmc(['power', order, machine.url(), '--wait', '30s', '-o', 'json'])
    expect(code).toBe(0)
    outcomes.push(JSON.parse(stdout))
  }
  expect(outcomes.map(({ order, power, seenOff }) => [order, power, seenOff])).toEqual([
    ['on', 'on', undefined],
    ['cycle', 'on', true],
    ['soft', 'off', undefined],
    ['on', 'on', undefined],
    ['off', 'off', undefined],
  ])
  expect(machine.history).toEqual(['on', 'off', 'on', 'off', 'on', 'off'])
  expect(machine.bmc.counters.controls).toMatchObject({ on: 2, cycle: 1, soft: 1, off: 1 })
})

test('without --wait an order is accepted, and nobody claims to have seen more', async () => {
  const { code, stdout } = await bmc(['power', 'on', machine.url(), '-o', 'json'])
  expect(code).toBe(0)
  expect(JSON.parse(stdout)).toMatchObject({ order: 'on', power: null, waitedMs: null })
})

test('a BMC that accepts an order and drops it: the wait ends with its time', async () => {
  machine.obeys = 'never'
  const ended = await bmc(['power', 'on', machine.url(), '--wait', '1s', '-o', 'json'])
  expect(ended).toMatchObject({ code: 8, stdout: '' })
  expect(problemOf(ended)).toMatchObject({
    code: 'timed-out',
    detail: expect.stringContaining('accepted, but after 1 s: power off, not yet on'),
  })
})

test.for([
  ['a wrong password', 12, 'authentication', ['--password-stdin'], 'wr0ng-and-planted'],
  ['a user nobody knows', 12, 'authentication', [], undefined],
  ['too little privilege', 13, 'privilege', ['--privilege', 'user'], undefined],
  ['a level the account has not', 13, 'privilege', [], undefined],
] as const)('%s ends with %i', async ([what, code, kind, flags, stdin]) => {
  const user = what.startsWith('a user') ? 'nobody' : what.startsWith('a level') ? 'reader' : 'admin'
  const ended = await bmc(['power', 'on', machine.url(user), ...flags, '-o', 'json'], stdin === undefined ? {} : { stdin })
  expect(ended).toMatchObject({ code, stdout: '' })
  expect(problemOf(ended)).toMatchObject({
    code: `bmc-${kind}`,
    kind,
    tried: 'power on',
    target: `ipmi 127.0.0.1:${machine.bmc.port}`,
    got: expect.stringMatching(/\S/),
    hint: expect.stringMatching(/\S/),
    outcome: 'none',
    retryable: false,
  })
  expect(machine.bmc.counters.controls.on).toBe(0)
})

test('an account that may only look looks, when asked to', async () => {
  expect(await bmc(['power', 'status', machine.url('reader'), '--privilege', 'USER'])).toMatchObject({ code: 0 })
})

test('a BMC with a key: with it from a file or as hex, and without it', async () => {
  await using locked = await startVirtualBmc({ kg: Buffer.from(kg) })
  const hex = Buffer.from(kg).toString('hex')
  const file = aFile('kg', `0x${hex}\n`)
  const [fromFile, asHex, without, wrong] = await Promise.all([
    bmc(['power', 'status', locked.url(), '--kg-file', file]),
    bmc(['power', 'status', locked.url(), '--kg', hex]),
    bmc(['power', 'status', locked.url()]),
    bmc(['power', 'status', locked.url(), '--kg', 'ff00']),
  ])
  for (const ended of [fromFile, asHex]) expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining('power off') })
  expect(without).toMatchObject({ code: 12, stderr: expect.stringContaining('hint: A BMC key K_g is set on this BMC') })
  expect(wrong).toMatchObject({ code: 12, stderr: expect.stringContaining('is not the one set on the BMC') })
})

test('a dead address is known at once where the port is closed, and in the end where the host is silent', async () => {
  machine.bmc.faults.life = 'silent'
  const timed = async (url: string) => {
    const startedAt = performance.now()
    const ended = await bmc(['power', 'status', url, '-o', 'json'])
    return { ended, ms: performance.now() - startedAt }
  }
  const [closed, silent] = await Promise.all([timed(`ipmi://admin@127.0.0.1:${await closedPort()}`), timed(machine.url())])
  for (const { ended } of [closed, silent]) expect(problemOf(ended)).toMatchObject({ code: 'bmc-silent', retryable: true })
  expect([closed.ended.code, silent.ended.code]).toEqual([15, 15])
  expect(closed.ended.stderr).toContain('nothing listens there')
  expect(closed.ms).toBeLessThan(silent.ms)
})

test('a BMC without room for a session is busy', async () => {
  await using full = await startVirtualBmc({ slots: 0 })
  const ended = await bmc(['power', 'status', full.url(), '-o', 'json'])
  expect(ended.code).toBe(14)
  expect(problemOf(ended)).toMatchObject({
    code: 'bmc-busy',
    retryable: true,
    hint: expect.stringContaining('All sessions of the BMC are taken'),
  })
})

test('a BMC that falls silent while the power is watched does not end the wait', async () => {
  machine.obeys = 'never'
  const running = home.start(['bmc', 'power', 'on', machine.url(), '--wait', '60s', '--password-file', passwordFile])
  await running.seen('stderr', 'power off, not yet on')
  machine.bmc.faults.life = 'silent'
  await new Promise(resolve => setTimeout(resolve, 1500))
  machine.bmc.faults.life = 'alive'
  machine.power = 'on'
  expect(await running.ended).toMatchObject({ code: 0, stdout: expect.stringContaining('power on done, power on after') })
})

test('Ctrl-C ends a wait with 130 and leaves no session behind', async () => {
  machine.obeys = 'never'
  const running = home.start(['bmc', 'power', 'on', machine.url(), '--wait', '60s', '--password-file', passwordFile])
  await running.seen('stderr', 'not yet on')
  running.interrupt()
  expect((await running.ended).code).toBe(130)
})

test('the next boot is set, shown and taken back', async () => {
  const url = machine.url()
  const words = [[], ['network', '--firmware', 'legacy'], [], ['none'], []]
  const shown = []
  for (const more of words) {
    const { code, stdout } = await bmc(['boot', url, ...more, '-o', 'json'])
    expect(code).toBe(0)
    shown.push(JSON.parse(stdout).next)
  }
  const network = { device: 'network', firmware: 'legacy' }
  expect(shown).toEqual([null, network, network, null, null])
})

test('the identify light goes on, for a while, and off', async () => {
  const seen = []
  for (const light of ['on', '60', 'off']) {
    expect(await bmc(['identify', machine.url(), light])).toMatchObject({ code: 0 })
    seen.push(machine.bmc.identify())
  }
  expect(seen).toEqual(['on', 'timed', 'off'])
  expect(await bmc(['identify', machine.url(), '256'])).toMatchObject({ code: 2 })
})

test('what a BMC has not is said with what to do instead', async () => {
  for (const words of [['sensors'], ['sel'], ['fru']]) {
    const ended = await bmc([...words, machine.url(), '-o', 'json'])
    expect(ended.code).toBe(18)
    expect(problemOf(ended)).toMatchObject({ code: 'bmc-unsupported', hint: expect.stringMatching(/\S/) })
  }
})

test.for<[string, string[]]>([
  ['a password in the address', ['power', 'status', 'ipmi://admin:planted@127.0.0.1']],
  ['the address behind --wait', ['power', 'on', '--wait', 'ipmi://admin:planted@127.0.0.1']],
  ['a password as an option', ['power', 'status', 'ipmi://admin@127.0.0.1', '--password=planted']],
  ['a password as a setting', ['power', 'status', 'ipmi://admin@127.0.0.1', '--setting', 'password=planted']],
  ['a key that is not hex', ['power', 'status', 'ipmi://admin@127.0.0.1', '--kg', 'planted']],
  ['no user', ['power', 'status', 'ipmi://127.0.0.1']],
  ['no such driver', ['power', 'status', 'ilo://admin@127.0.0.1']],
  ['a name too long for IPMI', ['power', 'status', 'ipmi://administrator-of-all@127.0.0.1']],
  ['a suite nobody should use', ['power', 'status', 'ipmi://admin@127.0.0.1', '--suite', '0']],
  ['no such order', ['power', 'of', 'ipmi://admin@127.0.0.1']],
  ['no password at all', ['power', 'status', 'ipmi://admin@127.0.0.1', '--password-file', '/nowhere/at/all']],
])('%s is a mistake on the command line, told as a document, without the secret', async ([_, words]) => {
  const ended = await bmc([...words, '-o', 'json'])
  expect(ended).toMatchObject({ code: 2, stdout: '' })
  expect(problemOf(ended)).toMatchObject({ code: 'usage', title: 'usage', detail: expect.stringMatching(/\S/) })
})

test('no secret stands in the process list or the environment', async () => {
  machine.obeys = 'never'
  const running = home.start([
    'bmc',
    'power',
    'on',
    machine.url(),
    '--wait',
    '60s',
    '-v',
    '--password-file',
    passwordFile,
    '--kg-file',
    aFile('nokey', ''),
  ])
  await running.seen('stderr', 'not yet on')
  const of = (name: string) => readFileSync(`/proc/${running.pid}/${name}`, 'utf8')
  expect(of('cmdline')).toContain('--password-file')
  expect(of('cmdline') + of('environ')).not.toMatch(/planted/i)
  running.interrupt()
  const { stderr } = await running.ended
  expect(stderr).toContain('logged in (bmc ipmi 127.0.0.1')
  expect(stderr).not.toMatch(/planted/i)
})
