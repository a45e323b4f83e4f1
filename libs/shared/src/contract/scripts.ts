// Calls about the scripts that commissioning and tests can run.
import { z } from 'zod'
import { type ScriptEntry, scriptEntry } from '../scripts.ts'
import { declareCall, type Gathered } from './call.ts'
import { type Page, pageOf } from './page.ts'

/** Two partitions may have a script of one name and mean different things by it: those stay apart. */
function joinScripts({ answers }: Gathered<Page<ScriptEntry>>): Page<ScriptEntry> {
  const byContent = new Map<string, ScriptEntry>()
  for (const { answer } of answers)
    for (const item of answer.items) {
      const content = JSON.stringify({ ...item, partitions: [] })
      const known = byContent.get(content)
      if (known) known.partitions.push(...item.partitions)
      else byContent.set(content, { ...item, partitions: [...item.partitions] })
    }
  const items = [...byContent.values()]
  for (const item of items) item.partitions.sort()
  const order = ({ name, partitions }: ScriptEntry) => `${name} ${partitions[0]}`
  return { items: items.sort((a, b) => (order(a) < order(b) ? -1 : 1)), nextCursor: null }
}

export const scripts = {
  list: declareCall({
    summary: 'The scripts that commissioning and tests can run, and where',
    rest: { method: 'GET', path: '/scripts' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: pageOf(scriptEntry),
    spread: { kind: 'gather', merge: joinScripts },
    errors: [],
  }),
}
