/** Changing a resource: PATCH with the form of version tag this service takes (facts "ETag"), and its task waited for. */
import { Failure } from '../failure.ts'
import type { Answer, JsonObject } from './answer.ts'
import { text } from './answer.ts'
import { wordsOf } from './meanings.ts'
import { type EtagForm, etagForms } from './memory.ts'
import type { Turn } from './service.ts'
import { finished } from './tasks.ts'

/**
 * Sends the change. On 412 and 428 the resource is read again and the next form of tag tried; the one that passed is remembered for this BMC. Gives
 * the answer of the last try, whatever its status. Throws Failure where a task failed or did not end in time.
 */
export async function change(turn: Turn, path: string, body: JsonObject): Promise<Answer> {
  const remembered = turn.memory.etagForm
  const forms = remembered ? [remembered, ...etagForms.filter(form => form !== remembered)] : etagForms
  const tried = new Set<string | undefined>()
  let last: Answer | undefined
  for (const form of forms) {
    // Just before the change: tags of some services change by themselves.
    const tag = tagOf(await turn.get(path), form)
    // A form this answer has not, or one that comes to the same as one before.
    if (tried.has(tag) || (tag === undefined && form !== 'none')) continue
    tried.add(tag)
    last = await turn.send('PATCH', path, { body, ...(tag !== undefined && { headers: { 'If-Match': tag } }) })
    if (last.status !== 412 && last.status !== 428) {
      turn.memory.etagForm = form
      if ((await finished(turn, last, { what: `the change of ${path}`, limitMs: turn.timers.settingsTaskMs })) === 'running')
        throw unfinished(turn, path)
      return last
    }
    turn.log('the BMC did not take a version tag', { form, got: wordsOf(last) })
  }
  // Forms "none" and "any" are always tried.
  return last as Answer
}

function unfinished(turn: Turn, path: string): Failure {
  return new Failure({
    kind: 'busy',
    outcome: 'unknown',
    got: `the change of ${path} was accepted as a task, which still runs after ${turn.timers.settingsTaskMs / 1000} s`,
    hint: 'The BMC is slow, or waits for other tasks. Read the setting in a minute.',
  })
}

function tagOf(answer: Answer, form: EtagForm): string | undefined {
  const { etag } = answer.headers
  if (form === 'header') return etag
  if (form === 'strong') return etag?.replace(/^W\//, '').replace(/^"+|"+$/g, '"')
  if (form === 'body') return text(answer.body['@odata.etag'])
  return form === 'any' ? '*' : undefined
}
