import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { limitsFor } from '../src/allocation/quotas.ts'
import { changed, type Documents, noDocuments } from '../src/global/documents.ts'

const outcomeOf = (quotas: Record<string, object>) =>
  changed(noDocuments, {
    put: [
      ...['alice', 'bob', 'carol'].map(name => ({ kind: 'user' as const, name, document: { role: 'user' } })),
      { kind: 'group', name: 'lab', document: { members: ['alice', 'bob'] } },
      ...Object.entries(quotas).map(([name, document]) => ({ kind: 'quota' as const, name, document: { ...document } })),
    ],
    delete: [],
  })
function documentsOf(quotas: Record<string, object>): Documents {
  const outcome = outcomeOf(quotas)
  if ('problems' in outcome) throw new Error(JSON.stringify(outcome.problems))
  return outcome.documents
}

describe('quotas', () => {
  test('bind a user by its own, by its groups, and by the one for everybody where it has none of its own', () => {
    const documents = documentsOf({
      all: { machines: 2 },
      'all-gpu': { machines: 1, pool: 'gpu' },
      alice: { user: 'alice', machines: 9 },
      lab: { group: 'lab', machines: 10 },
    })
    const names = (owner: string) => limitsFor(documents, owner).map(({ quota }) => quota)
    expect(names('alice')).toEqual(['all-gpu', 'alice', 'lab'])
    expect(names('bob')).toEqual(['all', 'all-gpu', 'lab'])
    expect(names('somebody of a provider')).toEqual(['all', 'all-gpu'])
    expect(limitsFor(documents, 'bob')).toContainEqual({ quota: 'lab', most: 10, whose: 'the group lab', owners: ['alice', 'bob'] })
    expect(limitsFor(documents, 'bob')).toContainEqual({ quota: 'all-gpu', most: 1, whose: 'bob', owners: ['bob'], pool: 'gpu' })
  })

  test('are for a user or a group that exists, and not for both', () => {
    const problemsOf = (document: object) => {
      const outcome = outcomeOf({ one: document })
      return 'problems' in outcome ? outcome.problems.map(({ message }) => message) : []
    }
    expect(problemsOf({ machines: 1, user: 'dora' })).toEqual(['its user dora does not exist; delete the quota with the user'])
    expect(problemsOf({ machines: 1, group: 'web' })).toEqual(['its group web does not exist; delete the quota with the group'])
    expect(problemsOf({ machines: 1, user: 'bob', group: 'lab' })).toEqual(['is for a user or for a group, not for both'])
    expect(problemsOf({ machines: -1 })).toHaveLength(1)
  })

  test('count the owner among those whose machines they count, and nobody twice, whatever they are', () => {
    const quota = fc.record(
      { machines: fc.nat(5), pool: fc.constantFrom('a', 'b'), to: fc.constantFrom({ user: 'alice' }, { user: 'bob' }, { group: 'lab' }) },
      { requiredKeys: ['machines'] },
    )
    fc.assert(
      fc.property(fc.array(quota, { maxLength: 6 }), fc.constantFrom('alice', 'bob', 'carol', 'zoe'), (quotas, owner) => {
        const documents = documentsOf(Object.fromEntries(quotas.map(({ to, ...rest }, index) => [`q${index}`, { ...rest, ...to }])))
        const limits = limitsFor(documents, owner)
        for (const { owners } of limits) {
          expect(owners).toContain(owner)
          expect(new Set(owners).size).toBe(owners.length)
        }
        // Whoever is named, or for whom a quota for everybody is, is bound by something for that pool.
        for (const { pool, to } of quotas)
          if (to === undefined || ('user' in to && to.user === owner)) expect(limits.some(limit => limit.pool === pool)).toBe(true)
      }),
    )
  })
})
