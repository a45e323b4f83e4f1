/** Answers that come later: 202 with a task monitor (DSP0266 12.2), or with a task as its body. */
import { Failure } from '../failure.ts'
import { type Answer, linkOf, messagesOf, pathOf, text } from './answer.ts'
import { retryAfterMs } from './patience.ts'
import { accepted, type Turn } from './service.ts'

const failedStates = ['Exception', 'Killed', 'Cancelled', 'Interrupted']

/**
 * Waits for what a request started, at most `limitMs`. Gives `done`, or `running` where it lasts longer. Throws Failure `refused` with the task's
 * words where it failed. An answer that is no 202 is done already; so is a 202 that names no task, where only the resource itself can tell.
 */
export async function finished(
  turn: Turn,
  first: Answer,
  { what, limitMs }: { what: string; limitMs: number },
): Promise<'done' | 'running'> {
  const monitor = first.status === 202 ? monitorOf(first) : undefined
  if (monitor === undefined) return 'done'
  const endsAt = turn.now() + limitMs
  for (let latest = first; ; ) {
    const waitMs = Math.min(retryAfterMs(latest) ?? turn.timers.pollMs, turn.timers.retryAfterMaxMs)
    if (turn.now() + waitMs > endsAt) {
      turn.log('a task is still running', { task: monitor, state: text(latest.body.TaskState) ?? 'not told' })
      return 'running'
    }
    await turn.pause(waitMs)
    latest = await turn.send('GET', monitor)
    // A monitor is gone once its result was read, and some services clean up at once.
    if (latest.status === 404 || latest.status === 410) return 'done'
    if (taskIsOver(accepted(latest, `GET ${monitor}`), what)) return 'done'
  }
}

function monitorOf(answer: Answer): string | undefined {
  return pathOf(answer.headers.location ?? text(answer.body.TaskMonitor) ?? text(answer.body['@odata.id']) ?? linkOf(answer.body.Task))
}

function taskIsOver(answer: Answer, what: string): boolean {
  const state = text(answer.body.TaskState)
  if (state === undefined) return answer.status !== 202
  const isFailed = failedStates.includes(state) || (state === 'Completed' && answer.body.TaskStatus === 'Critical')
  if (!isFailed) return state === 'Completed'
  const said = messagesOf(answer.body)
    .map(message => message.text || message.id)
    .filter(Boolean)
    .slice(0, 2)
  throw new Failure({
    kind: 'refused',
    got: `${what} was accepted as a task, which ended as ${state}${said.length > 0 ? `: ${said.join('; ').slice(0, 300)}` : ''}`,
    hint: 'The BMC tried and failed. Its event log may say why.',
  })
}
