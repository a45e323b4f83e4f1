// Whether a generation follows from another: for histories of any length, those that part somewhere, and those that an older release wrote in.
import { type CopyContent, type Lineage, payloadOf, readPayload } from '@muster/shared/global/copy'
import { noDocuments } from '@muster/shared/global/documents'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { digestOf, follows, lineageAfter, lineageAnew, type Told } from '../src/global/lineage.ts'

const written = (last: Told | undefined, note: string, lineage?: (generation: number) => Lineage | undefined): Told => {
  const generation = (last?.content.generation ?? 0) + 1
  const made = lineage ? lineage(generation) : lineageAfter(last, generation)
  const head: CopyContent = { generation, changedAt: '2026-01-01T00:00:00.000Z', changedBy: 'root', note, documents: noDocuments }
  const payload = payloadOf(made ? { ...head, lineage: made } : head)
  return { payload, content: readPayload(payload).content }
}

function historyOf(notes: readonly string[], behind?: Told): Told[] {
  const history: Told[] = []
  for (const note of notes) history.push(written(history.at(-1) ?? behind, note))
  return history
}
const between = (history: readonly Told[], from: number, to: number) => history.slice(from + 1, to).map(({ payload }) => digestOf(payload))

test('every later generation follows from every earlier one of its history, and from none of another that parted from it before', () => {
  const notes = fc.array(fc.string({ maxLength: 3 }), { minLength: 2, maxLength: 8 })
  fc.assert(
    fc.property(notes, fc.nat(), fc.nat(), (texts, one, other) => {
      const history = historyOf(texts)
      const from = one % (history.length - 1)
      const to = from + 1 + (other % (history.length - 1 - from))
      const newer = history[to] as Told
      expect(follows(newer.content, between(history, from, to), history[from] as Told)).toBe(true)
      const parted = written(from === 0 ? undefined : history[from - 1], 'written in a database that was set back')
      expect(follows(newer.content, between(history, from, to), parted)).toBe(false)
      if (to - from > 1) expect(follows(newer.content, [], history[from] as Told)).toBe(false)
    }),
  )
})

test('what a front of an older release writes is taken by its number; the history begins anew behind it, and is held to from there', () => {
  const [first, second] = historyOf(['a', 'b']) as [Told, Told]
  const old = written(second, 'by an older release', () => undefined)
  const next = written(old, 'c')
  const last = written(next, 'd')
  expect(next.content.lineage?.since).toBe(4)
  for (const newer of [old, next]) for (const held of [first, second]) expect(follows(newer.content, [], held)).toBe(true)
  expect(follows(last.content, [], next)).toBe(true)
  expect(follows(last.content, [], written(old, 'something else'))).toBe(false)
  // A database set back to what the older release wrote.
  const stale = written(
    written(first, 'by an older release', () => undefined),
    'c',
  )
  expect(follows(historyOf(['d', 'e'], stale)[1]?.content as CopyContent, [], last)).toBe(false)
})

test('what an admin decides to be true follows from everything older, whatever its history, and is the beginning of one', () => {
  const [, held] = historyOf(['a', 'b']) as [Told, Told]
  const stranger = historyOf(['x', 'y', 'z'])[2] as Told
  const decided = written(stranger, 'true', generation => lineageAnew(stranger, generation))
  expect(follows(decided.content, [], held)).toBe(true)
  expect(follows(written(decided, 'next').content, [], held)).toBe(true)
  expect(follows(written(written(decided, 'next'), 'last').content, [], written(stranger, 'not decided'))).toBe(false)
})
