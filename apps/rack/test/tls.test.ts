// HTTPS without any files at hand: a partition makes its own authority at first start, and people believe it by that, with the command line.
import { execFile } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { freshDatabase } from '@muster/embedded/test-postgres'
import { migrate } from '@muster/partition/db/migrate'
import { defaultRules } from '@muster/partition/domain/core'
import { startPartition } from '@muster/partition/partition'
import { createLog } from '@muster/server/log'
import { hashToken, newToken } from '@muster/server/tokens'
import { expect, onTestFinished, test } from 'vitest'

const main = fileURLToPath(new URL('../../cli/src/main.ts', import.meta.url))

async function startSecure() {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-tls-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const { token } = newToken()
  const tokensFile = path.join(folder, 'tokens.json')
  writeFileSync(tokensFile, JSON.stringify({ tokens: [{ name: 'alice', role: 'admin', sha256: hashToken(token) }] }))
  writeFileSync(path.join(folder, 'token'), token)
  const database = await freshDatabase({ template: 'partition', migrate: async url => void (await migrate(url)) })
  onTestFinished(() => database.drop())
  const own: (() => Promise<void> | void)[] = []
  onTestFinished(async () => {
    for (let stop = own.pop(); stop; stop = own.pop()) await stop()
  })
  const { secureUrl } = await startPartition({
    settings: {
      partition: 'lon1',
      replica: 'a',
      databaseUrl: database.url,
      connections: 4,
      nats: undefined,
      key: Buffer.alloc(32, 1),
      tokensFile,
      files: folder,
      host: '127.0.0.1',
      port: 0,
      tls: { folder: path.join(folder, 'tls'), port: 0, own: { names: ['127.0.0.1'] } },
      url: undefined,
      rules: defaultRules,
    },
    log: createLog({ level: 'error', name: 'test' }),
    own: (_, stop) => void own.push(stop),
    onSuperseded: () => undefined,
  })
  const muster = (words: string[], env: Record<string, string> = {}) =>
    new Promise<{ code: number; stdout: string; stderr: string }>(resolve =>
      execFile(
        process.execPath,
        [main, ...words],
        {
          env: { PATH: process.env.PATH, HOME: folder, NO_COLOR: '1', NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE, ...env },
          cwd: folder,
        },
        (error, stdout, stderr) => resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr }),
      ),
    )
  return { url: secureUrl as string, folder, ca: path.join(folder, 'tls', 'ca.crt'), muster }
}

test('a certificate that is not trusted is told, with what to do; by file or fingerprint of the authority it is, and stays so', {
  timeout: 60_000,
}, async () => {
  const { url, folder, ca, muster } = await startSecure()
  const login = ['login', url, '--token-file', 'token']
  const refused = await muster(login)
  expect(refused.code).not.toBe(0)
  expect(refused.stderr).toMatch(/hint: its certificate is not from an authority that is known here: log in again with --ca FILE/)

  const { fingerprint256 } = new X509Certificate(readFileSync(ca))
  const wrong = await muster([...login, '--fingerprint', 'a'.repeat(64)])
  expect(wrong.stderr).toContain(`it shows`)
  expect(wrong.stderr).toContain(fingerprint256)
  expect(await muster([...login, '--fingerprint', fingerprint256])).toMatchObject({
    code: 0,
    stdout: expect.stringContaining('as alice (admin)'),
  })
  expect(await muster(['whoami'])).toMatchObject({ code: 0, stdout: expect.stringContaining('alice') })
  rmSync(path.join(folder, '.config'), { recursive: true })

  expect(await muster([...login, '--ca', ca])).toMatchObject({ code: 0 })
  // The file is not needed any more: what was believed is in the profile.
  expect(await muster(['whoami'])).toMatchObject({ code: 0 })
  expect(await muster(['login', '--token-file', 'token'])).toMatchObject({ code: 0 })
  rmSync(path.join(folder, '.config'), { recursive: true })

  const env = { MUSTER_URL: url, MUSTER_TOKEN_FILE: 'token' }
  expect(await muster(['whoami'], env)).toMatchObject({ stderr: expect.stringContaining('MUSTER_CA=FILE') })
  expect(await muster(['whoami'], { ...env, MUSTER_CA: ca })).toMatchObject({ code: 0 })
  expect(await muster(['whoami'], { ...env, MUSTER_CA: 'token' })).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('holds no certificate'),
  })
})
