// A self-signed certificate made at start-up: Node signs but writes no certificates, so the forty lines of DER are here. ECDSA P-256, because
// making such a key takes a millisecond; RSA would take most of a second for each BMC of a rack.
import { generateKeyPairSync, randomBytes, sign, X509Certificate } from 'node:crypto'
import { isIPv4 } from 'node:net'

export interface ServerCertificate {
  /** PEM. */
  key: string
  /** PEM; it is its own CA. */
  certificate: string
  /** SHA-256 in hex with colons, as the driver's setting `certificate` takes it. */
  fingerprint: string
}

/** A certificate for one IPv4 address or host name, valid from yesterday for ten years. */
export function selfSignedCertificate(host: string): ServerCertificate {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const day = 86_400_000
  const name = sequence(set(sequence(objectId(commonName), der(0x0c, Buffer.from(host)))))
  const algorithm = sequence(objectId(ecdsaWithSha256))
  // dNSName is [2], iPAddress [7] (RFC 5280 4.2.1.6).
  const alternative = isIPv4(host) ? der(0x87, Buffer.from(host.split('.').map(Number))) : der(0x82, Buffer.from(host))
  const isCa = sequence(objectId(basicConstraints), der(0x04, sequence(der(0x01, Buffer.of(0xff)))))
  const content = sequence(
    der(0xa0, der(0x02, Buffer.of(2))), // version 3
    der(0x02, Buffer.concat([Buffer.of(1), randomBytes(8)])), // serial number, positive
    algorithm,
    name,
    sequence(utcTime(Date.now() - day), utcTime(Date.now() + 3650 * day)),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(isCa, sequence(objectId(subjectAlternativeName), der(0x04, sequence(alternative))))),
  )
  const signature = sign('sha256', content, privateKey)
  const whole = sequence(content, algorithm, der(0x03, Buffer.concat([Buffer.of(0), signature])))
  const certificate = `-----BEGIN CERTIFICATE-----\n${whole.toString('base64').replace(/.{64}/g, '$&\n').trimEnd()}\n-----END CERTIFICATE-----\n`
  return {
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    certificate,
    fingerprint: new X509Certificate(certificate).fingerprint256,
  }
}

// Object identifiers as their DER content.
const commonName = '550403'
const ecdsaWithSha256 = '2a8648ce3d040302'
const subjectAlternativeName = '551d11'
const basicConstraints = '551d13'

function der(tag: number, content: Buffer): Buffer {
  const { length } = content
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff]
  return Buffer.concat([Buffer.of(tag, ...size), content])
}

function sequence(...parts: readonly Buffer[]): Buffer {
  return der(0x30, Buffer.concat(parts))
}

function set(...parts: readonly Buffer[]): Buffer {
  return der(0x31, Buffer.concat(parts))
}

function objectId(hex: string): Buffer {
  return der(0x06, Buffer.from(hex, 'hex'))
}

/** YYMMDDHHMMSSZ: good until 2049 (RFC 5280 4.1.2.5.1). */
function utcTime(atMs: number): Buffer {
  const digits = new Date(atMs).toISOString().replace(/\D/g, '').slice(2, 14)
  return der(0x17, Buffer.from(`${digits}Z`))
}
