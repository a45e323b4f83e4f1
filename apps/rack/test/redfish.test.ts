/** The Redfish driver against the rack's Redfish service over real sockets: two independent ends of one protocol, and trouble between them. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { DriverError, type PowerContext } from '@muster/drivers/driver'
import { ipmi } from '@muster/drivers/ipmi'
import { type RedfishSettings, redfishDriver } from '@muster/drivers/redfish'
import type { Timers } from '@muster/drivers/redfish/timers'
import { expect, onTestFinished, test } from 'vitest'
import { selfSignedCertificate } from '../src/redfish/certificate.ts'
import { account, startTwoDoors, type TwoDoors } from './redfish-machine.ts'

/** Short waits, with room for a busy machine. */
const timers: Partial<Timers> = {
  retryMs: 20,
  busyMs: 3000,
  retryAfterMaxMs: 1500,
  pollMs: 20,
  orderTaskMs: 2000,
  settingsTaskMs: 2000,
  offMs: 5000,
}

async function doors(options: Parameters<typeof startTwoDoors>[0] = {}): Promise<TwoDoors> {
  const started = await startTwoDoors(options)
  onTestFinished(async () => await started[Symbol.asyncDispose]())
  return started
}

/** A session of a driver of its own: drivers remember BMCs by address, and ports come back. */
function openTo(
  { settings }: TwoDoors,
  changed: Partial<Record<keyof RedfishSettings, string>> = {},
  options: { timers?: Partial<Timers>; context?: PowerContext } = {},
) {
  const driver = redfishDriver({ timers: { ...timers, ...options.timers } })
  const power = driver.open(driver.settings.parse({ ...settings, ...changed }), options.context)
  onTestFinished(() => power.close())
  return power
}

async function failure(call: Promise<unknown> | undefined): Promise<DriverError> {
  const caught: unknown = await Promise.resolve(call).then(
    () => undefined,
    error => error,
  )
  if (!(caught instanceof DriverError)) throw new Error('the call should have failed with a DriverError', { cause: caught })
  expect(caught.hint).toMatch(/\S/)
  for (const secret of [account.password, 'battery-staple']) {
    expect(JSON.stringify([caught, caught.message, caught.stack, caught.cause])).not.toContain(secret)
  }
  return caught
}

test('one machine, two doors: what is ordered by Redfish is seen by IPMI, and the other way round', async () => {
  const both = await doors({ powerEffectMs: 50 })
  const power = openTo(both)
  await using other = ipmi.open(
    ipmi.settings.parse({ address: `127.0.0.1:${both.bmc.port}`, user: account.name, password: account.password }),
  )
  expect(await power.power()).toBe('off')
  expect(await power.capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept: 'all' })
  expect(await other.capabilities.bootNext?.read()).toEqual({ device: 'network', firmware: 'uefi' })
  await power.on()
  await expect.poll(() => other.power()).toBe('on')
  // The firmware used it up.
  await expect.poll(() => power.capabilities.bootNext?.read()).toBeUndefined()
  await other.off({ how: 'hard' })
  await expect.poll(() => power.power()).toBe('off')
  await other.capabilities.bootNext?.set({ device: 'disk', firmware: 'legacy' })
  expect(await power.capabilities.bootNext?.read()).toEqual({ device: 'disk', firmware: 'legacy' })
  await power.capabilities.bootNext?.clear()
  expect(await other.capabilities.bootNext?.read()).toBeUndefined()
})

test('a cycle goes through off, a reset does not; both once', async () => {
  const both = await doors()
  const power = openTo(both)
  await power.on()
  await expect.poll(() => power.power()).toBe('on')
  const mark = both.machine.lastNumber
  await power.cycle()
  await both.machine.until(entry => entry.what === 'power off', { signal: AbortSignal.timeout(5000), after: mark })
  await expect.poll(() => power.power()).toBe('on')
  await power.capabilities.reset?.()
  expect(both.redfish.counters.resets).toMatchObject({ PowerCycle: 1, ForceRestart: 1 })
})

test('the identify light, the controller and the identity', async () => {
  const both = await doors()
  const power = openTo(both)
  await power.capabilities.identify?.({ light: 'on' })
  expect(both.redfish.light).toBe(true)
  await power.capabilities.identify?.({ light: 'off' })
  expect(both.redfish.light).toBe(false)
  expect(await failure(power.capabilities.identify?.({ light: 15 }))).toMatchObject({ kind: 'unsupported' })
  expect(await power.capabilities.controller?.()).toEqual({ manufacturer: 0, product: 0, firmware: '1.0', protocol: 'Redfish 1.11.0' })
  expect(await power.capabilities.identity?.()).toMatchObject({ maker: 'Muster', product: 'Virtual Machine' })
})

test('a hundred polls by three callers: one login, one connection, one request at a time, and the login is given back', async () => {
  const both = await doors()
  const driver = redfishDriver({ timers })
  const given = driver.settings.parse(both.settings)
  const sessions = [driver.open(given), driver.open(given), driver.open(given)]
  for (let round = 0; round < 34; round++) await Promise.all(sessions.map(session => session.power()))
  expect(both.redfish.counters).toMatchObject({ logins: 1, sessionsOpenMax: 1 })
  expect(both.redfish).toMatchObject({ connections: 1, requestsAtOnceMax: 1 })
  await sessions[0]?.close()
  await sessions[1]?.close()
  expect(await sessions[2]?.power()).toBe('off')
  expect(both.redfish.sessionsOpen()).toBe(1)
  await sessions[2]?.close()
  expect(both.redfish.sessionsOpen()).toBe(0)
})

test('the login is given back after errors too, and after a call that was given up in the middle of it', async () => {
  const both = await doors()
  const power = openTo(both)
  await failure(power.capabilities.identify?.({ light: 3 }))
  await power.power()
  await power.close()
  expect(both.redfish.sessionsOpen()).toBe(0)

  both.redfish.faults.latencyMs = 500
  const impatient = openTo(both)
  const givingUp = new AbortController()
  const before = both.redfish.counters.requests
  const call = failure(impatient.power({ signal: givingUp.signal }))
  // The service root was answered, and the login is on its way.
  await expect.poll(() => both.redfish.counters.requests, { interval: 10, timeout: 5000 }).toBe(before + 1)
  await sleep(200)
  givingUp.abort()
  expect(await call).toMatchObject({ kind: 'cancelled' })
  await impatient.close()
  expect(both.redfish.counters.logins).toBe(2)
  expect(both.redfish.sessionsOpen()).toBe(0)
})

test('an idle login is given back, and made again when needed', async () => {
  const both = await doors()
  const power = openTo(both, {}, { timers: { sessionIdleMs: 50 } })
  await power.power()
  await expect.poll(() => both.redfish.sessionsOpen()).toBe(0)
  expect(await power.power()).toBe('off')
  expect(both.redfish.counters.logins).toBe(2)
})

test('a BMC that forgot the session costs one login, not an error', async () => {
  const both = await doors()
  const power = openTo(both)
  await power.power()
  both.redfish.restart()
  await power.on()
  expect(both.redfish.counters).toMatchObject({ logins: 2, resets: { On: 1 } })
})

test('a BMC posts when the power changes: asked twice it posts once, and after its restart it is asked anew', async () => {
  const both = await doors()
  const power = openTo(both)
  const heard: unknown[] = []
  const listener = createServer((request, response) => {
    let body = ''
    request.on('data', chunk => (body += chunk))
    request.on('end', () => {
      heard.push(JSON.parse(body))
      response.writeHead(204).end()
    })
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  onTestFinished(() => void listener.close())
  const url = `http://127.0.0.1:${(listener.address() as AddressInfo).port}/told`
  const context = 'muster m1'

  // An address that is no longer ours goes with the next one.
  await power.capabilities.subscribe?.({ url: 'http://127.0.0.1:9/old', context })
  await power.capabilities.subscribe?.({ url, context })
  await power.capabilities.subscribe?.({ url, context })
  both.machine.pressPower({ to: 'on' })
  await expect.poll(() => both.redfish.told).toBe(1)
  expect(heard).toEqual([expect.objectContaining({ Context: context, Events: [expect.objectContaining({ EventType: 'StatusChange' })] })])
  expect(both.redfish.subscriptions.map(({ destination }) => destination)).toEqual([url])

  both.redfish.restart()
  await power.capabilities.subscribe?.({ url, context })
  both.machine.pressPower({ to: 'off' })
  await expect.poll(() => both.redfish.told).toBe(2)
})

test('a BMC without an event service says so; it is only asked then', async () => {
  const both = await doors({ faults: { events: 'absent' } })
  const power = openTo(both)
  const error = await failure(power.capabilities.subscribe?.({ url: 'http://127.0.0.1:9/told', context: 'muster m1' }))
  expect(error).toMatchObject({ kind: 'unsupported', hint: expect.stringContaining('schedule') })
  expect(await power.power()).toBe('off')
})

test('all sessions taken: Basic serves; where Basic is refused too, the error is "busy" and says what to do', async () => {
  const both = await doors({ sessionLimit: 0 })
  expect(await openTo(both).power()).toBe('off')
  both.redfish.faults.basic = 'refused'
  const error = await failure(openTo(both).power())
  expect(error).toMatchObject({ kind: 'busy', retryable: true, hint: expect.stringContaining('sessions') })
})

test('a service without sessions is served by Basic', async () => {
  const both = await doors({ faults: { sessions: 'absent' } })
  const power = openTo(both)
  await power.on()
  await expect.poll(() => power.power()).toBe('on')
})

test('a wrong password and an account that may only look are told apart, and the wrong password is tried once', async () => {
  const both = await doors({ users: [account, { name: 'looker', password: 'battery-staple', privilege: 'USER' }] })
  const before = both.redfish.counters.requests
  expect(await failure(openTo(both, { password: 'battery-staple' }).power())).toMatchObject({ kind: 'authentication' })
  expect(both.redfish.counters.requests - before).toBe(2)
  const looker = openTo(both, { user: 'looker', password: 'battery-staple' })
  expect(await looker.power()).toBe('off')
  expect(await failure(looker.on())).toMatchObject({ kind: 'privilege', tried: 'power on' })
})

test('bursts of 503 are waited out, by Retry-After up to a cap; a service that stays busy is told', async () => {
  const both = await doors()
  const power = openTo(both)
  await power.power()
  both.redfish.faults.busy = 4
  expect(await power.power()).toBe('off')
  // An hour is cut to 1.5 s.
  Object.assign(both.redfish.faults, { busy: 1, retryAfterS: 3600 })
  const startedAt = performance.now()
  await power.on()
  expect(performance.now() - startedAt).toBeGreaterThan(1400)
  Object.assign(both.redfish.faults, { busy: 1000, retryAfterS: null })
  expect(await failure(openTo(both, {}, { timers: { busyMs: 200 } }).power())).toMatchObject({ kind: 'busy', outcome: 'none' })
})

test.each([
  { etags: 'required' as const, what: 'a tag is required' },
  { etags: 'never match' as const, what: 'no tag ever matches' },
])('changes pass where $what, and the way is remembered', async ({ etags }) => {
  const both = await doors({ faults: { etags } })
  const power = openTo(both)
  await power.capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })
  const first = both.redfish.counters.requests
  await power.capabilities.bootNext?.set({ device: 'disk', firmware: 'uefi' })
  // The system, the tag, the change, the look at what was kept: no refusal the second time.
  expect(both.redfish.counters.requests - first).toBe(4)
  expect(both.bootOptions.read(Date.now())).toMatchObject({ device: 'disk', lasting: 'once' })
})

test('tasks are followed to their end, and a failed one is an error with its words', async () => {
  const both = await doors({ faults: { answers: 'tasks' } })
  const power = openTo(both)
  await power.on()
  await expect.poll(() => power.power()).toBe('on')
  expect(await power.capabilities.bootNext?.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept: 'all' })
  both.redfish.faults.answers = 'failing tasks'
  expect(await failure(power.off({ how: 'hard' }))).toMatchObject({
    kind: 'refused',
    message: expect.stringContaining('The chassis did not react'),
  })
  Object.assign(both.redfish.faults, { answers: 'tasks', taskPolls: 1_000_000 })
  const slow = openTo(both, {}, { timers: { orderTaskMs: 100, settingsTaskMs: 100 } })
  // Given up after the order was accepted: nobody may believe that nothing happened.
  const impatient = openTo(both, {}, { timers: { orderTaskMs: 60_000 } })
  expect(await failure(impatient.off({ how: 'hard', signal: AbortSignal.timeout(1000) }))).toMatchObject({
    kind: 'cancelled',
    outcome: 'unknown',
  })
  // Accepted: the power state tells the rest.
  await slow.off({ how: 'hard' })
  expect(await failure(slow.capabilities.bootNext?.clear())).toMatchObject({ kind: 'busy', outcome: 'unknown' })
})

test('between an order and its effect the state is the one before', async () => {
  const both = await doors({ faults: { states: 'transitional' }, powerEffectMs: 150 })
  const power = openTo(both)
  await power.on()
  expect(await power.power()).toBe('off')
  await expect.poll(() => power.power()).toBe('on')
  await power.off({ how: 'hard' })
  expect(await power.power()).toBe('on')
  await expect.poll(() => power.power()).toBe('off')
})

test('several systems on several pages: the wanted one is found, and without a choice the error names them', async () => {
  const both = await doors({ otherSystems: ['a', 'b', 'c'], pageSize: 1 })
  const power = openTo(both, { systemId: 'system' })
  await power.on()
  await expect.poll(() => both.machine.power()).toBe('on')
  expect(await failure(openTo(both).power())).toMatchObject({ kind: 'settings', message: expect.stringContaining('a, b, c, system') })
  expect(await failure(openTo(both, { systemId: 'd' }).power())).toMatchObject({
    kind: 'settings',
    message: expect.stringContaining('a, b, c, system'),
  })
})

test('a connection reset between two requests is not noticed', async () => {
  const both = await doors()
  const power = openTo(both)
  await power.power()
  both.redfish.faults.resets = 1
  expect(await power.power()).toBe('off')
  expect(both.redfish.counters.logins).toBe(1)
})

test('a lost answer to a reset: carried out once, and told as unknown; to a cycle: seen going through off', async () => {
  // At this pace a cycle leaves the machine off for 200 ms.
  const both = await doors({ powerEffectMs: 5, pace: 'quick' })
  const power = openTo(both, {}, { timers: { pollMs: 60 } })
  await power.on()
  await expect.poll(() => power.power()).toBe('on')
  both.redfish.faults.lostAnswers = 1
  expect(await failure(power.capabilities.reset?.())).toMatchObject({ kind: 'silent', outcome: 'unknown' })
  both.redfish.faults.lostAnswers = 1
  await power.cycle()
  expect(both.redfish.counters.resets).toMatchObject({ ForceRestart: 1, PowerCycle: 1 })
})

test('a service that never answers is "silent" within its limit, and a caller who gives up gets away at once', async () => {
  const both = await doors({ faults: { life: 'silent' } })
  expect(await failure(openTo(both, {}, { timers: { requestMs: 200 } }).power())).toMatchObject({ kind: 'silent', outcome: 'none' })
  const startedAt = performance.now()
  expect(await failure(openTo(both).power({ signal: AbortSignal.timeout(100) }))).toMatchObject({ kind: 'cancelled' })
  expect(performance.now() - startedAt).toBeLessThan(2000)
})

test('certificates: unknown ones are refused with their fingerprint before the password is sent, pinned ones and those of a CA pass', async () => {
  const both = await doors()
  const fingerprint = both.redfish.certificate?.fingerprint ?? ''
  const refused = await failure(openTo(both, { certificate: 'verify' }).power())
  expect(refused).toMatchObject({
    kind: 'authentication',
    message: expect.stringContaining(fingerprint),
    hint: expect.stringContaining(fingerprint),
  })
  const other = await failure(openTo(both, { certificate: selfSignedCertificate('127.0.0.1').fingerprint }).power())
  expect(other).toMatchObject({ kind: 'authentication', message: expect.stringContaining('another one is pinned') })
  expect(both.redfish.counters.requests).toBe(0)
  expect(await openTo(both, { certificate: fingerprint.replaceAll(':', '').toLowerCase() }).power()).toBe('off')
  expect(await openTo(both, { certificate: 'verify', ca: both.redfish.certificate?.certificate ?? '' }).power()).toBe('off')
})

test('a certificate of the right CA for another name is refused', async () => {
  const certificate = selfSignedCertificate('127.0.0.2')
  const both = await doors({ certificate })
  expect(await failure(openTo(both, { certificate: 'verify', ca: certificate.certificate }).power())).toMatchObject({
    kind: 'authentication',
  })
})

test('a BMC of the years of TLS 1.0 needs the setting, and the error says so', async () => {
  const both = await doors({ tls: { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } })
  expect(await failure(openTo(both).power())).toMatchObject({ kind: 'protocol', hint: expect.stringContaining('legacy') })
  expect(await openTo(both, { tls: 'legacy' }).power()).toBe('off')
})

test('plain HTTP where it is written, and a hint where it is not', async () => {
  const both = await doors({ protocol: 'http' })
  expect(await openTo(both).power()).toBe('off')
  const error = await failure(openTo(both, { address: both.settings.address.replace('http:', 'https:') }).power())
  expect(error).toMatchObject({ kind: 'protocol', hint: expect.stringContaining('http://') })
})

test('a closed port is told within a second', async () => {
  const both = await doors()
  await both.redfish.close()
  const startedAt = performance.now()
  expect(await failure(openTo(both).power())).toMatchObject({ kind: 'silent', message: expect.stringContaining('nothing listens') })
  expect(performance.now() - startedAt).toBeLessThan(1000)
})

test.each(['ignored', 'required', 'never match'] as const)('the account gets a new password (version tags %s)', async etags => {
  const users = [...Array.from({ length: 3 }, (_, i) => ({ ...account, name: `other${i}` })), { ...account }]
  const place = await doors({ users, pageSize: 2, faults: { etags } })
  const { credentials } = openTo(place).capabilities
  expect(await credentials?.rule()).toEqual({ bytesMin: 8, bytesMax: 20 })
  await credentials?.set({ password: 'Much-better.4321' })
  expect(users.map(({ password }) => password === account.password)).toEqual([true, true, true, false])
  expect(await openTo(place, { password: 'Much-better.4321' }).power()).toBe('off')
  expect(await failure(openTo(place).power())).toMatchObject({ kind: 'authentication' })
})

test('a new password that the service refuses and quotes comes into no error and no log', async () => {
  const place = await doors()
  const lines: string[] = []
  const context: PowerContext = { log: (...line) => void lines.push(JSON.stringify(line)) }
  const refused = 'battery-staple-that-is-much-too-long'
  const { credentials } = openTo(place, {}, { context }).capabilities
  const error = await failure(credentials?.set({ password: refused }))
  expect(error).toMatchObject({ outcome: 'none', message: expect.stringContaining('***') })
  expect(lines.join()).not.toContain(refused)
})
