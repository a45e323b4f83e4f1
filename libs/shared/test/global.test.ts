import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { copyPartLength, documentsOf, fetchCopy, noGeneration, partOf, payloadOf, readPayload } from '../src/global/copy.ts'
import { broughtBack, changed, type Documents, differences, noDocuments, readDocuments } from '../src/global/documents.ts'

const at = '2026-11-27T00:00:00.000Z'
const token = { user: 'alice', role: 'user', sha256: 'a'.repeat(64), createdAt: at, expiresAt: at }

function after(before: Documents, change: Partial<Parameters<typeof changed>[1]>): Documents {
  const outcome = changed(before, { put: [], delete: [], ...change })
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  return outcome.documents
}

describe('a change', () => {
  test('puts and deletes documents together, and the set is checked whole', () => {
    const one = after(noDocuments, {
      put: [
        { kind: 'user', name: 'alice', document: { role: 'operator' } },
        { kind: 'token', name: 't-000000000001', document: token },
      ],
    })
    expect(one.user.alice).toEqual({ displayName: '', role: 'operator', status: 'active' })
    expect(changed(one, { put: [], delete: [{ kind: 'user', name: 'alice' }] })).toEqual({
      problems: [{ field: 'token t-000000000001', message: 'its user alice does not exist; delete the token with the user' }],
    })
    const two = after(one, {
      delete: [
        { kind: 'user', name: 'alice' },
        { kind: 'token', name: 't-000000000001' },
      ],
    })
    expect(two).toEqual(noDocuments)
    expect(one.user.alice).toBeDefined() // the set before is as it was
  })

  test('that is wrong is refused with every field that is', () => {
    const outcome = changed(noDocuments, {
      put: [
        { kind: 'user', name: 'Alice', document: { role: 'king', colour: 'red' } },
        { kind: 'token', name: 't-1', document: {} },
      ],
      delete: [{ kind: 'user', name: 'nobody' }],
    })
    const fields = 'problems' in outcome ? outcome.problems.map(({ field }) => field) : []
    expect(fields).toEqual(
      expect.arrayContaining([
        'delete.0',
        'put.0.name',
        'put.0.document.role',
        'put.0.document.colour',
        'put.1.name',
        'put.1.document.sha256',
      ]),
    )
  })

  test('a user may be called like a member that every object has', () => {
    const documents = after(noDocuments, { put: [{ kind: 'user', name: 'constructor', document: { role: 'user' } }] })
    expect(Object.keys(documents.user)).toEqual(['constructor'])
    expect(changed(documents, { put: [], delete: [{ kind: 'user', name: 'valueof' }] })).toHaveProperty('problems')
    expect(differences(noDocuments, readDocuments(JSON.parse(JSON.stringify(documents))).documents)).toMatchObject([{ what: 'added' }])
  })

  test('of a sealed field shows that it is another, and neither what it is nor what it was', () => {
    const webhook = (secret: string) => ({
      put: [{ kind: 'webhook' as const, name: 'audit', document: { url: 'https://a.example/x', secret } }],
    })
    const one = after(noDocuments, webhook('sealed:AAAA'))
    const two = after(one, webhook('sealed:BBBB'))
    expect(differences(noDocuments, one)).toMatchObject([{ what: 'added', before: null, after: { secret: 'sealed' } }])
    expect(differences(one, two)).toMatchObject([{ what: 'changed', before: { secret: 'sealed' }, after: { secret: 'sealed anew' } }])
    expect(differences(two, noDocuments)).toMatchObject([{ what: 'removed', before: { secret: 'sealed' }, after: null }])
    const content = { generation: 1, changedAt: at, changedBy: 'root', note: '', documents: two }
    expect(documentsOf(content, { kind: 'webhook' }).documents).toEqual([
      { kind: 'webhook', name: 'audit', document: { url: 'https://a.example/x', events: ['*'], status: 'active', description: '' } },
    ])
  })

  test('takes a webhook with an address that can be called, and never a secret as it is', () => {
    const problemsOf = (document: object, name = 'audit') => {
      const outcome = changed(noDocuments, { put: [{ kind: 'webhook', name, document: { ...document } }], delete: [] })
      return 'problems' in outcome ? outcome.problems.map(({ field }) => field.replace('put.0.', '')) : []
    }
    const right = {
      url: 'http://10.0.0.7:8080/muster',
      events: ['machine.moved', 'power.*', 'credentials.rotation-ended'],
      secret: 'sealed:AAAA',
    }
    expect(problemsOf(right)).toEqual([])
    expect(problemsOf({ ...right, secret: `whsec_${'A'.repeat(32)}` })).toEqual(['document.secret'])
    expect(problemsOf({ ...right, secret: undefined })).toEqual(['document.secret'])
    for (const url of ['ftp://a.example', 'https://alice:pw@a.example/', 'https://a.example/#x', 'a.example'])
      expect(problemsOf({ ...right, url }), url).toEqual(['document.url'])
    expect(problemsOf({ ...right, events: [] })).toEqual(['document.events'])
    expect(problemsOf({ ...right, events: ['machine*'] })).toEqual(['document.events.0'])
    expect(problemsOf(right, 'a.b')).toEqual(['name'])
  })

  test('the difference between two sets, put back, makes them equal', () => {
    const name = fc.constantFrom('a', 'b', 'c', 'd')
    const user = fc.record({ displayName: fc.string({ maxLength: 5 }), role: fc.constantFrom('user' as const, 'admin' as const) })
    const documents = fc
      .dictionary(name, user)
      .map(users =>
        after(noDocuments, { put: Object.entries(users).map(([key, document]) => ({ kind: 'user' as const, name: key, document })) }),
      )
    fc.assert(
      fc.property(documents, documents, (before, wanted) => {
        const found = differences(before, wanted)
        const put = found.flatMap(({ kind, name: of, after: document }) => (document ? [{ kind, name: of, document }] : []))
        const gone = found.flatMap(({ kind, name: of, after: document }) => (document ? [] : [{ kind, name: of }]))
        expect(differences(after(before, { put, delete: gone }), wanted)).toEqual([])
        expect(differences(wanted, wanted)).toEqual([])
      }),
    )
  })
})

describe('a way to log in', () => {
  const hash = (salt: string) => `$argon2id$v=19$m=19456,t=2,p=1$${salt.padEnd(22, 'A')}$${'B'.repeat(43)}`
  const user = (name: string, document: Record<string, unknown>) => ({
    put: [{ kind: 'user' as const, name, document: { role: 'user', ...document } }],
  })
  const provider = (name: string, document: Record<string, unknown> = {}) => ({
    put: [{ kind: 'oidc' as const, name, document: { issuer: 'https://id.example.org', clientId: 'muster', ...document } }],
  })
  const problems = (before: Documents, change: Partial<Parameters<typeof changed>[1]>) => {
    const outcome = changed(before, { put: [], delete: [], ...change })
    return 'problems' in outcome ? outcome.problems.map(({ field, message }) => `${field}: ${message}`) : []
  }

  test('is not shown where it is a password; what is shown means it, and nothing else does', () => {
    const one = after(noDocuments, user('alice', { password: hash('salt1') }))
    const [shown] = documentsOf({ generation: 1, changedAt: at, changedBy: '', note: '', documents: one }, {}).documents
    expect(shown?.document.password).toBe('hidden:salt1AAA')
    expect(JSON.stringify(differences(noDocuments, one))).not.toContain('BBBB')
    expect(differences(one, after(one, user('alice', shown?.document ?? {})))).toEqual([])
    expect(problems(one, user('bob', { password: 'hidden:salt1AAA' }))).toMatchObject([expect.stringContaining('put.0.document.password')])
    expect(problems(one, user('alice', { password: 'hidden:salt2AAA' }))).toHaveLength(1)
    const weaker = hash('salt').replace('t=2', 't=1')
    expect(problems(one, user('alice', { password: weaker }))).toHaveLength(1)
    expect(differences(one, after(one, user('alice', { password: hash('salt2') })))).toMatchObject([
      { what: 'changed', before: { password: 'hidden:salt1AAA' }, after: { password: 'hidden:salt2AAA' } },
    ])
  })

  test('that changes gives the sessions a new mark; nobody brings an old one back', () => {
    const one = after(noDocuments, user('alice', { password: hash('salt1') }))
    const mark = (documents: Documents) => documents.user.alice?.sessions
    expect(mark(one)).toMatch(/^[0-9a-z]{12}$/)
    const promoted = after(one, user('alice', { role: 'admin', password: hash('salt1') }))
    expect(mark(promoted)).toBe(mark(one))
    const two = after(one, user('alice', { password: hash('salt2') }))
    const ended = after(two, user('alice', { password: hash('salt2'), sessions: 'ended' }))
    const restored = after(ended, user('alice', { password: hash('salt1'), sessions: mark(one) as string }))
    const reverted = broughtBack(ended, one)
    const again = after(after(one, { delete: [{ kind: 'user', name: 'alice' }] }), user('alice', { password: hash('salt1') }))
    const marks = [one, two, ended, restored, reverted, again].map(mark)
    expect(new Set(marks).size).toBe(marks.length)
    expect(broughtBack(promoted, one)).toEqual(one)
  })

  test('at a provider: one person is one user, and one provider alone names people that have no document', () => {
    const alice = { oidc: { provider: 'corp', subject: '1' } }
    expect(problems(noDocuments, user('alice', alice))).toEqual(['user alice: its provider corp does not exist'])
    const one = after(after(noDocuments, provider('corp')), user('alice', alice))
    expect(problems(one, user('bob', alice))).toEqual(['user bob: corp/1 is the user alice already'])
    expect(problems(one, { delete: [{ kind: 'oidc', name: 'corp' }] })).toEqual(['user alice: its provider corp does not exist'])
    expect(differences(one, after(one, user('alice', { oidc: { provider: 'corp', subject: '2' } })))).toMatchObject([{ what: 'changed' }])
    const roles = { roles: { ops: 'operator' } }
    expect(problems(one, provider('corp', roles))).toEqual([expect.stringContaining('needs nameClaim')])
    const two = after(one, provider('corp', { ...roles, nameClaim: 'email' }))
    expect(problems(two, provider('partner', { ...roles, nameClaim: 'email' }))).toEqual([expect.stringContaining('only one may')])
    expect(problems(two, provider('partner'))).toEqual([])
  })

  test.each([
    'http://id.example.org',
    'ftp://id.example.org',
    'https://id.example.org?x=1',
    'https://me:pw@id.example.org',
    'id.example.org',
    'http://127.0.0.1.evil.example',
  ])('at %s is none: anybody on the way could be the provider', issuer => {
    expect(problems(noDocuments, provider('corp', { issuer }))).toHaveLength(1)
  })
})

describe('a copy', () => {
  const content = { generation: 7, changedAt: at, changedBy: 'alice', note: '', documents: noDocuments }

  test('reads back as it was written; what a newer release wrote beside it is left out and named', () => {
    expect(readPayload(payloadOf(content))).toEqual({ content, skipped: [], beyond: [] })
    const newer = {
      user: { alice: { role: 'user', displayName: '', status: 'active', shoeSize: 43 }, bob: { role: 'emperor' } },
      planet: { mars: {} },
    }
    const { documents, skipped, beyond } = readDocuments(newer)
    expect(documents.user).toEqual({ alice: { role: 'user', displayName: '', status: 'active' } })
    expect(skipped).toEqual(['user bob'])
    expect(beyond).toEqual(['documents of kind planet', 'fields of user alice'])
  })

  test('a document that is not there is not found; without a name all are answered', () => {
    expect(documentsOf(undefined, {})).toMatchObject({ generation: noGeneration, documents: [] })
    expect(() => documentsOf(content, { kind: 'user', name: 'alice' })).toThrow('has no user alice')
  })

  test('of any size arrives whole, also when it changes on its way', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 3 * copyPartLength }), fc.integer({ min: 0, max: 4 }), async (length, changesAfter) => {
        const made = (generation: number) => ({
          generation,
          text: JSON.stringify({ payload: 'x'.repeat(length), signature: String(generation), key: '0'.repeat(64) }),
        })
        let [current, asked] = [made(1), 0]
        const copy = await fetchCopy(0, async question => {
          if (asked++ === changesAfter) current = made(2)
          return partOf(current, question)
        })
        expect(copy?.payload).toHaveLength(length)
        expect(await fetchCopy(2, async question => partOf(current, question))).toBeUndefined()
      }),
      { numRuns: 30 },
    )
  })
})
