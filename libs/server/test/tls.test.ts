// HTTPS beside HTTP, on real sockets with real certificates: the same answers, the renewed certificate without a restart, and a clear word where there is none.
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:https'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { makeCertificates, type OwnCertificates } from '../src/http/certificates.ts'
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

async function open(folder: string, own?: OwnCertificates) {
  const lines: string[] = []
  const log = createLog({ level: 'info', name: 'lon1', destination: { write: line => void lines.push(line) } })
  const door = await startDoor({ backend: modelBackend(), tokens: testTokens, log, version: '0', port: 0, tls: { folder, port: 0, own } })
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

/** Asks by HTTPS, trusting `ca` only. Answers the certificate that was shown. */
function shownTo(ca: string, url: string): Promise<X509Certificate> {
  return new Promise((resolve, reject) => {
    const asked = request(`${url}/healthz`, { ca, agent: false }, response => {
      const certificate = (response.socket as import('node:tls').TLSSocket).getPeerX509Certificate() as X509Certificate
      response.resume().on('end', () => resolve(certificate))
    })
    asked.on('error', reject)
    asked.end()
  })
}

const own = { names: ['lon1.example.org', '127.0.0.1', '::1'] }
const silent = createLog({ level: 'fatal', name: 'test' })
const modes = (folder: string) =>
  Object.fromEntries(readdirSync(folder).map(name => [name, statSync(path.join(folder, name)).mode & 0o777]))

test('without files it makes an authority and a certificate, which clients trust by the authority, and keeps both over a restart', async () => {
  const folder = path.join(folderOf(), 'new')
  const first = await open(folder, own)
  const ca = readFileSync(path.join(folder, 'ca.crt'), 'utf8')
  const certificate = await shownTo(ca, first.door.secureUrl as string)
  expect(certificate.subjectAltName).toBe('DNS:lon1.example.org, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1')
  expect(modes(folder)).toEqual({ 'ca.pem': 0o600, 'ca.crt': 0o644, 'tls.key': 0o600, 'tls.crt': 0o644 })
  expect(first.lines.join('\n')).toContain(new X509Certificate(ca).fingerprint256)
  expect(first.lines.join('\n')).not.toContain('PRIVATE KEY')
  // Nobody who trusts another authority.
  const stranger = folderOf()
  await makeCertificates(stranger, own, silent)
  await expect(shownTo(readFileSync(path.join(stranger, 'ca.crt'), 'utf8'), first.door.secureUrl as string)).rejects.toMatchObject({
    code: expect.stringMatching(/SELF_SIGNED|UNABLE_TO_VERIFY|UNABLE_TO_GET_ISSUER/),
  })
  await first.door.close()
  const second = await open(folder, own)
  expect((await shownTo(ca, second.door.secureUrl as string)).fingerprint256).toBe(certificate.fingerprint256)
})

test('renews before it expires, while it runs, and when a name is missing; the authority stays', async () => {
  vi.useFakeTimers({ toFake: ['setInterval'] })
  onTestFinished(() => void vi.useRealTimers())
  const folder = folderOf()
  const daysAgo = (days: number) => Date.now() - days * 24 * 3_600_000
  // An authority and a certificate of a server that has run for two months.
  await makeCertificates(folder, own, silent, daysAgo(59))
  const { door } = await open(folder, own)
  const url = door.secureUrl as string
  const ca = readFileSync(path.join(folder, 'ca.crt'), 'utf8')
  const before = await shownTo(ca, url)
  await vi.advanceTimersByTimeAsync(31_000)
  expect((await shownTo(ca, url)).fingerprint256).toBe(before.fingerprint256)
  for (const name of ['tls.crt', 'tls.key']) rmSync(path.join(folder, name))
  await makeCertificates(folder, own, silent, daysAgo(61))
  await vi.advanceTimersByTimeAsync(31_000)
  await vi.waitUntil(async () => Date.parse((await shownTo(ca, url)).validTo) > daysAgo(-89), { timeout: 5_000 })
  expect(readFileSync(path.join(folder, 'ca.crt'), 'utf8')).toBe(ca)
  // Nor is one used that expired while the server was down.
  for (const name of ['tls.crt', 'tls.key']) rmSync(path.join(folder, name))
  await makeCertificates(folder, own, silent, daysAgo(100))
  const { door: again } = await open(folder, own)
  expect(Date.parse((await shownTo(ca, again.secureUrl as string)).validTo)).toBeGreaterThan(daysAgo(-89))

  const other = folderOf()
  expect(await makeCertificates(other, own, silent)).toBe('made')
  expect(await makeCertificates(other, own, silent)).toBe('kept')
  expect(await makeCertificates(other, { names: [...own.names, 'muster.example.org'] }, silent)).toBe('made')
  writeFileSync(path.join(other, 'tls.key'), readFileSync(path.join(folder, 'tls.key')))
  expect(await makeCertificates(other, own, silent)).toBe('made')
})

test('servers that start at once in one folder have one authority', async () => {
  const folder = folderOf()
  await Promise.all(Array.from({ length: 4 }, () => makeCertificates(folder, own, silent)))
  const authority = new X509Certificate(readFileSync(path.join(folder, 'ca.crt')))
  expect(new X509Certificate(readFileSync(path.join(folder, 'tls.crt'))).checkIssued(authority)).toBe(true)
  expect(await makeCertificates(folder, own, silent)).toBe('kept')
  expect(readdirSync(folder).sort()).toEqual(['ca.crt', 'ca.pem', 'tls.crt', 'tls.key'])
})

test.skipIf(isMissing)('leaves the files of others as they are, and openssl finds nothing wrong with its own', async () => {
  const folder = folderOf()
  certify(folder, 'theirs')
  const before = readFileSync(path.join(folder, 'tls.crt'))
  expect(await makeCertificates(folder, own, silent)).toBe('kept')
  expect(readFileSync(path.join(folder, 'tls.crt'))).toEqual(before)
  expect(readdirSync(folder).sort()).toEqual(['tls.crt', 'tls.key'])

  const made = folderOf()
  await makeCertificates(made, own, silent)
  const args = [
    'verify',
    '-x509_strict',
    '-purpose',
    'sslserver',
    '-verify_hostname',
    'lon1.example.org',
    '-CAfile',
    path.join(made, 'ca.crt'),
  ]
  expect(execFileSync('openssl', [...args, path.join(made, 'tls.crt')], { encoding: 'utf8' })).toMatch(/tls\.crt: OK/)
})
