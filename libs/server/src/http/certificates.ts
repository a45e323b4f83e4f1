// Certificates that a server makes for itself: an authority of its own at first start, and a certificate from it, renewed long before it expires. So HTTPS needs nothing but a folder;
// who has an authority already puts its files there instead, and nothing is made.
import { createPrivateKey, KeyObject, randomBytes, type webcrypto, X509Certificate } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { isIP } from 'node:net'
import path from 'node:path'
import type { Log } from '../log.ts'

const dayMs = 24 * 3_600_000
const authorityDays = 3650
/** Short, because nobody has to do anything for the next. */
const certificateDays = 90
/** With so much left there is time to notice that a renewal fails. */
const renewDays = 30
/** Clocks of clients may be behind. */
const backdateMs = 3_600_000
const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }

export interface OwnCertificates {
  /** DNS names and addresses by which clients reach this server; the first is its common name. */
  readonly names: readonly string[]
}

/**
 * Makes what is missing in `folder`: `ca.pem` (the authority with its key, for its owner only), `ca.crt` (what clients are to trust), `tls.crt` and `tls.key`. A certificate is made
 * anew before it expires, and when it lacks a name. One that is not of this authority is somebody else's: it is left as it is. Answers whether tls.crt is new.
 */
export async function makeCertificates(folder: string, { names }: OwnCertificates, log: Log, now = Date.now()): Promise<'made' | 'kept'> {
  const place = (name: string) => path.join(folder, name)
  if (!existsSync(place('ca.pem')) && existsSync(place('tls.crt'))) return 'kept'
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const authority = await authorityIn(folder, now, log)
  const known = certificateIn(folder)
  if (known !== undefined && !known.certificate.checkIssued(authority.certificate)) return 'kept'
  const reason = known === undefined ? 'there was none' : whyRenew(known, names, now)
  if (reason === undefined) return 'kept'
  const { certificate, key } = await certificateFrom(authority, names, now)
  // With the authority behind it, so that a client that knows its fingerprint sees it.
  put(place('tls.key'), key, 0o600)
  put(place('tls.crt'), `${certificate}\n${authority.pem}`, 0o644)
  log.info(
    { names, reason, authority: authority.certificate.fingerprint256, file: place('ca.crt') },
    'made a certificate; clients are to trust its authority: muster login URL --ca FILE, or --fingerprint',
  )
  return 'made'
}

interface Authority {
  readonly certificate: X509Certificate
  readonly pem: string
  readonly key: string
}

async function authorityIn(folder: string, now: number, log: Log): Promise<Authority> {
  const file = path.join(folder, 'ca.pem')
  if (!existsSync(file)) {
    const draft = `${file}.${process.pid}`
    writeFileSync(draft, await newAuthority(now), { mode: 0o600 })
    try {
      // Of several servers that start at once in one folder, one makes the authority of all.
      linkSync(draft, file)
      log.info({ file }, 'made an authority for certificates')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    } finally {
      rmSync(draft, { force: true })
    }
  }
  const text = readFileSync(file, 'utf8')
  const [pem, key] = [
    /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/,
    /-----BEGIN PRIVATE KEY-----[\s\S]+?-----END PRIVATE KEY-----/,
  ].map(part => part.exec(text)?.[0])
  if (pem === undefined || key === undefined)
    throw new Error(`${file} holds no certificate with its key; remove it to have a new authority made`)
  const shown = path.join(folder, 'ca.crt')
  if (!existsSync(shown)) put(shown, `${pem}\n`, 0o644)
  return { certificate: new X509Certificate(pem), pem: `${pem}\n`, key }
}

function certificateIn(folder: string): { certificate: X509Certificate; key: string } | undefined {
  try {
    const [cert, key] = ['tls.crt', 'tls.key'].map(name => readFileSync(path.join(folder, name), 'utf8')) as [string, string]
    return { certificate: new X509Certificate(cert), key }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new Error(`read the certificate in ${folder}: ${(error as Error).message}`, { cause: error })
  }
}

/** Undefined: it is good for a while. */
function whyRenew(
  { certificate, key }: { certificate: X509Certificate; key: string },
  names: readonly string[],
  now: number,
): string | undefined {
  if (Date.parse(certificate.validTo) - now < renewDays * dayMs) return `the one before is good until ${certificate.validTo}`
  const missing = names.filter(name => (isIP(name) === 0 ? certificate.checkHost(name) : certificate.checkIP(name)) === undefined)
  if (missing.length > 0) return `the one before is not for ${missing.join(', ')}`
  // Two servers that share the folder may have renewed at once.
  return keyFits(certificate, key) ? undefined : 'the one before was of another key'
}

function keyFits(certificate: X509Certificate, key: string): boolean {
  try {
    return certificate.checkPrivateKey(createPrivateKey(key))
  } catch {
    return false // a text that is no key fits nothing
  }
}

async function newAuthority(now: number): Promise<string> {
  const x509 = await library()
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    // A number, because clients may know several: two of one name would be taken for each other.
    name: `CN=Muster authority ${serialNumber().slice(0, 8)}`,
    notBefore: new Date(now - backdateMs),
    notAfter: new Date(now + authorityDays * dayMs),
    keys,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return `${certificate.toString('pem')}\n${keyPem(keys.privateKey)}`
}

async function certificateFrom(authority: Authority, names: readonly string[], now: number): Promise<{ certificate: string; key: string }> {
  const x509 = await library()
  const issuer = new x509.X509Certificate(authority.pem)
  const signingKey = await crypto.subtle.importKey(
    'pkcs8',
    createPrivateKey(authority.key).export({ format: 'der', type: 'pkcs8' }),
    algorithm,
    false,
    ['sign'],
  )
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: [{ CN: [(names[0] as string).slice(0, 64)] }],
    issuer: issuer.subjectName,
    notBefore: new Date(now - backdateMs),
    notAfter: new Date(Math.min(now + certificateDays * dayMs, issuer.notAfter.getTime())),
    publicKey: keys.publicKey,
    signingKey,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension(names.map(value => ({ type: isIP(value) === 0 ? 'dns' : 'ip', value }))),
      await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    ],
  })
  return { certificate: certificate.toString('pem'), key: keyPem(keys.privateKey) }
}

/** Loaded when a certificate is made, once in two months: it takes half a second. */
async function library() {
  await import('reflect-metadata') // what it injects its parts with
  return import('@peculiar/x509')
}

function keyPem(key: webcrypto.CryptoKey): string {
  return KeyObject.from(key).export({ format: 'pem', type: 'pkcs8' }) as string
}

/** 126 random bits, the first of which is set: positive, and of one length. */
function serialNumber(): string {
  const bytes = randomBytes(16)
  bytes[0] = ((bytes[0] as number) & 0x3f) | 0x40
  return bytes.toString('hex')
}

/** In one step: a reader sees the old file or the new one. */
function put(file: string, text: string, mode: number): void {
  const draft = `${file}.${process.pid}`
  rmSync(draft, { force: true })
  writeFileSync(draft, text, { mode, flag: 'wx' })
  renameSync(draft, file)
}
