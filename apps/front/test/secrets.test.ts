// Secrets in documents: sealed at the front, kept where nothing is said of them, made where there is none.
import { createSharedSealer, openText } from '@muster/server/global/sealed'
import type { Refusal } from '@muster/shared/errors'
import { changed, type Documents, noDocuments, shownDocument } from '@muster/shared/global/documents'
import { describe, expect, test } from 'vitest'
import { sealedChange } from '../src/global/secrets.ts'

const sealer = createSharedSealer(Buffer.alloc(32, 1))
const url = 'https://a.example/hook'
const plain = `whsec_${Buffer.alloc(24, 'x').toString('base64')}`
const place = { kind: 'webhook', name: 'audit', field: 'secret' } as const
const putting = (document: Record<string, unknown>, name = 'audit') => ({
  put: [{ kind: 'webhook' as const, name, document: { url, ...document } }],
  delete: [],
})

function written(before: Documents, change: Parameters<typeof sealedChange>[0], key = sealer): { documents: Documents; made: string[] } {
  const { change: sealed, made } = sealedChange(change, before, key)
  const outcome = changed(before, sealed)
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  return { documents: outcome.documents, made: made.map(({ secret }) => secret) }
}
const secretIn = (documents: Documents, name = 'audit') =>
  openText(sealer, { ...place, name }, documents.webhook[name]?.secret as string).reveal()
const refusalOf = (act: () => unknown) => {
  try {
    act()
  } catch (error) {
    return error as Refusal
  }
  throw new Error('it was not refused')
}

describe('the secret of a webhook', () => {
  test('that is given is sealed, for this document only, and the same again is no change', () => {
    const { documents, made } = written(noDocuments, putting({ secret: plain }))
    expect(made).toEqual([])
    expect(JSON.stringify(documents)).not.toContain(plain.slice(6))
    expect(secretIn(documents)).toBe(plain)
    expect(() => openText(sealer, { ...place, name: 'other' }, documents.webhook.audit?.secret as string)).toThrow('does not open')
    expect(written(documents, putting({ secret: plain })).documents).toEqual(documents)
  })

  test('that is not given is kept, and made where there is none to keep', () => {
    const first = written(noDocuments, putting({}))
    expect(first.made).toEqual([secretIn(first.documents)])
    expect(first.made[0]).toMatch(/^whsec_/)
    const paused = written(first.documents, putting({ status: 'paused' }))
    expect(paused.made).toEqual([])
    expect(secretIn(paused.documents)).toBe(first.made[0])
    const anew = written(first.documents, { ...putting({}), delete: [{ kind: 'webhook', name: 'audit' }] })
    expect(anew.made).toHaveLength(1)
    expect(anew.made).not.toEqual(first.made)
  })

  test('is not taken by a front without the key, which says what is missing; what needs no sealing it takes', () => {
    const refusal = refusalOf(() => sealedChange(putting({}), noDocuments, undefined))
    expect(refusal).toMatchObject({ code: 'not-ready', message: expect.stringContaining('MUSTER_SHARED_KEY') })
    expect(refusal.message).not.toContain('whsec_')
    const { documents } = written(noDocuments, putting({}))
    const { change } = sealedChange(putting({ status: 'paused' }), documents, undefined)
    expect(changed(documents, change)).toMatchObject({ documents: { webhook: { audit: { status: 'paused' } } } })
  })

  test('that is replaced signs on for a day beside the new one, or until the time that is given', () => {
    const other = `whsec_${Buffer.alloc(24, 'y').toString('base64')}`
    const { documents } = written(noDocuments, putting({ secret: plain }))
    const before = (of: Documents) =>
      openText(sealer, { ...place, field: 'secretBefore' }, of.webhook.audit?.secretBefore as string).reveal()
    const anew = written(documents, putting({ secret: other })).documents
    expect([secretIn(anew), before(anew)]).toEqual([other, plain])
    const until = anew.webhook.audit?.secretBeforeUntil as string
    expect(Math.abs(Date.parse(until) - Date.now() - 24 * 3_600_000)).toBeLessThan(60_000)
    // Another change keeps both; what is shown is put back as it was shown.
    const paused = written(anew, putting({ status: 'paused' })).documents
    expect([secretIn(paused), before(paused), paused.webhook.audit?.secretBeforeUntil]).toEqual([other, plain, until])
    expect(shownDocument('webhook', anew.webhook.audit as object)).not.toHaveProperty('secretBefore')
    const now = new Date().toISOString()
    expect(written(anew, putting({ secretBeforeUntil: now })).documents.webhook.audit?.secretBeforeUntil).toBe(now)
    expect(written(anew, putting({ secret: plain, secretBeforeUntil: now })).documents.webhook.audit?.secretBeforeUntil).toBe(now)
    expect(refusalOf(() => sealedChange(putting({ secretBefore: plain }), documents, sealer)).message).toMatch(
      /secretBefore: is kept by the front/,
    )
  })

  test('sealed with a key that is gone is replaced by one that is given', () => {
    const old = createSharedSealer(Buffer.alloc(32, 2))
    const { documents } = written(noDocuments, putting({ secret: plain }), old)
    expect(secretIn(written(documents, putting({ secret: plain })).documents)).toBe(plain)
  })

  test('of another form is refused by its field, without being repeated', () => {
    for (const secret of ['hunter2', 'whsec_c2hvcnQ=', 7, plain.replace('whsec_', 'sealed:')]) {
      const refusal = refusalOf(() => sealedChange(putting({ secret }), noDocuments, sealer))
      expect(refusal).toMatchObject({ code: 'invalid-input', facts: { errors: [{ field: 'put.0.document.secret' }] } })
      expect(refusal.message).not.toContain(String(secret))
    }
  })
})
