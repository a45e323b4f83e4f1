/** A real HTTP or HTTPS server on a free port of 127.0.0.1, and certificates made for it by openssl. */
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer as createHttp, type RequestListener, type Server } from 'node:http'
import { createServer as createHttps } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Node makes no certificates. Tests that use selfSigned say that they need it. */
export const certificateProgram = 'openssl'

export interface Certificate {
  key: string
  cert: string
  /** SHA-256, as openssl and browsers print it. */
  fingerprint: string
}

/** A self-signed certificate for that name or address, valid for two days. */
export function selfSigned(subject: 'IP:127.0.0.1' | 'DNS:elsewhere.example'): Certificate {
  const folder = mkdtempSync(join(tmpdir(), 'muster-certificate-'))
  try {
    const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')]
    execFileSync(
      certificateProgram,
      [
        ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
        ...['-subj', '/CN=switch', '-addext', `subjectAltName=${subject}`, '-keyout', key, '-out', cert],
      ],
      { stdio: 'ignore' },
    )
    const pem = readFileSync(cert, 'utf8')
    return { key: readFileSync(key, 'utf8'), cert: pem, fingerprint: new X509Certificate(pem).fingerprint256 }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

export interface Web extends AsyncDisposable {
  /** `http://127.0.0.1:PORT` or `https://…`. */
  url: string
}

/** Serves until disposed of. */
export async function startWeb(listener: RequestListener, certificate?: Certificate): Promise<Web> {
  const server: Server = certificate ? createHttps({ key: certificate.key, cert: certificate.cert }, listener) : createHttp(listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `${certificate ? 'https' : 'http'}://127.0.0.1:${port}`,
    [Symbol.asyncDispose]: async () => {
      server.close()
      server.closeAllConnections()
    },
  }
}
