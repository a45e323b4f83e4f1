// Whom the global configuration lets in: its tokens, for as long as they and their users stand.
import { timingSafeEqual } from 'node:crypto'
import type { Documents } from '@muster/shared/global/documents'
import { grantOfUser } from '@muster/shared/global/grants'
import { hashToken, type TokenOwner, type Tokens } from '../tokens.ts'

interface Known {
  readonly hash: Buffer
  readonly owner: TokenOwner
  readonly expiresAt: number
}

/** The tokens of a set of documents. A token can do what both its own role and its user's allow; one that has expired belongs to nobody. */
export function tokensOfDocuments(documents: Documents, now: () => number = Date.now): Tokens {
  const byHash = new Map<string, Known>()
  for (const { user: name, role, pools, sha256, expiresAt } of Object.values(documents.token)) {
    const grant = grantOfUser(documents, name, role)
    if (!grant) continue
    const granted = within(grant.pools, pools)
    const owner: TokenOwner = { name, role: grant.role, ...(granted && { pools: granted }) }
    byHash.set(sha256, { hash: Buffer.from(sha256, 'hex'), owner, expiresAt: Date.parse(expiresAt) })
  }
  return {
    // By hash, as the tokens of a file are: see tokensOf.
    find: token => {
      const hex = hashToken(token)
      const known = byHash.get(hex)
      if (!known || known.expiresAt <= now()) return undefined
      return timingSafeEqual(known.hash, Buffer.from(hex, 'hex')) ? known.owner : undefined
    },
  }
}

/** The pools of both, where either is limited. */
function within(one: readonly string[] | undefined, other: readonly string[] | undefined): readonly string[] | undefined {
  if (one === undefined || other === undefined) return one ?? other
  return one.filter(pool => other.includes(pool))
}

/** Tokens of several places; the first that knows one decides. */
export function tokensOfAll(places: readonly Tokens[]): Tokens {
  return {
    find: token => {
      for (const place of places) {
        const owner = place.find(token)
        if (owner) return owner
      }
      return undefined
    },
    ended: token => {
      for (const place of places) {
        const why = place.ended?.(token)
        if (why !== undefined) return why
      }
      return undefined
    },
  }
}
