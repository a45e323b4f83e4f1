// `muster bmc …`: try a BMC by hand, before it is anybody's. No server is asked: the drivers are the ones that a partition uses, so what works
// here works there.
import type { BootFirmware, Capabilities, Identity, PowerSession, Reading } from '@muster/drivers/driver'
import { ipmi, ipmiClient } from '@muster/drivers/ipmi'
import { type Fru, identityOf, readFru } from '@muster/drivers/ipmi/fru'
import { clearSel, readSel } from '@muster/drivers/ipmi/sel'
import { durationMs } from '@muster/shared/duration'
import { Argument, type Command, InvalidArgumentError, Option } from 'commander'
import { checkTarget, exitOfReport, type Finding, type Report } from '../bmc/check.ts'
import { runConsole } from '../bmc/console.ts'
import { type LogEntry, logEntryOf } from '../bmc/event-words.ts'
import { asked, unsupported } from '../bmc/failure.ts'
import { give, giveAndObserve, type Observed, type Order, orders, patience, StillWaiting } from '../bmc/power.ts'
import { addTarget, type BmcFlags, logOf, openTarget, type Target, targetOf } from '../bmc/target.ts'
import { type Cli, examples, type Fill, formatOf, remark } from '../cli.ts'
import { CliError, Exit } from '../exit-codes.ts'
import { progressFor } from '../output/progress.ts'
import { type Shape, showList, showOne } from '../output/show.ts'
import { fieldsText } from '../output/table.ts'
import { paint, printable } from '../output/text.ts'
import { parseCount, parseDuration } from '../quantities.ts'

/** An address for examples. */
const aBmc = 'ipmi://admin@10.0.3.9'

/** `muster bmc` with all its subcommands. */
export const fillBmc: Fill = (command, cli) => {
  command.description(
    'Try a BMC by hand, before adding its machine. Needs no server: it uses the power drivers of a partition. ' +
      'Where a BMC does not answer, see docs/my-bmc-does-not-answer.md.',
  )
  examples(command, [
    `bmc check ${aBmc} --password-file bmc.password`,
    `bmc power status ${aBmc}`,
    `bmc boot ${aBmc} network --firmware uefi`,
  ])
  addCheck(command, cli)
  addPower(command, cli)
  addBoot(command, cli)
  addIdentify(command, cli)
  addSensors(command, cli)
  addSel(command, cli)
  addFru(command, cli)
  addConsole(command, cli)
}

function addCheck(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('check').summary('tell what a BMC can do, and what looks odd'))
  command.description(
    'Tell in plain words what a BMC can do: whether it answers and lets us in, power, privilege, session slots, boot override, and what looks ' +
      'odd, each with a hint. Changes nothing. Ends with 0 where all is good, 10 where something is odd, 11 where the BMC cannot be used.',
  )
  examples(command, [
    `bmc check ${aBmc} --password-file bmc.password`,
    `bmc check redfish://admin@bmc7.example.org --password-stdin < bmc.password`,
    `bmc check 'ipmi://admin@[fe80::9%eth1]:623' -o json | jq .findings`,
  ])
  command.action(async (url: string, flags: BmcFlags) => {
    const target = await targetOf(cli, url, flags)
    const report = await asked(checkTarget(target, { signal: cli.signal, log: logOf(cli, command) }))
    const exit = exitOfReport(report)
    showOne(cli, formatOf(command), { ...report, ending: exit }, { name: () => exit, text: () => reportText(cli, report) })
    if (exit !== 'ok') throw new Exit(exit)
  })
}

const styles = { good: 'green', odd: 'yellow', bad: 'red' } as const satisfies Record<Finding['verdict'], Parameters<typeof paint>[1]>

function reportText(cli: Cli, { target, findings, usable }: Report): string {
  const width = Math.max(...findings.map(({ topic }) => topic.length))
  const lines = findings.flatMap(({ topic, verdict, found, hint }) => [
    `${paint(cli.stdout, styles[verdict], verdict.padEnd(4))}  ${topic.padEnd(width)}  ${printable(found)}`,
    ...(hint === undefined ? [] : [`${' '.repeat(width + 8)}hint: ${printable(hint)}`]),
  ])
  const sum = usable ? 'Muster can use this BMC.' : 'Muster cannot use this BMC as it is.'
  return [printable(target), ...lines, sum].map(line => `${line}\n`).join('')
}

const orderSummaries: { readonly [order in Order]: string } = {
  on: 'switch the power on',
  off: 'cut the power',
  cycle: 'switch it hard off, then on; a machine that is off is switched on',
  soft: 'ask the operating system to shut down',
}

function addPower(parent: Command, cli: Cli): void {
  const power = parent.command('power').summary('switch the power, or see it')
  power.description('Switch the power of one machine at its BMC, or see it.')
  examples(power, [`bmc power status ${aBmc}`, `bmc power cycle ${aBmc} --wait`])
  addPowerStatus(power, cli)
  for (const order of orders) addOrder(power, cli, order)
}

function addPowerStatus(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('status').summary('whether it is on'))
  command.description('Ask the BMC whether the machine is on.')
  examples(command, [`bmc power status ${aBmc} --password-file bmc.password`, `bmc power status ${aBmc} -o name`])
  command.action(async (url: string, flags: BmcFlags) => {
    await withSession(cli, command, { url, flags }, async session => {
      const power = await session.power()
      const seen = { target: session.target, power }
      showOne(cli, formatOf(command), seen, { name: () => power, text: () => `${printable(session.target)}  power ${power}\n` })
    })
  })
}

function addOrder(parent: Command, cli: Cli, order: Order): void {
  const command = addTarget(parent.command(order).summary(orderSummaries[order]))
  command.description(
    `${orderSummaries[order].charAt(0).toUpperCase()}${orderSummaries[order].slice(1)}. The BMC only promises to do it; with --wait the power is watched ` +
      'until it is as wanted, and 8 is the ending where it is not in time.',
  )
  command.addOption(
    new Option('--wait [duration]', `watch until the power is as wanted; ${patience[order]} where no duration is given`).argParser(
      parseWait,
    ),
  )
  examples(command, [`bmc power ${order} ${aBmc} --password-file bmc.password`, `bmc power ${order} ${aBmc} --wait 2m -o json`])
  command.action(async (url: string, flags: BmcFlags & { wait?: string | true }) => {
    await withSession(cli, command, { url, flags }, async session => {
      const outcome = await carryOut(cli, session, { order, wait: flags.wait })
      showOne(cli, formatOf(command), outcome, { name: ({ power }) => power ?? 'accepted', text: outcomeText })
      if (outcome.seenOff === false)
        remark(cli, 'muster: the machine was not seen off in between; look at its uptime before believing that it was restarted')
    })
  })
}

/** `--wait` takes an optional duration, so `--wait URL` hands it the address; that is not repeated, as there may be a password in it. */
function parseWait(text: string): string {
  if (text.includes('://')) throw new InvalidArgumentError('It takes a duration or nothing: write the address before it.')
  return parseDuration(text)
}

interface Outcome {
  readonly target: string
  readonly order: Order
  /** What was seen after the order; null where nobody looked. */
  readonly power: Observed['power'] | null
  readonly waitedMs: number | null
  readonly seenOff?: boolean
}

async function carryOut(cli: Cli, session: PowerSession, what: { order: Order; wait: string | true | undefined }): Promise<Outcome> {
  const { order, wait } = what
  const { target } = session
  if (wait === undefined) {
    await give(session, order)
    return { target, order, power: null, waitedMs: null }
  }
  const progress = progressFor(cli)
  const waitMs = durationMs(wait === true ? patience[order] : wait)
  try {
    const tell = (text: string) => progress.update(target, text)
    return { target, order, ...(await giveAndObserve(session, order, { waitMs, signal: cli.signal, now: cli.now, tell })) }
  } catch (error) {
    if (!(error instanceof StillWaiting)) throw error
    throw new CliError('timed-out', `power ${order} via ${target}: accepted, but after ${waitMs / 1000} s: ${error.message}`, {
      cause: error,
      hint: stillWaitingHints[order],
    })
  } finally {
    progress.stop()
  }
}

const stillWaitingHints: { readonly [order in Order]: string } = {
  on: 'Look at the machine: a power supply without input, an interlock and a full power budget of the chassis keep it off.',
  off: 'Wait longer, or look at the machine: some BMCs accept the order and drop it. A restart of the BMC often helps.',
  cycle: 'Wait longer, or switch it off and on in two steps, each with --wait.',
  soft: 'The operating system does not listen, or is not running: switch it off hard with: muster bmc power off URL',
}

function outcomeText({ target, order, power, waitedMs }: Outcome): string {
  const end = power === null || waitedMs === null ? 'accepted' : `done, power ${power} after ${(waitedMs / 1000).toFixed(1)} s`
  return `${printable(target)}  power ${order} ${end}\n`
}

function addBoot(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('boot').summary('see or set what the next boot is from'))
  command.addArgument(
    new Argument('[device]', 'what to boot from next, once; none takes it back; the present one is shown without').choices([
      'network',
      'disk',
      'none',
    ]),
  )
  command.description('Show what the next boot is set to, set it for that boot only, or take it back. Nothing is restarted.')
  command.addOption(new Option('--firmware <kind>', 'how the machine boots').choices(['uefi', 'legacy']).default('uefi'))
  examples(command, [`bmc boot ${aBmc}`, `bmc boot ${aBmc} network --firmware legacy`, `bmc boot ${aBmc} none`])
  command.action(async (url: string, device: 'network' | 'disk' | 'none' | undefined, flags: BmcFlags & { firmware: BootFirmware }) => {
    await withSession(cli, command, { url, flags }, async session => {
      const next = capabilityOf(session, 'bootNext', {
        tried: 'boot override',
        hint: 'Put the network first in the boot order of the firmware.',
      })
      if (device === 'none') await next.clear()
      const kept = device === 'network' || device === 'disk' ? (await next.set({ device, firmware: flags.firmware })).kept : undefined
      // After a set the BMC was read already; some cannot be read at all.
      const set = kept === undefined ? await next.read() : { device: device as string, firmware: flags.firmware }
      const shown = { target: session.target, next: set ?? null, ...(kept !== undefined && { kept }) }
      const text = set ? `next boot from ${set.device} (${set.firmware})` : 'next boot as the firmware is set up'
      showOne(cli, formatOf(command), shown, {
        name: () => set?.device ?? 'none',
        text: () => `${printable(session.target)}  ${printable(text)}\n`,
      })
      if (kept === 'device only')
        remark(cli, `muster: the BMC kept the device, but not that it is for ${flags.firmware}; the machine may boot otherwise`)
      if (kept === 'unreadable') remark(cli, 'muster: the BMC accepted it, but does not let it be read back')
    })
  })
}

function addIdentify(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('identify').summary('the light that tells which machine it is')).argument(
    '<light>',
    'on, off, or seconds from 1 to 255',
    parseLight,
  )
  command.description('Switch the identify light on until further notice, on for some seconds, or off.')
  examples(command, [`bmc identify ${aBmc} on`, `bmc identify ${aBmc} 60`, `bmc identify ${aBmc} off`])
  command.action(async (url: string, light: number | 'on' | 'off', flags: BmcFlags) => {
    await withSession(cli, command, { url, flags }, async session => {
      const identify = capabilityOf(session, 'identify', {
        tried: `identify light ${light}`,
        hint: 'Find the machine by its serial number: muster bmc fru URL',
      })
      await identify({ light })
      const text = typeof light === 'number' ? `on for ${light} s` : light
      showOne(
        cli,
        formatOf(command),
        { target: session.target, light },
        { name: () => String(light), text: () => `${printable(session.target)}  identify light ${text}\n` },
      )
    })
  })
}

function parseLight(text: string): number | 'on' | 'off' {
  if (text === 'on' || text === 'off') return text
  const seconds = parseCount(text, 1)
  if (seconds > 255) throw new InvalidArgumentError('It is on, off, or seconds from 1 to 255.')
  return seconds
}

const readingShape: Shape<Reading> = {
  columns: [
    { title: 'SENSOR', text: ({ name }) => name },
    { title: 'VALUE', text: ({ value }) => (value === undefined ? '' : String(value)), align: 'right' },
    { title: 'UNIT', text: ({ unit }) => unit ?? '' },
    { title: 'STATES', text: ({ states }) => states.join(',') },
  ],
  name: ({ name }) => name,
  none: 'The BMC has no sensors.',
}

function addSensors(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('sensors').summary('what its sensors read'))
  command.description('Read all sensors: some seconds, because BMCs need a few milliseconds for each of a hundred or more.')
  examples(command, [
    `bmc sensors ${aBmc} --password-file bmc.password`,
    `bmc sensors ${aBmc} -o json | jq '.items[] | select(.unit == "°C")'`,
  ])
  command.action(async (url: string, flags: BmcFlags) => {
    await withSession(cli, command, { url, flags }, async session => {
      const read = capabilityOf(session, 'sensors', { tried: 'read sensors', hint: "Look at the BMC's own pages." })
      showList(cli, formatOf(command), { items: await read() }, readingShape)
    })
  })
}

const logShape: Shape<LogEntry> = {
  columns: [
    { title: 'ID', text: ({ id }) => String(id), align: 'right' },
    {
      title: 'TIME',
      text: ({ at, secondsAfterPowerUp }) => at ?? (secondsAfterPowerUp === null ? '' : `power-up + ${secondsAfterPowerUp} s`),
    },
    { title: 'SENSOR', text: ({ sensorType, sensor }) => (sensorType === null ? '' : `${sensorType} #${sensor}`) },
    { title: 'EVENT', text: ({ event, direction }) => (direction === 'deasserted' ? `${event} (over)` : event), least: 20 },
    { title: 'DATA', text: ({ data }) => data, wide: true },
  ],
  name: ({ id }) => String(id),
  none: 'The event log is empty.',
}

function addSel(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('sel').summary('its event log'))
  command.description('Read the event log of a BMC, oldest entry first.')
  command.option('--clear', 'clear the log after it was read and printed; what the BMC notes in between is lost')
  examples(command, [`bmc sel ${aBmc} --password-file bmc.password`, `bmc sel ${aBmc} --clear -o ndjson > events.ndjson`])
  command.action(async (url: string, flags: BmcFlags & { clear?: true }) => {
    const target = await targetOf(cli, url, flags)
    await withIpmi(cli, command, { target, tried: 'read event log' }, async client => {
      const entries = await client.run('read event log', turn => readSel(turn))
      showList(cli, formatOf(command), { items: entries.map(logEntryOf) }, logShape)
      if (!flags.clear) return
      await client.run('clear event log', turn => clearSel(turn))
      remark(cli, 'muster: the event log is cleared')
    })
  })
}

function addFru(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('fru').summary('who the machine is, as the factory wrote it'))
  command.description('Maker, product and serial numbers of a machine, as the factory wrote them; over IPMI all that it wrote.')
  examples(command, [`bmc fru ${aBmc} --password-file bmc.password`, `bmc fru ${aBmc} -o json | jq -r .identity.serial`])
  command.action(async (url: string, flags: BmcFlags) => {
    const target = await targetOf(cli, url, flags)
    const found = await readInventory(cli, command, target)
    showOne(cli, formatOf(command), found, { name: ({ identity }) => identity.serial, text: inventory => inventoryText(cli, inventory) })
  })
}

function addConsole(parent: Command, cli: Cli): void {
  const command = addTarget(parent.command('console').summary('the serial console of the machine'))
  command.description(
    'Open the serial console of a machine over its BMC (serial over LAN). On a terminal every key goes to the machine: Enter ~ . closes the console, ' +
      'Enter ~ B sends a break, Enter ~ ~ a tilde. From a pipe the input is typed and the console closes at its end; 130 is the ending after Ctrl-C there.',
  )
  command.option('--take-over', 'end the console of whoever has it')
  command.addOption(
    new Option('--wait <duration>', 'from a pipe: go on listening so long after the end of the input')
      .argParser(parseDuration)
      .default('1s'),
  )
  examples(command, [
    `bmc console ${aBmc}`,
    `bmc console ${aBmc} --take-over`,
    `bmc console ${aBmc} --password-file bmc.password --wait 10m < /dev/null > boot.log`,
  ])
  command.action(async (url: string, flags: BmcFlags & { takeOver?: true; wait: string }) => {
    await withSession(cli, command, { url, flags }, async session => {
      const open = capabilityOf(session, 'console', { tried: 'serial console', hint: "Look for a console on the BMC's own pages." })
      await using line = await open({ holder: flags.takeOver ? 'end' : 'leave', signal: cli.signal })
      remark(cli, `muster: console of ${session.target}${cli.stdin.isTTY ? '; Enter ~ . closes it' : ''}`)
      await runConsole(cli, line, { listenMs: durationMs(flags.wait) })
    })
  })
}

interface Inventory {
  readonly target: string
  readonly identity: Identity
  /** The areas of the FRU, where the driver is IPMI. */
  readonly areas?: Fru
}

async function readInventory(cli: Cli, command: Command, target: Target): Promise<Inventory> {
  const tried = 'read inventory'
  if (target.driver.type === ipmi.type)
    return withIpmi(cli, command, { target, tried }, async client => {
      const areas = await client.run(tried, turn => readFru(turn))
      return { target: client.target, identity: identityOf(areas), areas }
    })
  return asked(
    (async () => {
      await using session = openTarget(cli, command, target)
      const read = capabilityOf(session, 'identity', { tried, hint: "Look at the BMC's own pages." })
      return { target: session.target, identity: await read() }
    })(),
  )
}

function inventoryText(cli: Cli, { identity, areas }: Inventory): string {
  const { chassis, board, product } = areas ?? {}
  return fieldsText(cli, [
    ['Maker', identity.maker],
    ['Product', identity.product],
    ['Serial', identity.serial],
    ['Asset tag', identity.assetTag],
    ['Product part', product?.partNumber],
    ['Product version', product?.version],
    ['Product notes', product?.custom.join(', ')],
    ['Board', board && [board.maker, board.product].filter(Boolean).join(' ')],
    ['Board serial', board?.serial],
    ['Board part', board?.partNumber],
    ['Board made', board?.madeAt?.toISOString()],
    ['Board notes', board?.custom.join(', ')],
    ['Chassis serial', chassis?.serial],
    ['Chassis part', chassis?.partNumber],
    ['Chassis notes', chassis?.custom.join(', ')],
  ])
}

/** Opens a session, works with it, and closes it; a driver's error leaves as one of this program. */
function withSession(
  cli: Cli,
  command: Command,
  { url, flags }: { url: string; flags: BmcFlags },
  work: (session: PowerSession) => Promise<void>,
): Promise<void> {
  return asked(
    (async () => {
      const target = await targetOf(cli, url, flags)
      await using session = openTarget(cli, command, target)
      await work(session)
    })(),
  )
}

/** What lies beyond the driver contract and only IPMI has. */
function withIpmi<Result>(
  cli: Cli,
  command: Command,
  { target, tried }: { target: Target; tried: string },
  work: (client: ReturnType<typeof ipmiClient>) => Promise<Result>,
): Promise<Result> {
  const { driver, settings } = target
  if (driver.type !== ipmi.type)
    throw unsupported({ tried, target: driver.type, hint: "Look at the BMC's own pages, or try ipmi:// on the same BMC." })
  const log = logOf(cli, command)
  const client = ipmiClient(ipmi.settings.parse(settings), { context: { signal: cli.signal, ...(log && { log }) } })
  return asked(work(client).finally(() => client.close()))
}

/** A capability, or a failure `bmc-unsupported` with what to do instead. */
function capabilityOf<Name extends keyof Capabilities>(
  { target, capabilities }: PowerSession,
  name: Name,
  { tried, hint }: { tried: string; hint: string },
): NonNullable<Capabilities[Name]> {
  const found = capabilities[name]
  if (found === undefined) throw unsupported({ tried, target, hint })
  return found
}
