// HTTPS beside HTTP: the same door on a second port, with a certificate from files, as Kubernetes and ACME clients write them. Machines that boot speak plain HTTP, because their
// firmware trusts nobody; people and their programs need not.
import { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import type { RequestListener, ServerOptions } from 'node:http'
import { createServer, type Server } from 'node:https'
import path from 'node:path'
import type { Log } from '../log.ts'
import { makeCertificates, type OwnCertificates } from './certificates.ts'

export interface TlsOptions {
  /** Holds `tls.crt` (the certificate and those above it) and `tls.key`, PEM. */
  readonly folder: string
  readonly port: number
  /** Makes them where there are none, and anew before they expire. */
  readonly own?: OwnCertificates | undefined
}

/** A renewed certificate is in use within this time. */
const lookEveryMs = 30_000

/**
 * A server with the certificate of the folder, now and when it is renewed. Rejects where there is none and none is to be made, or its key is another's.
 */
export async function tlsServer({ folder, own }: TlsOptions, options: ServerOptions, listener: RequestListener, log: Log): Promise<Server> {
  if (own) await makeCertificates(folder, own, log)
  let pair = readPair(folder)
  const server = createServer({ ...options, ...pair, minVersion: 'TLSv1.2' }, listener)
  tell(pair.cert, log)
  let seen = versionOf(folder)
  let isLooking = false
  const look = async () => {
    if (isLooking) return
    isLooking = true
    try {
      if (own) await renew(folder, own, log)
      const version = versionOf(folder)
      if (version === seen) return
      seen = version
      pair = readPair(folder)
      server.setSecureContext({ ...pair, minVersion: 'TLSv1.2' })
      tell(pair.cert, log)
    } catch (error) {
      log.error({ err: error, folder }, 'the certificate was changed and cannot be used; the one before stays')
    } finally {
      isLooking = false
    }
  }
  const timer = setInterval(() => void look(), lookEveryMs)
  timer.unref()
  server.on('close', () => clearInterval(timer))
  return server
}

async function renew(folder: string, own: OwnCertificates, log: Log): Promise<void> {
  try {
    await makeCertificates(folder, own, log)
  } catch (error) {
    log.error({ err: error, folder }, 'the certificate cannot be looked at or renewed; the one before stays')
  }
}

function readPair(folder: string): { cert: string; key: string } {
  const read = (name: string) => {
    try {
      return readFileSync(path.join(folder, name), 'utf8')
    } catch (cause) {
      throw new Error(`read ${name} of MUSTER_TLS_DIR: ${(cause as Error).message}`, { cause })
    }
  }
  return { cert: read('tls.crt'), key: read('tls.key') }
}

/** Both files belong together: they are looked at together. */
const versionOf = (folder: string) => ['tls.crt', 'tls.key'].map(name => statSync(path.join(folder, name)).mtimeMs).join(' ')

function tell(cert: string, log: Log): void {
  const { fingerprint256, subject, validTo } = new X509Certificate(cert)
  log.info({ fingerprint: fingerprint256, subject, validTo }, 'the certificate in use')
}
