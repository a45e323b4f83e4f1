/** The Redfish driver on eight vendors' services: the same orders pass on each, and each one's refusals are handled or told. */
import { HttpResponse, http } from 'msw'
import { setupServer } from 'msw/node'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { DriverError } from '../src/driver.ts'
import { parseServiceAddress, printServiceAddress } from '../src/redfish/address.ts'
import { messagesOf, pathOf } from '../src/redfish/answer.ts'
import { meaningOf } from '../src/redfish/meanings.ts'
import { Patience } from '../src/redfish/patience.ts'
import { defaultTimers, type Timers } from '../src/redfish/timers.ts'
import { vendorOf } from '../src/redfish/vendors.ts'
import { redfish, redfishDriver } from '../src/redfish.ts'
import { login, VendorBmc, type VendorName, vendorNames } from './redfish-vendor.ts'

const timers: Partial<Timers> = { retryMs: 2, busyMs: 2000, postMs: 2000, retryAfterMaxMs: 50, pollMs: 2 }

const server = setupServer()
beforeAll(() => server.listen({ onUnhandledFrame: 'error' }))
// Not after a test: sessions log out then.
beforeEach(() => server.resetHandlers())
afterAll(() => server.close())

/** A BMC of that vendor, and a driver that never met it. */
function start(name: VendorName, changedTimers: Partial<Timers> = {}) {
  const bmc = new VendorBmc(name)
  server.use(bmc.handler)
  const driver = redfishDriver({ timers: { ...timers, ...changedTimers } })
  const open = (changed: Partial<typeof login> = {}) => {
    const power = driver.open(driver.settings.parse({ address: bmc.address, ...login, ...changed }))
    onTestFinished(() => power.close())
    return power
  }
  const power = open()
  const { bootNext, reset, identify, controller, identity } = power.capabilities
  if (!bootNext || !reset || !identify || !controller || !identity) throw new Error('a capability is missing')
  return { bmc, open, power, bootNext, reset, identify, controller, identity }
}

async function failure(call: Promise<unknown>): Promise<DriverError> {
  const caught: unknown = await call.then(
    () => undefined,
    error => error,
  )
  if (!(caught instanceof DriverError)) throw new Error('the call should have failed with a DriverError', { cause: caught })
  expect(caught.hint).toMatch(/\S/)
  return caught
}

describe.each(vendorNames)('%s', name => {
  test('power, on, on again, soft off, off again', async () => {
    const { bmc, power } = start(name)
    expect(await power.power()).toBe('off')
    await power.on()
    expect(await power.power()).toBe('on')
    await power.on()
    await power.off({ how: 'soft' })
    expect(await power.power()).toBe('off')
    await power.off({ how: 'hard' })
    await power.on()
    await power.off({ how: 'hard' })
    expect(bmc.power).toBe('Off')
    expect(bmc.resets).toEqual(expect.arrayContaining(['On', 'GracefulShutdown', 'ForceOff']))
  })

  test('cycle turns on what is off, and restarts what is on exactly once', async () => {
    const { bmc, power } = start(name)
    await power.cycle()
    expect(bmc.power).toBe('On')
    bmc.resets.length = 0
    await power.cycle()
    expect(bmc.power).toBe('On')
    const own = bmc.quirks.takesResets.find(type => type.endsWith('PowerCycle'))
    expect(bmc.resets).toEqual(own ? [own] : ['ForceOff', 'On'])
  })

  test('reset', async () => {
    const { bmc, power, reset } = start(name)
    await power.on()
    bmc.resets.length = 0
    await reset()
    expect(bmc.power).toBe('On')
    expect(bmc.resets).toEqual([bmc.quirks.takesResets.includes('ForceRestart') ? 'ForceRestart' : 'GracefulRestart'])
  })

  test.each(['network', 'disk'] as const)('boot from %s is set, read and cleared', async device => {
    const { bmc, bootNext } = start(name)
    expect(await bootNext.read()).toBeUndefined()
    expect(await bootNext.set({ device, firmware: 'uefi' })).toEqual({ kept: 'all' })
    expect(await bootNext.read()).toEqual({ device, firmware: 'uefi' })
    expect(bmc.override()).toEqual({ enabled: 'Once', target: device === 'network' ? 'Pxe' : 'Hdd', mode: 'UEFI' })
    await bootNext.clear()
    expect(bmc.override()).toMatchObject({ enabled: 'Disabled' })
    expect(await bootNext.read()).toBeUndefined()
    const { length } = bmc.changes
    await bootNext.clear()
    expect(bmc.changes).toHaveLength(length)
  })

  test('what was learned is not refused a second time', async () => {
    const { bmc, bootNext } = start(name)
    await bootNext.set({ device: 'network', firmware: 'uefi' })
    const first = bmc.requests.length
    await bootNext.set({ device: 'disk', firmware: 'uefi' })
    // The settings object of an ASRock board shows the override from the first change on.
    expect(bmc.requests.slice(first).filter(line => line.startsWith('PATCH') && !line.endsWith('200'))).toEqual([])
  })

  test('identify light, controller, identity', async () => {
    const { bmc, identify, controller, identity } = start(name)
    await identify({ light: 'on' })
    expect(Object.values(bmc.changes.at(-1) ?? {})).toEqual([expect.toBeOneOf([true, 'Blinking'])])
    await identify({ light: 'off' })
    expect(Object.values(bmc.changes.at(-1) ?? {})).toEqual([expect.toBeOneOf([false, 'Off'])])
    expect(await controller()).toMatchObject({ firmware: expect.stringMatching(/\d/), protocol: expect.stringMatching(/^Redfish 1/) })
    expect(await identity()).toMatchObject({ maker: bmc.system.Manufacturer, serial: bmc.system.SerialNumber })
  })

  test('a wrong password is called that and tried once; the login of a good one is given back', async () => {
    const { bmc, open, power } = start(name)
    expect(await failure(open({ password: 'wr0ng' as typeof login.password }).power())).toMatchObject({ kind: 'authentication' })
    expect(bmc.requests.filter(line => line.startsWith('POST'))).toHaveLength(1)
    await power.power()
    expect(bmc.sessionsOpen).toBe(1)
    await power.close()
    expect(bmc.sessionsOpen).toBe(0)
  })

  test.each(['full', 'none'] as const)('sessions %s: Basic authentication serves', async sessions => {
    const { bmc, power } = start(name)
    bmc.sessions = sessions
    await power.on()
    expect(await power.power()).toBe('on')
  })
})

describe('what vendors do', () => {
  test('HPE: the mode is left out, the clearing names a device, and POST is waited for', async () => {
    const { bmc, bootNext } = start('hpe-ilo5')
    await bootNext.set({ device: 'network', firmware: 'uefi' })
    await bootNext.clear()
    expect(bmc.changes).toEqual([
      { Boot: { BootSourceOverrideEnabled: 'Once', BootSourceOverrideTarget: 'Pxe' } },
      { Boot: { BootSourceOverrideEnabled: 'Disabled', BootSourceOverrideTarget: 'Pxe' } },
    ])
    expect(bmc.requests.filter(line => line.startsWith('PATCH') && line.endsWith('400'))).toHaveLength(2)
  })

  test('HPE: a legacy boot on a machine in UEFI mode is told as "device only"', async () => {
    expect(await start('hpe-ilo5').bootNext.set({ device: 'network', firmware: 'legacy' })).toEqual({ kept: 'device only' })
  })

  test('a service that stays in POST is told as busy', async () => {
    const { bmc, bootNext } = start('hpe-ilo5', { postMs: 100 })
    server.use(
      http.patch(`${bmc.address}/*`, () =>
        HttpResponse.json(
          { error: { '@Message.ExtendedInfo': [{ MessageId: 'iLO.2.14.UnableToModifyDuringSystemPOST' }] } },
          { status: 400 },
        ),
      ),
    )
    expect(await failure(bootNext.set({ device: 'network', firmware: 'uefi' }))).toMatchObject({ kind: 'busy', retryable: true })
  })

  test('a read-only mode that no table knows is left out after the first refusal', async () => {
    const { bmc, bootNext } = start('openbmc')
    bmc.quirks.readOnlyBootMode = 'Base.1.8.PropertyNotWritable'
    expect(await bootNext.set({ device: 'network', firmware: 'uefi' })).toEqual({ kept: 'all' })
    expect(bmc.changes).toHaveLength(2)
    await bootNext.set({ device: 'disk', firmware: 'uefi' })
    expect(bmc.changes).toHaveLength(3)
  })

  test('Dell: "on" just after "off" is refused twice and then taken', async () => {
    const { bmc, power } = start('dell-idrac9')
    await power.on()
    await power.off({ how: 'hard' })
    bmc.requests.length = 0
    await power.on()
    expect(bmc.power).toBe('On')
    expect(bmc.requests.filter(line => line.startsWith('POST')).map(line => line.slice(-3))).toEqual(['409', '409', '204'])
  })

  test('Dell: all sessions taken and Basic refused says so (RAC0218)', async () => {
    const { bmc, power } = start('dell-idrac9')
    bmc.sessions = 'full'
    server.use(http.get(`${bmc.address}/redfish/v1/Systems*`, () => new HttpResponse(null, { status: 401 })))
    expect(await failure(power.power())).toMatchObject({
      kind: 'busy',
      got: expect.stringContaining('RAC0218'),
      hint: expect.stringContaining('20 to 30 minutes'),
    })
  })

  test('AMI and ASRock: changes go to the settings object, with all three fields', async () => {
    for (const name of ['ami-megarac', 'asrock'] as const) {
      const { bmc, bootNext } = start(name)
      await bootNext.set({ device: 'network', firmware: 'uefi' })
      expect(bmc.requests).toContain('PATCH /redfish/v1/Systems/Self/SD 200')
      expect(Object.keys((bmc.changes.at(-1)?.Boot ?? {}) as object)).toHaveLength(3)
    }
  })

  test('a service that lists no reset values: they are tried, and what was refused is not tried again', async () => {
    const { bmc, power } = start('lenovo-xcc')
    const actions = bmc.system.Actions as Record<string, Record<string, unknown>>
    delete actions['#ComputerSystem.Reset']?.['ResetType@Redfish.AllowableValues']
    await power.on()
    await power.cycle()
    await power.cycle()
    expect(bmc.resets).toEqual(['On', 'ForceOff', 'On', 'ForceOff', 'On'])
    // PowerCycle and ForcePowerCycle, once each.
    expect(bmc.requests.filter(line => line.startsWith('POST') && line.endsWith('400'))).toHaveLength(2)
  })

  test('a service with a button only: it is pressed where the machine is off, and never where it is on', async () => {
    const { bmc, power } = start('dell-idrac9')
    const actions = bmc.system.Actions as Record<string, Record<string, unknown>>
    Object.assign(actions['#ComputerSystem.Reset'] ?? {}, { 'ResetType@Redfish.AllowableValues': ['PushPowerButton'] })
    await power.on()
    await power.on()
    expect(bmc.resets).toEqual(['PushPowerButton'])
    expect(await failure(power.off({ how: 'soft' }))).toMatchObject({
      kind: 'unsupported',
      got: expect.stringContaining('PushPowerButton'),
    })
  })

  test('a boot device that is not offered is told with those that are', async () => {
    const { bmc, bootNext } = start('openbmc')
    Object.assign(bmc.system.Boot ?? {}, { 'BootSourceOverrideTarget@Redfish.AllowableValues': ['None', 'Hdd'] })
    expect(await failure(bootNext.set({ device: 'network', firmware: 'uefi' }))).toMatchObject({
      kind: 'unsupported',
      got: expect.stringContaining('None, Hdd'),
    })
  })

  test('an override that is accepted and not kept is an error', async () => {
    const { bmc, bootNext } = start('openbmc')
    server.use(http.patch(`${bmc.address}/*`, () => new HttpResponse(null, { status: 204 })))
    expect(await failure(bootNext.set({ device: 'network', firmware: 'uefi' }))).toMatchObject({
      kind: 'refused',
      got: expect.stringContaining('read back as none'),
    })
  })

  test.each([
    ['PoweringOn', 'off'],
    ['PoweringOff', 'on'],
    ['Paused', 'on'],
    ['Reset', 'unknown'],
    [null, 'unknown'],
  ])('PowerState %s is %s', async (state, power) => {
    const { bmc, power: session } = start('openbmc')
    server.use(http.get(`${bmc.address}${bmc.systemPath}`, () => HttpResponse.json({ ...bmc.system, PowerState: state })))
    expect(await session.power()).toBe(power)
  })
})

test('a service that quotes the password does not bring it into errors or logs', async () => {
  const { bmc } = start('openbmc')
  const quoting = { MessageId: 'Base.1.8.PropertyValueFormatError', Message: `The value ${login.password} for Password is wrong.` }
  server.use(http.post(`${bmc.address}/*`, () => HttpResponse.json({ error: { '@Message.ExtendedInfo': [quoting] } }, { status: 403 })))
  const logged: string[] = []
  const driver = redfishDriver({ timers })
  await using power = driver.open(driver.settings.parse({ address: bmc.address, ...login }), {
    log: (message, facts) => logged.push(JSON.stringify([message, facts])),
  })
  const error = await failure(power.power())
  expect(error.got).toContain('***')
  expect(JSON.stringify([error, error.message, error.stack, error.cause, logged])).not.toContain(login.password)
})

describe('what comes back is not always Redfish', () => {
  const answers: [string, () => Response, string][] = [
    ['a page', () => HttpResponse.html('<html>Welcome</html>'), 'protocol'],
    ['a list', () => HttpResponse.json([1]), 'protocol'],
    ['cut JSON', () => new HttpResponse('{"Name": '), 'protocol'],
    ['3 MiB', () => new HttpResponse(`{"a":"${'x'.repeat(3 * 1024 * 1024)}"}`), 'protocol'],
    ['no service', () => new HttpResponse(null, { status: 404 }), 'unsupported'],
    ['another host', () => new HttpResponse(null, { status: 308, headers: { Location: 'http://elsewhere.test/redfish/v1/' } }), 'protocol'],
    ['itself for ever', () => new HttpResponse(null, { status: 308, headers: { Location: '/redfish/v1/' } }), 'protocol'],
    ['a service that breaks', () => new HttpResponse(null, { status: 500 }), 'protocol'],
    ['no systems', () => HttpResponse.json({ RedfishVersion: '1.0.0' }), 'unsupported'],
  ]
  test.each(answers)('%s', async (_what, answer, kind) => {
    const address = 'http://strange.bmc.test'
    server.use(
      http.post(`${address}/*`, () => new HttpResponse(null, { status: 404 })),
      http.get(`${address}/redfish/v1/`, answer),
    )
    const driver = redfishDriver({ timers: { ...timers, busyMs: 50 } })
    await using power = driver.open(driver.settings.parse({ address, ...login }))
    expect(await failure(power.power())).toMatchObject({ kind, tried: 'power status' })
  })
})

describe('the small parts', () => {
  test.each([
    ['10.0.3.9', { protocol: 'https', host: '10.0.3.9', port: 443 }, '10.0.3.9'],
    ['bmc-7:8443', { protocol: 'https', host: 'bmc-7', port: 8443 }, 'bmc-7:8443'],
    ['https://bmc-7/', { protocol: 'https', host: 'bmc-7', port: 443 }, 'bmc-7'],
    ['http://bmc-7', { protocol: 'http', host: 'bmc-7', port: 80 }, 'http://bmc-7'],
    ['fe80::1%eth0', { protocol: 'https', host: 'fe80::1%eth0', port: 443 }, '[fe80::1%eth0]'],
    ['https://[::1]:8443', { protocol: 'https', host: '::1', port: 8443 }, '[::1]:8443'],
  ])('the address %s is read and printed', (text, address, printed) => {
    expect(parseServiceAddress(text)).toEqual(address)
    expect(printServiceAddress(parseServiceAddress(text) as never)).toBe(printed)
    expect(parseServiceAddress(printed)).toEqual(address)
  })

  test.each(['', 'ftp://bmc', 'https://user:pw@bmc', 'https://bmc/redfish', 'bmc:0', 'bmc:70000', 'https://', '[bmc]', 'a b'])(
    '"%s" is no address',
    text => {
      expect(parseServiceAddress(text)).toBeUndefined()
    },
  )

  test('settings: fingerprints in any spelling, nothing unknown, no secret in what is refused', () => {
    const good = { address: 'bmc', ...login }
    const digits = 'AB'.repeat(32)
    for (const certificate of ['verify', digits, digits.toLowerCase(), `sha256:${digits.match(/../g)?.join(':')}`]) {
      expect(redfish.settings.safeParse({ ...good, certificate }).success).toBe(true)
    }
    for (const wrong of [
      { certificate: 'AB' },
      { certificate: 'none' },
      { colour: 'red' },
      { user: 'a:b' },
      { ca: 'x' },
      { tls: 'ssl3' },
    ]) {
      const { error } = redfish.settings.safeParse({ ...good, ...wrong })
      expect(error?.message).not.toContain(login.password)
      expect(error).toBeDefined()
    }
  })

  test('vendors are told by who wrote the service before who built the machine', () => {
    expect(vendorOf(['AMI', 'HPE']).name).toBe('AMI')
    expect(vendorOf(['Hpe']).name).toBe('HPE')
    expect(vendorOf(['Dell Inc.']).name).toBe('Dell')
    expect(vendorOf([]).iana).toBe(0)
  })

  test('only the path of a link counts', () => {
    expect(pathOf('https://192.0.2.1/redfish/v1/x?a=1#f')).toBe('/redfish/v1/x?a=1')
    expect(pathOf('/redfish/v1/x')).toBe('/redfish/v1/x')
    expect(pathOf('mailto:a')).toBeUndefined()
    expect(pathOf(undefined)).toBeUndefined()
  })

  test('messages are found wherever services put them', () => {
    expect(messagesOf({ error: { code: 'Base.1.0.X', message: 'why' } })).toEqual([{ id: 'X', text: 'why', about: [] }])
    expect(messagesOf({ '@Message.ExtendedInfo': [{ MessageId: 'Y', RelatedProperties: ['#/Boot/Mode'] }] })).toEqual([
      { id: 'Y', text: '', about: ['Mode'] },
    ])
    expect(messagesOf({ error: 'x' })).toEqual([])
  })

  test('401 is about who asks; other words go before the status', () => {
    const said = (status: number, id: string) => meaningOf({ status, headers: {}, body: { error: { code: id } } })
    expect(said(401, 'Base.1.0.PropertyUnknown').kind).toBe('authentication')
    expect(said(400, 'iLO.2.14.UnauthorizedLoginAttempt').kind).toBe('authentication')
    expect(said(400, 'SYS518')).toMatchObject({ kind: 'busy', again: 'soon' })
    expect(said(418, '')).toMatchObject({ kind: 'refused', again: 'never' })
  })

  test('patience doubles, keeps Retry-After up to its cap, and ends with its budget', () => {
    let at = 0
    const patience = new Patience({ timers: { ...defaultTimers, retryMs: 1000, busyMs: 20_000, retryAfterMaxMs: 5000 }, now: () => at })
    const busy = (headers = {}) => patience.next({ status: 503, headers, body: {} }, { again: 'soon', kind: 'busy', hint: '' })
    const waits: number[] = []
    for (let wait = busy(); wait !== undefined; wait = busy()) {
      waits.push(wait)
      at += wait
    }
    expect(waits[0]).toBeGreaterThanOrEqual(750)
    expect(waits[1]).toBeGreaterThanOrEqual(1500)
    expect(Math.max(...waits)).toBeLessThanOrEqual(5000)
    expect(at).toBeLessThanOrEqual(20_000)
    at = 0
    expect(busy({ 'retry-after': '3' })).toBe(3000)
    expect(busy({ 'retry-after': '900' })).toBe(5000)
    expect(busy({ 'retry-after': new Date(Date.now() + 4000).toUTCString() })).toBeLessThanOrEqual(4000)
    expect(patience.next({ status: 400, headers: {}, body: {} }, { again: 'never', kind: 'refused', hint: '' })).toBeUndefined()
  })
})
