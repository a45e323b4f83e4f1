// Certificates for tests, made with openssl as an operator would: an authority, and certificates from it.
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'

/** An authority in `folder`: `NAME.crt` and `NAME.key`. Answers its certificate's file. */
export function makeAuthority(folder: string, name: string): string {
  const [crt, key] = [path.join(folder, `${name}.crt`), path.join(folder, `${name}.key`)]
  const subject = ['-subj', `/CN=${name}`, '-addext', 'basicConstraints=critical,CA:TRUE', '-days', '2']
  openssl(['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', ...subject, '-keyout', key, '-out', crt])
  return crt
}

/** A certificate of that authority for `altNames` (`IP:127.0.0.1`): `server.crt` and `server.key` in `folder`. */
export function certify(folder: string, authority: string, altNames: string): { cert: string; key: string } {
  const [cert, key, request] = ['server.crt', 'server.key', 'server.csr'].map(each => path.join(folder, each)) as [string, string, string]
  const extensions = path.join(folder, 'extensions')
  writeFileSync(extensions, `subjectAltName=${altNames}\n`)
  const fresh = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=broker']
  openssl(['req', ...fresh, '-keyout', key, '-out', request])
  const from = ['-CA', path.join(folder, `${authority}.crt`), '-CAkey', path.join(folder, `${authority}.key`), '-CAcreateserial']
  openssl(['x509', '-req', '-in', request, ...from, '-extfile', extensions, '-days', '2', '-out', cert])
  return { cert, key }
}

function openssl(words: string[]): void {
  execFileSync('openssl', words, { stdio: 'pipe', timeout: 20_000 })
}
