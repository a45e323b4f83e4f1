/**
 * BMCs of the vendors, as far as a power driver meets them: a tree of resources of recorded shape (testdata/redfish), brought to life with the refusals
 * the vendor is known for. They answer through msw, so that no port is needed and the driver's requests are the real ones.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import { HttpResponse, http, type RequestHandler } from 'msw'

export const vendorNames = [
  'dell-idrac9',
  'hpe-ilo5',
  'lenovo-xcc',
  'supermicro-x12',
  'openbmc',
  'ami-megarac',
  'asrock',
  'huawei-ibmc',
] as const
export type VendorName = (typeof vendorNames)[number]

interface Said {
  status: number
  id: string
  text?: string
}

/** What is particular about a vendor; each is a fact of ipmi.md, section Redfish, or of the service's own documentation. */
interface Quirks {
  etags: 'optional weak' | 'optional strong' | '428 without' | '412 without' | 'never match'
  /** Of an accepted reset; 202 comes with a task. */
  resetStatus: number
  takesResets: string[]
  /** On when on, off when off. */
  refusesWhenAlready?: Said
  /** So many "on" are refused after each "off". */
  conflictsAfterOff?: number
  sessionsFull?: Said
  wrongLogin?: Said
  /** Every path ends with a slash, and others are redirected there. */
  slashes?: boolean
  compresses?: boolean
  /** So many changes are refused because of POST. */
  postRefusals?: number
  readOnlyBootMode?: string
  refusesDisabledWithNone?: boolean
  modeFallsBackUnlessSent?: boolean
  needsAllBootFields?: boolean
  /** Changes of the system itself are refused with a pointer to the settings object, as a message or as plain text. */
  futureState?: 'message' | 'text'
}

type Json = Record<string, unknown>

export const login = { user: 'admin', password: 'correct-horse' } as const

let count = 0

export class VendorBmc {
  readonly address: string
  readonly quirks: Quirks
  readonly resources: Record<string, Json>
  power: 'On' | 'Off' = 'Off'
  /** `POST /redfish/…` and so on, as they came, with the status of the answer. */
  readonly requests: string[] = []
  /** Bodies of PATCH, as they came. */
  readonly changes: Json[] = []
  readonly resets: string[] = []
  sessions: 'room' | 'full' | 'none' = 'room'
  readonly #tokens = new Set<string>()
  #conflictsLeft = 0
  #postRefusalsLeft: number
  #taskLooks = 0
  #nextToken = 1

  constructor(name: VendorName) {
    const file = JSON.parse(readFileSync(new URL(`testdata/redfish/${name}.json`, import.meta.url), 'utf8'))
    this.quirks = file.quirks
    this.resources = file.resources
    this.#postRefusalsLeft = this.quirks.postRefusals ?? 0
    this.address = `http://${name}-${++count}.bmc.test`
  }

  /** For msw. */
  get handler(): RequestHandler {
    return http.all(`${this.address}/*`, async ({ request }) => {
      const body = await request.text()
      const url = new URL(request.url)
      const response = this.#answer(request, url.pathname, body === '' ? {} : JSON.parse(body))
      this.requests.push(`${request.method} ${url.pathname} ${response.status}`)
      return response
    })
  }

  get sessionsOpen(): number {
    return this.#tokens.size
  }

  get system(): Json {
    return this.resources[this.systemPath] ?? {}
  }

  get systemPath(): string {
    const path = Object.keys(this.resources).find(key => /^\/redfish\/v1\/Systems\/[^/]+\/?$/.test(key))
    if (path === undefined) throw new Error('the tree has no system')
    return path
  }

  /** What the firmware would do at its next boot. */
  override(): { enabled: unknown; target: unknown; mode: unknown } {
    const settings = this.quirks.futureState ? this.resources[`${this.systemPath}/SD`] : this.system
    const boot = (settings?.Boot ?? {}) as Json
    return { enabled: boot.BootSourceOverrideEnabled, target: boot.BootSourceOverrideTarget, mode: boot.BootSourceOverrideMode }
  }

  #answer(request: Request, path: string, body: Json): Response {
    const { quirks } = this
    if (quirks.slashes && !path.endsWith('/')) return new HttpResponse(null, { status: 308, headers: { Location: `${path}/` } })
    const at = quirks.slashes ? path : path.replace(/\/+$/, '')
    const isRoot = /^\/redfish\/v1\/?$/.test(at)
    if (/\/Sessions\/?$/.test(at) && request.method === 'POST') return this.#logIn(body)
    if (!isRoot && !this.#isKnown(request)) return refused({ status: 401, id: 'Base.1.8.NoValidSession' })
    if (request.method === 'DELETE')
      return new HttpResponse(null, { status: this.#tokens.delete(at.split('/').filter(Boolean).pop() ?? '') ? 204 : 404 })
    if (request.method === 'POST') return this.#reset(at, body)
    if (request.method === 'PATCH') return this.#change(request, at, body)
    if (at.startsWith('/redfish/v1/TaskService/')) return this.#task()
    const resource = this.resources[at]
    if (!resource) return refused({ status: 404, id: 'Base.1.8.ResourceMissingAtURI' })
    return this.#shown(at === this.systemPath ? { ...resource, PowerState: this.power } : resource)
  }

  #shown(resource: Json): Response {
    const text = JSON.stringify(resource)
    const headers = { 'Content-Type': 'application/json', ETag: this.#etag(resource) }
    if (!this.quirks.compresses) return new HttpResponse(text, { headers })
    return new HttpResponse(gzipSync(text), { headers: { ...headers, 'Content-Encoding': 'gzip' } })
  }

  #etag(resource: Json): string {
    const { '@odata.etag': _, ...rest } = resource
    const hash = createHash('sha256').update(JSON.stringify(rest)).digest('hex').slice(0, 12)
    return /weak|412/.test(this.quirks.etags) ? `W/"${hash}"` : `"${hash}"`
  }

  #isKnown(request: Request): boolean {
    const token = request.headers.get('x-auth-token')
    if (token !== null) return this.#tokens.has(token)
    return request.headers.get('authorization') === `Basic ${Buffer.from(`${login.user}:${login.password}`).toString('base64')}`
  }

  #logIn(body: Json): Response {
    if (this.sessions === 'none') return refused({ status: 404, id: 'Base.1.8.ResourceMissingAtURI' })
    if (body.UserName !== login.user || body.Password !== login.password) {
      return refused(this.quirks.wrongLogin ?? { status: 401, id: 'Base.1.8.ResourceAtUriUnauthorized' })
    }
    if (this.sessions === 'full') return refused(this.quirks.sessionsFull ?? { status: 503, id: 'Base.1.8.SessionLimitExceeded' })
    const token = `token${this.#nextToken++}`
    this.#tokens.add(token)
    // Whole, and with the BMC's own idea of its name, as some do.
    const location = `https://192.0.2.1/redfish/v1/SessionService/Sessions/${token}${this.quirks.slashes ? '/' : ''}`
    return HttpResponse.json({ '@odata.id': location }, { status: 201, headers: { 'X-Auth-Token': token, Location: location } })
  }

  #reset(at: string, { ResetType: type }: Json): Response {
    const { quirks } = this
    if (!/\/Actions\/ComputerSystem\.Reset\/?$/.test(at)) return refused({ status: 404, id: 'Base.1.8.ResourceMissingAtURI' })
    if (typeof type !== 'string' || !quirks.takesResets.includes(type)) {
      return refused({ status: 400, id: 'Base.1.8.ActionParameterNotSupported', text: `${String(type)} is not supported for ResetType.` })
    }
    const isOn = this.power === 'On'
    const isAlready = type !== 'PushPowerButton' && (/^(Force)?On$/.test(type) ? isOn : !isOn)
    if (type === 'On' && this.#conflictsLeft > 0) {
      this.#conflictsLeft -= 1
      return refused({ status: 409, id: 'Base.1.12.ActionParameterValueConflict' })
    }
    if (isAlready && quirks.refusesWhenAlready) {
      const { text = '' } = quirks.refusesWhenAlready
      return refused({ ...quirks.refusesWhenAlready, text: text.replace('{state}', this.power.toUpperCase()) })
    }
    this.resets.push(type)
    if (/Off$|Shutdown$/.test(type)) this.#conflictsLeft = quirks.conflictsAfterOff ?? 0
    const endsOff = type === 'PushPowerButton' ? isOn : /Off$|Shutdown$/.test(type) || (isAlready && !/On$/.test(type))
    this.power = endsOff ? 'Off' : 'On'
    if (quirks.resetStatus !== 202) return quirks.resetStatus === 204 ? new HttpResponse(null, { status: 204 }) : success()
    this.#taskLooks = 2
    return HttpResponse.json({ TaskState: 'New' }, { status: 202, headers: { Location: '/redfish/v1/TaskService/TaskMonitors/1' } })
  }

  #task(): Response {
    this.#taskLooks -= 1
    if (this.#taskLooks > 0) return HttpResponse.json({ TaskState: 'Running' }, { status: 202 })
    return HttpResponse.json({ TaskState: 'Completed', TaskStatus: 'OK' })
  }

  #change(request: Request, at: string, body: Json): Response {
    const resource = this.resources[at]
    if (!resource) return refused({ status: 404, id: 'Base.1.8.ResourceMissingAtURI' })
    const match = this.#matches(
      request.headers.get('if-match'),
      at === this.systemPath ? { ...resource, PowerState: this.power } : resource,
    )
    if (match) return match
    if (this.#postRefusalsLeft > 0) {
      this.#postRefusalsLeft -= 1
      return refused({ status: 400, id: 'iLO.2.14.UnableToModifyDuringSystemPOST' })
    }
    this.changes.push(body)
    if (body.Boot !== undefined) return this.#changeBoot(at, resource, body.Boot as Json)
    Object.assign(resource, body)
    return success()
  }

  #matches(tag: string | null, resource: Json): Response | undefined {
    const { etags } = this.quirks
    const mismatch = refused({ status: 412, id: 'Base.1.8.PreconditionFailed' })
    if (etags === 'never match') return tag === null ? undefined : mismatch
    if (tag === null)
      return etags === '428 without'
        ? refused({ status: 428, id: 'Base.1.8.PreconditionRequired' })
        : etags === '412 without'
          ? mismatch
          : undefined
    return tag === '*' || tag === this.#etag(resource) ? undefined : mismatch
  }

  #changeBoot(at: string, resource: Json, wanted: Json): Response {
    const { quirks } = this
    const before = (resource.Boot ?? {}) as Json
    if (quirks.futureState && at === this.systemPath) {
      const text = `Support of this Operation for Boot Properties is moved to FutureState URI(${at}/SD)`
      return quirks.futureState === 'text'
        ? new HttpResponse(text, { status: 400, headers: { 'Content-Type': 'text/plain' } })
        : refused({ status: 400, id: 'Ami.1.0.OperationSupportedInFutureStateURI', text })
    }
    const names = ['BootSourceOverrideEnabled', 'BootSourceOverrideTarget', 'BootSourceOverrideMode']
    if (quirks.needsAllBootFields && names.some(name => wanted[name] === undefined)) {
      return refused({ status: 400, id: 'Base.1.8.PropertyMissing', text: 'Boot must have all of its override properties.' })
    }
    if (quirks.readOnlyBootMode && 'BootSourceOverrideMode' in wanted) {
      return refused({ status: 400, id: quirks.readOnlyBootMode, text: '', about: 'BootSourceOverrideMode' })
    }
    if (quirks.refusesDisabledWithNone && wanted.BootSourceOverrideTarget === 'None' && 'BootSourceOverrideEnabled' in wanted) {
      return refused({ status: 400, id: 'iLO.2.14.PropertyValueIncompatible', text: '', about: 'BootSourceOverrideEnabled' })
    }
    const mode = quirks.modeFallsBackUnlessSent && !('BootSourceOverrideMode' in wanted) ? { BootSourceOverrideMode: 'Legacy' } : {}
    resource.Boot = {
      ...before,
      ...wanted,
      ...mode,
      ...(wanted.BootSourceOverrideEnabled === 'Disabled' && { BootSourceOverrideTarget: 'None' }),
    }
    return success()
  }
}

function success(): Response {
  return HttpResponse.json({ '@Message.ExtendedInfo': [{ MessageId: 'Base.1.8.Success', Message: 'Successfully Completed Request' }] })
}

function refused({ status, id, text = '', about }: Said & { about?: string }): Response {
  const message = { MessageId: id, Message: text, MessageArgs: about === undefined ? [] : [about] }
  return HttpResponse.json(
    { error: { code: 'Base.1.8.GeneralError', message: 'A general error has occurred.', '@Message.ExtendedInfo': [message] } },
    { status },
  )
}
