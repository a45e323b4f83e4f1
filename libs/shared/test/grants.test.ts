import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { mayAct } from '../src/contract/call.ts'
import { changed, type Documents, noDocuments } from '../src/global/documents.ts'
import { type Grant, grantOfClaim, grantOfUser, widest } from '../src/global/grants.ts'

const roles = ['read-only', 'user', 'operator', 'admin'] as const
const allPools = ['lab', 'prod', 'web']
const role = fc.constantFrom(...roles)
const grant: fc.Arbitrary<Grant> = fc.record(
  { role, pools: fc.uniqueArray(fc.constantFrom(...allPools), { maxLength: 3 }) },
  { requiredKeys: ['role'] },
)
/** Every pair of a role and a pool that a grant gives, weaker roles included; `(other)` is a pool that nobody named. */
const pairs = ({ role: has, pools }: Grant) =>
  roles.filter(each => mayAct(has, each)).flatMap(each => (pools ?? [...allPools, '(other)']).map(pool => `${each} ${pool}`))

describe('the widest of grants', () => {
  test('has the strongest role, in every pool where a grant gives it, and nothing that no grant gives', () => {
    fc.assert(
      fc.property(fc.array(grant, { minLength: 1, maxLength: 6 }), grants => {
        const found = widest(grants) as Grant
        const given = new Set(grants.flatMap(pairs))
        const strongest = roles.findLast(each => grants.some(one => one.role === each)) as Grant['role']
        expect(found.role).toBe(strongest)
        for (const pair of pairs(found)) expect(given).toContain(pair)
        for (const each of grants.filter(one => one.role === strongest))
          for (const pair of pairs(each)) expect(pairs(found)).toContain(pair)
      }),
    )
  })

  test('does not depend on their order, nor on saying one twice', () => {
    fc.assert(
      fc.property(fc.array(grant, { minLength: 1, maxLength: 6 }), grants => {
        const sorted = (found: Grant | undefined) => found && pairs(found).sort()
        expect(sorted(widest(grants.toReversed()))).toEqual(sorted(widest(grants)))
        expect(widest([...grants, ...grants])).toEqual(widest(grants))
      }),
    )
  })

  test('is never more than what is asked for at most; the stronger grants give that role too', () => {
    fc.assert(
      fc.property(fc.array(grant, { minLength: 1, maxLength: 6 }), role, (grants, atMost) => {
        const found = widest(grants, atMost) as Grant
        expect(mayAct(atMost, found.role)).toBe(true)
        const able = grants.filter(one => mayAct(one.role, found.role))
        const pools = (found.pools ?? [...allPools, '(other)']).toSorted()
        const wanted = able.some(one => one.pools === undefined) ? [...allPools, '(other)'] : able.flatMap(one => one.pools ?? [])
        expect(pools).toEqual([...new Set(wanted)].sort())
      }),
    )
  })

  test('of none is none', () => {
    expect(widest([])).toBeUndefined()
    expect(widest([{ pools: ['lab'] }])).toBeUndefined()
  })
})

type Put = Parameters<typeof changed>[1]['put']
const outcomeOf = (put: Put, before: Documents = noDocuments) => changed(before, { put, delete: [] })
const documentsOf = (put: Put): Documents => {
  const outcome = outcomeOf(put)
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  return outcome.documents
}
const problemsOf = (put: Put) => {
  const outcome = outcomeOf(put)
  return 'problems' in outcome ? outcome.problems.map(({ field, message }) => `${field}: ${message}`) : []
}
const alice = { kind: 'user' as const, name: 'alice', document: { role: 'read-only' } }
const lab = (document: object) => ({ kind: 'group' as const, name: 'lab', document: { ...document } })

describe('a group', () => {
  test('gives its members its role in its pools, and others nothing', () => {
    const documents = documentsOf([
      alice,
      { kind: 'user', name: 'bob', document: { role: 'user', pools: ['web'] } },
      lab({ members: ['alice', 'bob'], role: 'operator', pools: ['lab'] }),
      { kind: 'group', name: 'everybody', document: { members: ['bob'] } },
    ])
    expect(grantOfUser(documents, 'alice')).toEqual({ role: 'operator', pools: ['lab'] })
    expect(grantOfUser(documents, 'bob')).toEqual({ role: 'operator', pools: ['lab'] })
    // With a token for no more than reading, she reads everywhere, as her own grant says.
    expect(grantOfUser(documents, 'alice', 'read-only')).toEqual({ role: 'read-only' })
    expect(grantOfUser(documents, 'bob', 'user')).toEqual({ role: 'user', pools: ['web', 'lab'] })
    expect(grantOfUser(documents, 'carol')).toBeUndefined()
    const disabled = documentsOf([
      { ...alice, document: { role: 'admin', status: 'disabled' } },
      lab({ members: ['alice'], role: 'admin' }),
    ])
    expect(grantOfUser(disabled, 'alice')).toBeUndefined()
  })

  test('names users that exist, each once, and pools only with a role', () => {
    expect(problemsOf([alice, lab({ members: ['alice', 'bob', 'alice'], pools: ['lab'] })])).toEqual([
      'group lab: its member bob does not exist; take a user out of its groups before it goes',
      'group lab: names alice twice',
      'group lab: has pools but no role, so they mean nothing',
    ])
    const one = documentsOf([alice, lab({ members: ['alice'] })])
    expect(changed(one, { put: [], delete: [{ kind: 'user', name: 'alice' }] })).toHaveProperty('problems')
  })

  test('of a provider may stand for one of the configuration, whose role and pools it gives then', () => {
    const provider = (document: object) => ({
      kind: 'oidc' as const,
      name: 'corp',
      document: { issuer: 'https://id.example.org', clientId: 'muster', nameClaim: 'preferred_username', ...document },
    })
    const documents = documentsOf([
      lab({ role: 'operator', pools: ['lab'] }),
      provider({ roles: { staff: 'read-only', 'lab-people': 'read-only' }, groups: { 'lab-people': 'lab' } }),
    ])
    expect(grantOfClaim(documents, 'corp', 'staff')).toEqual({ role: 'read-only' })
    expect(grantOfClaim(documents, 'corp', 'lab-people')).toEqual({ role: 'operator', pools: ['lab'] })
    expect(grantOfClaim(documents, 'corp', 'constructor')).toBeUndefined()
    expect(problemsOf([provider({ groups: { a: 'nowhere' } })])).toEqual(['oidc corp: its group nowhere does not exist'])
  })
})
