// The chain of the audit log: whatever is done to entries that were written, the check finds it.
import { createHash, generateKeyPairSync, sign } from 'node:crypto'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type AuditEntry, ChainCheck, chainedText, noHash, sealedText } from '../src/audit.ts'
import { isSignature, signedBytes } from '../src/signature.ts'

const { privateKey, publicKey } = generateKeyPairSync('ed25519')
const key = publicKey.export({ format: 'der', type: 'spki' }).subarray(-32).toString('hex')
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')
const checks = { sha256, isSigned: (text: string, seal: { signature: string; key: string }) => isSignature('audit log', text, seal) }

const content = fc.record({
  actor: fc.string(),
  call: fc.constantFrom('machines.deploy', 'machines.release'),
  target: fc.string(),
  fields: fc.array(fc.string()),
  outcome: fc.constantFrom('ok', 'locked'),
  via: fc.option(fc.string()),
})

/** Chained as a server chains them: in batches, the last of each signed. */
function logOf(contents: readonly Partial<AuditEntry>[], batch = 3): AuditEntry[] {
  let hash = noHash
  return contents.map((given, index) => {
    const at = new Date(1_790_000_000_000 + index).toISOString()
    const facts = { role: 'user', from: '192.0.2.1', requestId: `r${index}`, result: null }
    const entry = { partition: 'lon1', seq: index + 1, at, endedAt: at, ...facts, ...given } as AuditEntry
    hash = sha256(chainedText(hash, entry))
    const isLast = (index + 1) % batch === 0 || index + 1 === contents.length
    const signature = () => sign(null, signedBytes('audit log', sealedText({ ...entry, hash })), privateKey).toString('base64')
    return { ...entry, hash, seal: isLast ? { signature: signature(), key } : null }
  })
}

async function problemOf(entries: readonly AuditEntry[]): Promise<string | undefined> {
  const check = new ChainCheck(checks)
  for (const entry of entries) await check.add(entry)
  return check.report().problem
}

const logs = fc.array(content, { minLength: 2, maxLength: 12 }).map(contents => logOf(contents))
const place = (log: readonly unknown[], at: number) => at % log.length

test('a log as it was written is right', () =>
  fc.assert(
    fc.asyncProperty(logs, async log => {
      expect(await problemOf(log)).toBeUndefined()
    }),
  ))

test('an entry that says something else is found', () =>
  fc.assert(
    fc.asyncProperty(logs, fc.nat(), fc.constantFrom('actor', 'target', 'outcome', 'from', 'at'), async (log, at, field) => {
      const index = place(log, at)
      const changed = log.map((entry, other) => (other === index ? { ...entry, [field]: `${entry[field]}!` } : entry))
      expect(await problemOf(changed)).toMatch(/is not what was written/)
    }),
  ))

test('an entry taken out, and two that changed places, are found', () =>
  fc.assert(
    fc.asyncProperty(logs, fc.nat(), async (log, at) => {
      const index = place(log.slice(1), at)
      expect(await problemOf(log.toSpliced(index, 1))).toMatch(/missing/)
      const swapped = log.with(index, log[index + 1] as AuditEntry).with(index + 1, log[index] as AuditEntry)
      expect(await problemOf(swapped)).toBeDefined()
    }),
  ))

test('a chain that somebody without the key has computed anew is found', () =>
  fc.assert(
    fc.asyncProperty(fc.array(content, { minLength: 1, maxLength: 6 }), async contents => {
      const honest = logOf(contents, 1)
      const forged = logOf(
        contents.map(each => ({ ...each, actor: `${each.actor} not` })),
        1,
      ).map((entry, index) => ({ ...entry, seal: honest[index]?.seal ?? null }))
      expect(await problemOf(forged)).toMatch(/signature of entry 1 is not right/)
    }),
  ))

test('a log cut off between two signatures is found', async () => {
  const log = logOf([{}, {}, {}, {}, {}, {}].map(() => ({ actor: 'a', call: 'c', target: '', fields: [], outcome: 'ok', via: null })))
  expect(await problemOf(log.slice(0, 5))).toBe('entries 4 to 5 bear no signature: the log ends where no server ended it')
  // Cut at a signature it is a log as it once was: only an earlier export tells.
  expect(await problemOf(log.slice(0, 3))).toBeUndefined()
})

test('a signature made for something else is none here', async () => {
  const [entry] = logOf([{ actor: 'a', call: 'c', target: '', fields: [], outcome: 'ok', via: null }]) as [AuditEntry]
  const signature = sign(null, signedBytes('erasure certificate', sealedText(entry)), privateKey).toString('base64')
  expect(await problemOf([{ ...entry, seal: { signature, key } }])).toBe('the signature of entry 1 is not right')
})
