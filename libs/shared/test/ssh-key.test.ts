import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { joinedKeys, sshKeyProblem, sshPublicKey } from '../src/ssh-key.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'muster-ssh-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const hasKeygen = spawnSync('ssh-keygen', ['-?']).error === undefined

function generated(type: string, bits: number): { line: string; secret: string } {
  const file = path.join(folder, `${type}-${bits}`)
  const done = spawnSync('ssh-keygen', ['-q', '-t', type, '-b', String(bits), '-N', '', '-C', 'alice@laptop', '-f', file])
  if (done.status !== 0) throw new Error(String(done.stderr))
  return { line: readFileSync(`${file}.pub`, 'utf8').trim(), secret: readFileSync(file, 'utf8') }
}

// From RFC 8709's authors' side: the public key of 32 bytes 0x01.
const field = (bytes: Buffer) => Buffer.concat([Buffer.from([0, 0, 0, bytes.length]), bytes])
const ed25519 = `ssh-ed25519 ${Buffer.concat([field(Buffer.from('ssh-ed25519')), field(Buffer.alloc(32, 1))]).toString('base64')}`

describe('a public key', () => {
  test.skipIf(!hasKeygen)('as ssh-keygen makes it is taken, of every kind; a private one and a short RSA one are not', () => {
    for (const [type, bits] of [
      ['ed25519', 256],
      ['ecdsa', 256],
      ['ecdsa', 384],
      ['ecdsa', 521],
      ['rsa', 2048],
    ] as const) {
      const { line, secret } = generated(type, bits)
      expect(sshKeyProblem(line), `${type} ${bits}`).toBeUndefined()
      const refused = sshPublicKey.safeParse(secret)
      expect(refused.error?.issues[0]?.message).toContain('is a private key')
      expect(JSON.stringify(refused.error)).not.toContain(secret.split('\n')[1])
    }
    expect(sshKeyProblem(generated('rsa', 1024).line)).toBe('is an RSA key of 1024 bits; at least 2048 are needed')
  })

  test('with options in front, of a type that is gone, damaged, or on two lines is refused', () => {
    expect(sshPublicKey.parse(`  ${ed25519} alice@laptop\n`)).toBe(`${ed25519} alice@laptop`)
    expect(sshKeyProblem(`command="reboot" ${ed25519}`)).toContain('no options in front')
    expect(sshKeyProblem('ssh-dss AAAA')).toContain('DSA')
    expect(sshKeyProblem(ed25519.replace('ssh-ed25519 ', 'ssh-rsa '))).toContain('damaged')
    expect(sshKeyProblem(ed25519.slice(0, -4))).toContain('damaged')
    expect(sshKeyProblem('constructor AAAA')).toContain('must begin with its type')
    expect(sshPublicKey.safeParse(`${ed25519}\n${ed25519}`).success).toBe(false)
    expect(sshKeyProblem('')).toContain('must begin with its type')
  })

  test('that is one byte longer, shorter or other in its lengths is none; nothing at all throws', () => {
    const bytes = Buffer.from(ed25519.split(' ')[1] as string, 'base64')
    fc.assert(
      fc.property(fc.nat(bytes.length - 33), fc.integer({ min: 1, max: 255 }), (at, other) => {
        const changed = Buffer.from(bytes)
        changed[at] = ((changed[at] as number) + other) % 256
        expect(sshKeyProblem(`ssh-ed25519 ${changed.toString('base64')}`)).toContain('damaged')
      }),
    )
    fc.assert(fc.property(fc.string(), fc.constantFrom('', 'ssh-rsa ', 'ssh-ed25519 '), (text, type) => void sshKeyProblem(type + text)))
  })

  test('is one key whatever its comment: of two lines the one that was given stays', () => {
    const other = ed25519.replace('AQEBAQ', 'AgICAg')
    expect(joinedKeys([`${ed25519} given`], [`${ed25519} own`, other])).toEqual([`${ed25519} given`, other])
  })
})
