// How a Redfish service may misbehave, as inputs: what tests and sad machines turn up. All may be changed at any time.

export interface RedfishFaults {
  /** Every answer comes that much later, in milliseconds. */
  latencyMs: number
  /** So many requests are answered 503 before the next is served; counts down. */
  busy: number
  /** Retry-After of those 503, in seconds; null sends none. */
  retryAfterS: number | null
  /** So many requests on a connection that was used before are met with a reset; counts down. */
  resets: number
  /** So many POSTs are carried out and then not answered, the connection being reset; counts down. */
  lostAnswers: number
  /** `required`: a PATCH needs the right If-Match, 428 without, 412 with another. `never match`: any If-Match gets 412, as on some boards. */
  etags: 'ignored' | 'required' | 'never match'
  /** `tasks`: actions are answered 202 with a task monitor that runs for `taskPolls` looks. `failing tasks` end in Exception. */
  answers: 'at once' | 'tasks' | 'failing tasks'
  taskPolls: number
  /** `absent`: no SessionService, Basic only. */
  sessions: 'offered' | 'absent'
  basic: 'accepted' | 'refused'
  /** `absent`: no EventService; events are not told. */
  events: 'offered' | 'absent'
  /** `transitional`: PowerState shows PoweringOn and PoweringOff between an order and its effect. */
  states: 'plain' | 'transitional'
  /** `silent`: accepts connections and never answers. */
  life: 'alive' | 'silent'
}

/** A healthy service. */
export const noRedfishFaults: RedfishFaults = {
  latencyMs: 0,
  busy: 0,
  retryAfterS: null,
  resets: 0,
  lostAnswers: 0,
  etags: 'ignored',
  answers: 'at once',
  taskPolls: 2,
  sessions: 'offered',
  basic: 'accepted',
  events: 'offered',
  states: 'plain',
  life: 'alive',
}
