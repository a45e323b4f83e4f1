// The bus by TLS, with an authority of one's own: a real nats-server, certificates of openssl, and each way in which they do not fit told with what to do.
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { natsUrlIn } from '@muster/embedded/nats-server'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { type BusLog, connectNats } from '../src/bus/nats-bus.ts'
import { certify, makeAuthority } from './certificate.ts'
import { needs } from './needs.ts'

/** A nats-server that takes TLS only, with a certificate for those names. */
async function startSecure(altNames: string): Promise<{ folder: string; url: string }> {
  const folder = mkdtempSync('/tmp/muster-nats-tls-')
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  makeAuthority(folder, 'authority')
  const { cert, key } = certify(folder, 'authority', altNames)
  const config = path.join(folder, 'nats.conf')
  writeFileSync(config, JSON.stringify({ listen: '127.0.0.1:-1', ports_file_dir: folder, tls: { cert_file: cert, key_file: key } }))
  const child = spawn('nats-server', ['-c', config], { stdio: 'ignore' })
  onTestFinished(() => void child.kill('SIGKILL'))
  const portsFile = path.join(folder, `nats-server_${child.pid}.ports`)
  const url = await vi.waitUntil(() => natsUrlIn(portsFile), { timeout: 10_000 })
  return { folder, url: url.replace(/^(nats|tls):/, 'tls:') }
}

const pemOf = (folder: string, name: string) => readFileSync(path.join(folder, `${name}.crt`), 'utf8')

async function connect(url: string, ca: string | undefined, firstWaitMs = 5_000) {
  const told: string[] = []
  const log: BusLog = { info: () => {}, warn: (_, text) => void told.push(text), error: () => {} }
  const bus = await connectNats({ url, ca, name: 'x', log, firstWaitMs })
  onTestFinished(() => bus.close())
  return { bus, told }
}

describe.skipIf(needs('nats-server') || needs('openssl'))('a nats-server with an authority of its own', () => {
  test('is believed by that authority: under an address, under a name, and where the URL says nats://', { timeout: 60_000 }, async () => {
    const { folder, url } = await startSecure('IP:127.0.0.1,DNS:localhost')
    const ca = pemOf(folder, 'authority')
    for (const each of [url, url.replace('127.0.0.1', 'localhost'), url.replace('tls:', 'nats:')]) {
      const { bus } = await connect(each, ca)
      expect(bus.isConnected(), each).toBe(true)
      expect(bus.describe()).toMatch(/^nats \d/)
    }
  })

  test('is not believed otherwise, and why is told once in the log, and in the status', { timeout: 60_000 }, async () => {
    const { folder, url } = await startSecure('IP:127.0.0.1,DNS:broker.example.org')
    makeAuthority(folder, 'other')
    // An address is believed by a certificate for that address; no name need be in it.
    expect((await connect(url, pemOf(folder, 'authority'))).bus.isConnected()).toBe(true)
    const cases: [string, string | undefined, RegExp][] = [
      [url, undefined, /not from an authority that is known here: set NATS_CA to a file with the certificate of its authority/],
      [url, pemOf(folder, 'other'), /not from the authority in NATS_CA .*: set NATS_CA to a file/],
      [url.replace('127.0.0.1', 'localhost'), pemOf(folder, 'authority'), /localhost.*broker\.example\.org.*one of these in NATS_URL/s],
    ]
    for (const [at, ca, reason] of cases) {
      const { bus, told } = await connect(at, ca, 1)
      await vi.waitUntil(() => told.length > 0, { timeout: 10_000 })
      expect(told).toEqual([expect.stringMatching(reason)])
      expect(bus.describe()).toMatch(reason)
      expect(bus.isConnected()).toBe(false)
    }
  })
})
