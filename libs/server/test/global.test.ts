import { noDocuments, type TokenDocument } from '@muster/shared/global/documents'
import { describe, expect, test } from 'vitest'
import { tokensOfAll, tokensOfDocuments } from '../src/global/people.ts'
import { createSigner, createVerifier } from '../src/global/signature.ts'
import { newToken } from '../src/tokens.ts'

describe('a signature under the configuration', () => {
  // RFC 8032, section 7.1, test 1.
  const seed = '9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60'
  const publicKey = 'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a'

  test('is made by the key whose public half is told', () => {
    expect(createSigner(seed).publicKey).toBe(publicKey)
    expect(() => createVerifier([publicKey]).check(createSigner(seed).sign('{}'))).not.toThrow()
  })

  test('of another key, or under another text, is refused, and the refusal says which it is', () => {
    const copy = createSigner(seed).sign('{"generation":1}')
    expect(() => createVerifier([]).check(copy)).toThrow('not trusted here')
    expect(() => createVerifier([publicKey]).check({ ...copy, payload: '{"generation":2}' })).toThrow('not right')
    const forged = createSigner('11'.repeat(32)).sign('{"generation":1}')
    expect(() => createVerifier([publicKey]).check({ ...forged, key: publicKey })).toThrow('not right')
  })
})

describe('the tokens of a configuration', () => {
  const { token, sha256 } = newToken()
  const now = Date.parse('2026-11-27T12:00:00Z')
  const document = (change: Partial<TokenDocument> = {}): TokenDocument => ({
    user: 'alice',
    role: 'operator',
    sha256,
    description: '',
    createdAt: '2026-11-01T00:00:00.000Z',
    expiresAt: '2026-12-01T00:00:00.000Z',
    ...change,
  })
  const find = (user: object, change: Partial<TokenDocument> = {}) =>
    tokensOfDocuments(
      {
        ...noDocuments,
        user: { alice: { displayName: '', role: 'admin', status: 'active', ...user } },
        token: { 't-1': document(change) },
      },
      () => now,
    ).find(token)

  test('let in whom they name, with the weaker of two roles', () => {
    expect(find({})).toEqual({ name: 'alice', role: 'operator' })
    expect(find({ role: 'user' })).toEqual({ name: 'alice', role: 'user' })
    expect(find({ role: 'read-only' }, { role: 'admin' })).toEqual({ name: 'alice', role: 'read-only' })
  })

  test('let nobody in once expired, of a disabled user, or not there', () => {
    expect(find({}, { expiresAt: '2026-11-27T12:00:00.000Z' })).toBeUndefined()
    expect(find({ status: 'disabled' })).toBeUndefined()
    expect(tokensOfDocuments(noDocuments).find(token)).toBeUndefined()
  })

  test('stand beside others, and the first that knows a token decides', () => {
    const first = { find: (text: string) => (text === 'both' ? { name: 'first', role: 'user' as const } : undefined) }
    const second = { find: () => ({ name: 'second', role: 'admin' as const }) }
    expect(tokensOfAll([first, second]).find('both')?.name).toBe('first')
    expect(tokensOfAll([first, second]).find('other')?.name).toBe('second')
    expect(tokensOfAll([]).find('both')).toBeUndefined()
  })
})
