// HTTPS beside HTTP, on real sockets with real certificates: the same answers, the renewed certificate without a restart, and a clear word where there is none.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:https'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { startDoor } from '../src/http/door.ts'
import { createLog } from '../src/log.ts'
import { testTokens, tokenOf } from './door-for-tests.ts'
import { modelBackend } from './model-backend.ts'
import { needs } from './needs.ts'

const isMissing = needs('openssl')

function folderOf(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-tls-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

function certify(folder: string, name: string): void {
  const [key, cert] = ['tls.key', 'tls.crt'].map(file => path.join(folder, file)) as [string, string]
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', `/CN=${name}`]
  execFileSync('openssl', [...args, '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', cert], { stdio: 'ignore' })
}

async function open(folder: string) {
  const lines: string[] = []
  const log = createLog({ level: 'info', name: 'lon1', destination: { write: line => void lines.push(line) } })
  const door = await startDoor({ backend: modelBackend(), tokens: testTokens, log, version: '0', port: 0, tls: { folder, port: 0 } })
  onTestFinished(() => door.close())
  return { door, lines }
}

/** Asks who it is, trusting only the certificate of the folder; with it, whose certificate that was. */
function whoami(url: string, folder: string): Promise<{ status: number; text: string; name: string }> {
  return new Promise((resolve, reject) => {
    const headers = { authorization: `Bearer ${tokenOf('user')}` }
    const asked = request(`${url}/api/v1/whoami`, { ca: readFileSync(path.join(folder, 'tls.crt')), headers, agent: false }, response => {
      const name = String((response.socket as import('node:tls').TLSSocket).getPeerCertificate().subject.CN)
      response
        .setEncoding('utf8')
        .toArray()
        .then(parts => resolve({ status: response.statusCode ?? 0, text: parts.join(''), name }), reject)
    })
    asked.on('error', reject)
    asked.end()
  })
}

test.skipIf(isMissing)('serves the same by HTTPS, and takes a renewed certificate without a restart', async () => {
  vi.useFakeTimers({ toFake: ['setInterval'] })
  onTestFinished(() => void vi.useRealTimers())
  const folder = folderOf()
  certify(folder, 'first')
  const { door, lines } = await open(folder)
  expect(door.secureUrl).toMatch(/^https:\/\/127\.0\.0\.1:\d+$/)
  expect(await whoami(door.secureUrl as string, folder)).toMatchObject({
    status: 200,
    name: 'first',
    text: expect.stringContaining('"user"'),
  })
  expect(lines.join('\n')).toMatch(/"fingerprint":"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}"/)

  // A key that does not belong to the certificate changes nothing.
  const good = readFileSync(path.join(folder, 'tls.key'))
  writeFileSync(path.join(folder, 'tls.key'), 'no key')
  await vi.advanceTimersByTimeAsync(31_000)
  expect(lines.join('\n')).toContain('cannot be used; the one before stays')
  writeFileSync(path.join(folder, 'tls.key'), good)
  expect((await whoami(door.secureUrl as string, folder)).name).toBe('first')

  certify(folder, 'second')
  await vi.advanceTimersByTimeAsync(31_000)
  expect((await whoami(door.secureUrl as string, folder)).name).toBe('second')
})

test('says what is missing, and starts nothing', async () => {
  await expect(open(folderOf())).rejects.toThrow(/^read tls\.crt of MUSTER_TLS_DIR: ENOENT/)
})
