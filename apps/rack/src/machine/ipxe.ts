// An interpreter for the iPXE scripts a partition serves: the subset that decides what boots, followed for real. As in iPXE a command
// that fails ends the script unless `||` catches it, and a script that ends without booting hands back to the firmware.

/** What the interpreter needs of the machine. `fetch` rejects where the file cannot be had. */
export interface IpxeHost {
  /** `${net0/mac}`, `${uuid}` … by name; what is not there is empty, as in iPXE. */
  readonly settings: Readonly<Record<string, string>>
  /** A script to chain to, as text. */
  fetchScript(url: string): Promise<string>
  /** A kernel or initrd: fetched, not kept. */
  fetchFile(url: string): Promise<void>
  sleep(seconds: number): Promise<void>
  /** What the script says on the console, and the commands that failed. */
  note(line: string): void
}

/** What a script came to. */
export type IpxeOutcome =
  | { kind: 'kernel'; url: string; arguments: string; initrds: readonly string[] }
  | { kind: 'disk'; how: 'sanboot' | 'exit' }
  | { kind: 'reboot' }
  | { kind: 'power-off' }
  /** `shell`, `prompt` or `config`: waits for a person. */
  | { kind: 'waits'; command: string }
  | { kind: 'failed'; reason: string }

/** Commands a machine runs before it is taken for a loop: with a `sleep 5` in every third, two hours. */
const commandsMax = 5_000
/** A partition that cannot look a machine up has it chain to the same script again and again. */
const chainDepthMax = 1_500

/** Follows a script to its outcome. Rejects only where the host's functions reject for another reason than a failed fetch. */
export async function runIpxe(script: { text: string; url: string }, host: IpxeHost): Promise<IpxeOutcome> {
  const machine: Interpreter = { host, settings: { ...host.settings }, kernel: undefined, initrds: [], commandsLeft: commandsMax, depth: 0 }
  const end = await runScript(script, machine)
  if (end.kind === 'over') return { kind: 'disk', how: 'exit' }
  return end
}

interface Image {
  name: string
  url: string
  arguments: string
}

interface Interpreter {
  readonly host: IpxeHost
  readonly settings: Record<string, string>
  kernel: Image | undefined
  initrds: Image[]
  commandsLeft: number
  depth: number
}

/** How one command went. `jump` goes on at a label; `end` leaves all scripts, `over` this one. */
type Step =
  | { kind: 'ok' }
  | { kind: 'error'; reason: string }
  | { kind: 'jump'; label: string }
  | { kind: 'over' }
  | { kind: 'end'; outcome: IpxeOutcome }
type ScriptEnd = IpxeOutcome | { kind: 'over' }

async function runScript(script: { text: string; url: string }, machine: Interpreter): Promise<ScriptEnd> {
  const lines = joinedLines(script.text)
  if (!/^#!ipxe\s*$/.test(lines[0] ?? '')) return { kind: 'failed', reason: `${script.url} is not an iPXE script` }
  for (let at = 1; at < lines.length; at++) {
    const line = (lines[at] as string).trim()
    if (line === '' || line.startsWith('#') || line.startsWith(':')) continue
    const step = await runLine(line, script.url, machine)
    if (step.kind === 'end') return step.outcome
    if (step.kind === 'over') return { kind: 'over' }
    if (step.kind === 'error') return { kind: 'failed', reason: `${line}: ${step.reason}` }
    if (step.kind === 'jump') {
      at = lines.findIndex(candidate => candidate.trim().split(/\s+/)[0] === `:${step.label}`)
      if (at < 0) return { kind: 'failed', reason: `${line}: there is no label :${step.label}` }
    }
  }
  return { kind: 'over' }
}

/** Commands joined by `||` (on failure) and `&&` (on success), from left to right, as iPXE does. */
async function runLine(line: string, baseUrl: string, machine: Interpreter): Promise<Step> {
  const words = line.split(/\s+/)
  let step: Step = { kind: 'ok' }
  let joint = '&&'
  while (words.length > 0) {
    const end = words.findIndex(word => word === '||' || word === '&&')
    const command = words.splice(0, end < 0 ? words.length : end)
    const isDue = joint === '&&' ? step.kind === 'ok' : step.kind === 'error'
    if (isDue) {
      if (--machine.commandsLeft < 0) return { kind: 'end', outcome: { kind: 'failed', reason: `no end after ${commandsMax} commands` } }
      step = await runCommand(
        command.map(word => expand(word, machine.settings)),
        baseUrl,
        machine,
      )
      if (step.kind === 'error') machine.host.note(`${command.join(' ')}: ${step.reason}`)
      if (step.kind !== 'ok' && step.kind !== 'error') return step
    }
    joint = words.shift() ?? '&&'
    // `command ||` with nothing behind it means: failure is all right.
    if (words.length === 0 && joint === '||' && step.kind === 'error') return { kind: 'ok' }
  }
  return step
}

interface Call {
  readonly words: readonly string[]
  readonly options: ReadonlyMap<string, string>
  readonly baseUrl: string
  readonly machine: Interpreter
}

type Command = (call: Call) => Step | Promise<Step>

const ok: Step = { kind: 'ok' }
const end = (outcome: IpxeOutcome): Step => ({ kind: 'end', outcome })
const error = (reason: string): Step => ({ kind: 'error', reason })

/** Options that take a word after them; all others stand alone. `-n` and `-t` differ by command, but never in whether they take one. */
const valued = new Set(['--name', '-n', '--timeout', '-t', '--drive', '-d', '--filename', '-f', '--extra', '-e', '--label', '-l'])

/** The commands by name. What is not here is an error, as it is in iPXE when a command was not built in. */
const commands: Readonly<Record<string, Command>> = {
  echo: ({ words, machine }) => {
    machine.host.note(words.join(' '))
    return ok
  },
  set: ({ words: [name = '', ...value], machine }) => {
    machine.settings[name] = value.join(' ')
    return ok
  },
  clear: ({ words: [name = ''], machine }) => {
    delete machine.settings[name]
    return ok
  },
  // The word has been expanded: a setting that is not there left nothing behind.
  isset: ({ words }) => ((words[0] ?? '') === '' ? error('is not set') : ok),
  iseq: ({ words: [a = '', b = ''] }) => (a === b ? ok : error(`"${a}" is not "${b}"`)),
  goto: ({ words: [label = ''] }) => ({ kind: 'jump', label }),
  sleep: async ({ words: [seconds = '0'], machine }) => {
    await machine.host.sleep(Number(seconds) || 0)
    return ok
  },
  // The network is up: the script came over it.
  dhcp: () => ok,
  ifopen: () => ok,
  ifconf: () => ok,
  ifstat: () => ok,
  route: () => ok,
  imgstat: () => ok,
  kernel: async call => await loadKernel(call),
  imgargs: ({ words: [name = '', ...args], machine }) => {
    if (!machine.kernel || machine.kernel.name !== name) return error(`there is no image ${name}`)
    machine.kernel.arguments = args.join(' ')
    return ok
  },
  initrd: async call => await loadInitrd(call),
  imgfetch: async call => await loadInitrd(call),
  module: async call => await loadInitrd(call),
  imgfree: ({ machine }) => {
    machine.kernel = undefined
    machine.initrds = []
    return ok
  },
  boot: async call => {
    if (call.words.length > 0) {
      const loaded = await loadKernel(call)
      if (loaded.kind !== 'ok') return loaded
    }
    const { kernel, initrds } = call.machine
    if (!kernel) return error('there is no kernel to boot')
    return end({ kind: 'kernel', url: kernel.url, arguments: kernel.arguments, initrds: initrds.map(({ url }) => url) })
  },
  chain: async call => await chain(call),
  // A failing exit of a chained script is chain's failure; of the first script, the firmware's cue for the next device.
  exit: ({ words: [code = '0'], machine }) => {
    if (Number(code) === 0) return { kind: 'over' }
    return machine.depth > 0 ? error(`exit ${code}`) : end({ kind: 'disk', how: 'exit' })
  },
  sanboot: () => end({ kind: 'disk', how: 'sanboot' }),
  reboot: () => end({ kind: 'reboot' }),
  poweroff: () => end({ kind: 'power-off' }),
  shell: () => end({ kind: 'waits', command: 'shell' }),
  config: () => end({ kind: 'waits', command: 'config' }),
  prompt: ({ options }) =>
    options.has('--timeout') || options.has('-t') ? error('nobody pressed a key') : end({ kind: 'waits', command: 'prompt' }),
}

async function runCommand(words: readonly string[], baseUrl: string, machine: Interpreter): Promise<Step> {
  const [name = '', ...rest] = words
  if (name === '') return ok
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined
  if (!command) return error('command not found')
  const options = new Map<string, string>()
  // Options stand before the first word: a kernel's own arguments may look like options.
  while (rest[0]?.startsWith('-')) {
    const [option = '', value] = (rest.shift() as string).split(/=(.*)/s)
    options.set(option, value ?? (valued.has(option) ? (rest.shift() ?? '') : ''))
  }
  return await command({ words: rest, options, baseUrl, machine })
}

async function loadKernel(call: Call): Promise<Step> {
  const image = await load(call)
  if ('kind' in image) return image
  call.machine.kernel = image
  return ok
}

async function loadInitrd(call: Call): Promise<Step> {
  const image = await load(call)
  if ('kind' in image) return image
  call.machine.initrds.push(image)
  return ok
}

async function load({ words: [uri = '', ...args], options, baseUrl, machine }: Call): Promise<Image | Step> {
  const url = absoluteUrl(uri, baseUrl)
  if (url === undefined) return error(`"${uri}" is not a URL this firmware can fetch`)
  const failure = await failureOf(machine.host.fetchFile(url))
  if (failure !== undefined) return error(failure)
  return { name: options.get('--name') ?? options.get('-n') ?? uri.replace(/^.*\//, ''), url, arguments: args.join(' ') }
}

async function chain({ words: [uri = ''], baseUrl, machine }: Call): Promise<Step> {
  const url = absoluteUrl(uri, baseUrl)
  if (url === undefined) return error(`"${uri}" is not a URL this firmware can fetch`)
  if (machine.depth >= chainDepthMax) return error(`chained more than ${chainDepthMax} deep`)
  let text = ''
  const failure = await failureOf(
    machine.host.fetchScript(url).then(script => {
      text = script
    }),
  )
  if (failure !== undefined) return error(failure)
  machine.depth++
  const ended = await runScript({ text, url }, machine)
  machine.depth--
  if (ended.kind === 'over') return ok
  return ended.kind === 'failed' ? error(ended.reason) : end(ended)
}

/** The reason why a fetch failed; undefined where it did not. Losing power is no failure of the script: that goes on up. */
async function failureOf(fetching: Promise<void>): Promise<string | undefined> {
  try {
    await fetching
    return undefined
  } catch (cause) {
    if (!(cause instanceof Error) || cause.name !== 'HttpFailure') throw cause
    return cause.message
  }
}

function absoluteUrl(uri: string, baseUrl: string): string | undefined {
  const url = URL.parse(uri, baseUrl)
  return url && (url.protocol === 'http:' || url.protocol === 'https:') ? url.href : undefined
}

/** `${name}` and `${name:type}`; of the types, those that scripts use for MACs and URLs. Nesting is expanded inside out. */
function expand(word: string, settings: Readonly<Record<string, string>>): string {
  let text = word
  for (let depth = 0; depth < 8 && text.includes('${'); depth++)
    text = text.replaceAll(/\$\{([^${}]*)\}/g, (_, reference: string) => {
      const [name = '', type] = reference.split(':')
      const value = settings[name] ?? ''
      if (type === 'hexhyp') return value.replaceAll(':', '-')
      if (type === 'hexraw') return value.replaceAll(':', '')
      return type === 'uristring' ? encodeURIComponent(value) : value
    })
  return text
}

/** Lines, with those that end in a backslash joined to the next. */
function joinedLines(text: string): string[] {
  return text
    .replaceAll('\r', '')
    .replaceAll(/\\\n\s*/g, ' ')
    .split('\n')
}
