// The authority of a server, known by its fingerprint: what it shows is taken only where that is the one.
import type { X509Certificate } from 'node:crypto'
import { connect } from 'node:tls'

/** The authority could not be known: `usage`, the fingerprint or URL is none; `unreachable`, the server shows another, or nothing. */
export class AuthorityError extends Error {
  readonly kind: 'usage' | 'unreachable'
  readonly hint: string | undefined
  constructor(kind: 'usage' | 'unreachable', message: string, hint?: string) {
    super(message)
    this.name = 'AuthorityError'
    this.kind = kind
    this.hint = hint
  }
}

const limitMs = 10_000
/** Chains are three or four long; a circle has no end. */
const longestChain = 10

/** The certificate with that SHA-256 fingerprint among those that the server shows, PEM. Throws {@link AuthorityError} where it shows none. */
export async function authorityOf(url: string, fingerprint: string): Promise<string> {
  const wanted = plainFingerprint(fingerprint)
  if (wanted === undefined)
    throw new AuthorityError('usage', `"${fingerprint}" is not a SHA-256 fingerprint: 64 hex digits, with or without colons`)
  const { protocol, hostname, port } = new URL(url)
  if (protocol !== 'https:') throw new AuthorityError('usage', `${url} shows no certificate: a fingerprint is for https://`)
  const shown = await chainOf(hostname.replace(/^\[|\]$/g, ''), Number(port || 443))
  const found = shown.find(each => each.fingerprint256.replaceAll(':', '') === wanted)
  if (found?.ca) return found.toString()
  const reason = found
    ? 'it is that of its own certificate, which changes every two months'
    : `it shows ${shown.map(each => each.fingerprint256).join(' and ')}`
  throw new AuthorityError(
    'unreachable',
    `${url} is not to be believed by that fingerprint: ${reason}`,
    'the server tells the fingerprint of its authority in its log where it makes a certificate; openssl x509 -noout -fingerprint -sha256 -in ca.crt shows it too',
  )
}

/** 64 hex digits in capitals; undefined where the text is no SHA-256 fingerprint. */
export function plainFingerprint(text: string): string | undefined {
  const digits = text
    .replace(/^sha256:/i, '')
    .replaceAll(':', '')
    .toUpperCase()
  return /^[0-9A-F]{64}$/.test(digits) ? digits : undefined
}

/** All certificates the server shows, its own first. Nothing is sent to it. */
function chainOf(host: string, port: number): Promise<X509Certificate[]> {
  return new Promise((resolve, reject) => {
    const socket = connect(
      { host, port, rejectUnauthorized: false, ...(/[a-z]/i.test(host) && !host.includes(':') && { servername: host }) },
      () => {
        const chain: X509Certificate[] = []
        for (let next = socket.getPeerX509Certificate(); next && chain.length < longestChain; next = next.issuerCertificate) {
          if (chain.some(known => known.fingerprint256 === next?.fingerprint256)) break
          chain.push(next)
        }
        socket.destroy()
        resolve(chain)
      },
    )
    const fail = (reason: string) => {
      socket.destroy()
      reject(new AuthorityError('unreachable', `look at the certificate of ${host}:${port}: ${reason}`))
    }
    socket.setTimeout(limitMs, () => fail(`no answer within ${limitMs / 1000} s`))
    socket.on('error', error => fail(error.message))
  })
}
