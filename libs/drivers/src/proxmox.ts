/** The Proxmox VE driver: a virtual machine of a cluster, switched over its API with a token. */
import { z } from 'zod'
import type { PowerDriver, PowerState } from './driver.ts'
import { Failure } from './failure.ts'
import { excerpt, exchange, isHttpUrl, refusal, tlsSettings } from './http.ts'
import { openSwitch, type Turn } from './turns.ts'

const settings = z.strictObject({
  url: z
    .string()
    .max(500)
    .refine(text => isHttpUrl(text) && /^https:/.test(text) && URL.parse(text)?.pathname === '/', 'not an https address without a path')
    .describe('Any node of the cluster, e.g. https://pve1.example:8006'),
  tokenId: z
    .string()
    .regex(/^[^\s!=:]+@[^\s!=:]+![A-Za-z][A-Za-z0-9._-]*$/, 'not a token ID: write user@realm!name')
    .describe('API token, e.g. muster@pve!power. It needs VM.Audit and VM.PowerMgmt on the machine'),
  tokenSecret: z
    .string()
    .regex(/^[\x21-\x7e]{1,200}$/, 'not a token secret')
    .describe('The token’s secret, shown once when it was made'),
  vm: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9.-]{0,127}$/, 'not a machine: write its number or name')
    .describe('Number or name of the virtual machine, e.g. 104. A number stays when the machine is renamed'),
  ...tlsSettings,
})

type ProxmoxSettings = z.output<typeof settings>

export interface ProxmoxOptions {
  /** First pause between looks at a task, in milliseconds; doubles up to two seconds. */
  taskLookMs?: number
}

/** Makes the driver; the options are for tests. */
export function proxmoxDriver({ taskLookMs = 200 }: ProxmoxOptions = {}): PowerDriver<typeof settings> {
  return {
    type: 'proxmox',
    title: 'Proxmox VE',
    settings,
    secrets: ['tokenSecret'],
    open(given, context = {}) {
      const cluster = new Cluster(given, taskLookMs)
      return openSwitch({
        target: `proxmox ${given.vm} at ${new URL(given.url).host}`,
        context,
        orders: {
          power: turn => cluster.power(turn),
          // Proxmox refuses to start what runs and to shut down what does not: the order is fulfilled then, and not given.
          on: async turn => {
            if ((await cluster.power(turn)) !== 'on') await cluster.order(turn, 'start')
          },
          off: async (turn, how) => {
            if ((await cluster.power(turn)) !== 'off') await cluster.order(turn, how === 'hard' ? 'stop' : 'shutdown')
          },
          reset: async turn => cluster.order(turn, (await cluster.power(turn)) === 'off' ? 'start' : 'reset'),
        },
      })
    },
  }
}

export const proxmox = proxmoxDriver()

type Order = 'start' | 'stop' | 'shutdown' | 'reset'

/** Wait for the end of a task. A shutdown's runs as long as the guest takes, so it is only seen to begin. */
const taskMs: Readonly<Record<Order, number>> = { start: 20_000, stop: 20_000, shutdown: 1500, reset: 20_000 }
const taskLookMsMax = 2000

const resources = z.object({
  data: z.array(z.object({ type: z.string(), vmid: z.int().optional(), name: z.string().optional(), node: z.string().optional() })),
})
const current = z.object({ data: z.object({ status: z.string(), qmpstatus: z.string().optional() }) })
const upid = z.object({ data: z.string().startsWith('UPID:') })
const task = z.object({ data: z.object({ status: z.string(), exitstatus: z.string().optional() }) })

interface Place {
  node: string
  vmid: number
}

class Cluster {
  readonly #given: ProxmoxSettings
  readonly #taskLookMs: number
  /** Where the machine was last seen. It may migrate; then its old node answers that it has no such machine. */
  #place: Place | undefined

  constructor(given: ProxmoxSettings, taskLookMs: number) {
    this.#given = given
    this.#taskLookMs = taskLookMs
  }

  async power(turn: Turn): Promise<PowerState> {
    const { data } = await this.#atPlace(turn, place => this.#call(turn, 'GET', `${path(place)}/status/current`, current))
    if (data.status === 'running') return 'on'
    if (data.status === 'stopped') return 'off'
    return 'unknown'
  }

  /** Gives the order and sees its task through, so far as taskMs says. */
  async order(turn: Turn, order: Order): Promise<void> {
    const { place, task: id } = await this.#atPlace(turn, async at => ({ place: at, task: (await this.#post(turn, at, order)).data }))
    await this.#seeThrough(turn, { node: place.node, id, order })
  }

  /** A shutdown under way holds the machine's lock. Proxmox from 8.2 on ends it when told; earlier ones do not know the word. */
  async #post(turn: Turn, place: Place, order: Order): Promise<z.output<typeof upid>> {
    const address = `${path(place)}/status/${order}`
    if (order !== 'stop') return this.#call(turn, 'POST', address, upid)
    try {
      return await this.#call(turn, 'POST', address, upid, 'overrule-shutdown=1')
    } catch (error) {
      if (!(error instanceof ApiFailure) || error.status !== 400) throw error
      return this.#call(turn, 'POST', address, upid)
    }
  }

  async #seeThrough(turn: Turn, { node, id, order }: { node: string; id: string; order: Order }): Promise<void> {
    const deadline = performance.now() + taskMs[order]
    let waitMs = this.#taskLookMs
    for (;;) {
      const { data } = await this.#call(turn, 'GET', `/nodes/${encodeURIComponent(node)}/tasks/${encodeURIComponent(id)}/status`, task)
      if (data.status === 'stopped') {
        const ending = data.exitstatus ?? 'nothing'
        if (ending === 'OK' || ending.startsWith('WARNINGS')) return
        throw taskFailure(order, excerpt(ending, [this.#given.tokenSecret]))
      }
      if (performance.now() > deadline) {
        if (order === 'shutdown') return
        throw new Failure({
          kind: 'silent',
          got: `the task ${order} was not done within ${taskMs[order] / 1000} s`,
          hint: 'The task goes on; its log is in the web page of Proxmox. Observe the power state before trying again.',
          outcome: 'unknown',
        })
      }
      await turn.pause(waitMs, 'unknown')
      waitMs = Math.min(waitMs * 2, taskLookMsMax)
    }
  }

  /** Does `work` where the machine was last, and once more where it is if it has moved. */
  async #atPlace<T>(turn: Turn, work: (place: Place) => Promise<T>): Promise<T> {
    const known = this.#place
    if (known) {
      try {
        return await work(known)
      } catch (error) {
        if (!(error instanceof ApiFailure) || !error.isMoved) throw error
        turn.log('the machine is not on its node any more', { node: known.node })
      }
    }
    this.#place = await this.#find(turn)
    return work(this.#place)
  }

  async #find(turn: Turn): Promise<Place> {
    const { vm } = this.#given
    const { data } = await this.#call(turn, 'GET', '/cluster/resources?type=vm', resources)
    const machines = data.filter(({ type }) => type === 'qemu')
    const byNumber = machines.filter(({ vmid }) => String(vmid) === vm)
    const found = byNumber.length > 0 ? byNumber : machines.filter(({ name }) => name === vm)
    const [first] = found
    if (found.length > 1) {
      throw notFound(`${found.length} machines have that name: ${found.map(({ vmid }) => vmid).join(', ')}`, 'Give its number as vm.')
    }
    if (first?.node === undefined || first.vmid === undefined) {
      throw notFound('no such virtual machine is shown to this token', 'Check vm, and that the token has VM.Audit on the machine.')
    }
    return { node: first.node, vmid: first.vmid }
  }

  async #call<T extends z.ZodType>(turn: Turn, method: 'GET' | 'POST', path: string, shape: T, body = ''): Promise<z.output<T>> {
    const { url, tokenId, tokenSecret } = this.#given
    const purpose = method === 'GET' ? 'question' : 'order'
    const answer = await exchange(turn, {
      url: new URL(`/api2/json${path}`, url),
      method,
      headers: {
        authorization: `PVEAPIToken=${tokenId}=${tokenSecret}`,
        ...(body !== '' && { 'content-type': 'application/x-www-form-urlencoded' }),
      },
      body,
      trust: this.#given,
      purpose,
    })
    if (answer.status !== 200) {
      // Proxmox writes its reason into the status line; the body adds the fields it minds.
      const said = excerpt(`${answer.statusText} ${answer.body === '{"data":null}' ? '' : answer.body}`, [tokenSecret])
      throw new ApiFailure(answer.status, said, purpose)
    }
    const read = shape.safeParse(parsed(answer.body))
    if (read.success) return read.data
    throw new Failure({
      kind: 'protocol',
      got: `${method} ${path} answered "${excerpt(answer.body, [tokenSecret])}"`,
      hint: 'Check that url is a Proxmox VE node.',
      outcome: purpose === 'order' ? 'unknown' : 'none',
    })
  }
}

const path = ({ node, vmid }: Place) => `/nodes/${encodeURIComponent(node)}/qemu/${vmid}`

function parsed(body: string): unknown {
  try {
    return JSON.parse(body)
  } catch {
    // No JSON fits no shape.
    return undefined
  }
}

/** Statuses and texts that mean more than HTTP says, first match. 595 to 599 come from the node that passed the call on to another. */
const apiKinds = [
  {
    from: 500,
    to: 500,
    text: /is locked|can't lock file|got timeout/i,
    kind: 'busy',
    hint: 'A backup, migration or another task holds the machine. Try again when it is done.',
  },
  { from: 500, to: 500, text: /does not exist|no such vm/i, kind: 'settings', hint: 'The machine was removed or has moved. Check vm.' },
  { from: 595, to: 599, text: /./, kind: 'silent', hint: 'The node the machine is on cannot be reached from the one called. Is it up?' },
] as const

class ApiFailure extends Failure {
  readonly status: number
  /** The node called knows no such machine (any more). */
  readonly isMoved: boolean

  constructor(status: number, said: string, purpose: 'question' | 'order') {
    const row = apiKinds.find(({ from, to, text }) => status >= from && status <= to && text.test(said || '?'))
    const usual = refusal({ status, statusText: '', body: '' }, said, purpose).facts
    super(row ? { ...usual, kind: row.kind, hint: row.hint, outcome: 'none' } : usual)
    this.status = status
    this.isMoved = row?.kind === 'settings' || row?.kind === 'silent'
  }
}

function taskFailure(order: Order, ending: string): Failure {
  const isBusy = /is locked|can't lock file|got timeout/i.test(ending)
  return new Failure({
    kind: isBusy ? 'busy' : 'refused',
    got: `the task ${order} ended with "${ending}"`,
    hint: isBusy
      ? 'A backup, migration or another task holds the machine. Try again when it is done.'
      : 'The log of the task is in the web page of Proxmox.',
    outcome: 'unknown',
  })
}

function notFound(got: string, hint: string): Failure {
  return new Failure({ kind: 'settings', got, hint })
}
