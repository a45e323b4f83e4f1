// Public keys for SSH, as one line of an authorized_keys file or of `ssh-keygen -y`: type, base64, comment. Their form is looked into (RFC 4253 6.6, RFC 5656 3.1,
// RFC 8709 4, OpenSSH's PROTOCOL.u2f), because a line that sshd passes over locks its owner out of the machine, and one with options in front says more than a key.
import { z } from 'zod'

/** NIST SP 800-131A; RHEL's sshd refuses shorter ones too. */
const shortestRsaBits = 2048
const longestRsaBits = 16_384

const curves = { nistp256: 65, nistp384: 97, nistp521: 133 } as const

/** The fields behind the type, in order, and what is wrong with them; undefined: nothing. */
type Check = (fields: readonly Uint8Array[]) => string | undefined

const ed25519: Check = ([point, ...rest]) => (point?.length === 32 && rest.length === 0 ? undefined : malformed)
const ecdsa =
  (curve: keyof typeof curves): Check =>
  ([name, point, ...rest]) =>
    textOf(name) === curve && point?.length === curves[curve] && point[0] === 4 && rest.length === 0 ? undefined : malformed
/** Of a hardware token: behind the key stands the application it is for. */
const onToken =
  (check: Check): Check =>
  fields =>
    (fields.at(-1)?.length ?? 0) > 0 ? check(fields.slice(0, -1)) : malformed

const malformed = 'is damaged: what it holds is no key of its type'

const checks: Readonly<Record<string, Check>> = {
  'ssh-ed25519': ed25519,
  'ecdsa-sha2-nistp256': ecdsa('nistp256'),
  'ecdsa-sha2-nistp384': ecdsa('nistp384'),
  'ecdsa-sha2-nistp521': ecdsa('nistp521'),
  'sk-ssh-ed25519@openssh.com': onToken(ed25519),
  'sk-ecdsa-sha2-nistp256@openssh.com': onToken(ecdsa('nistp256')),
  'ssh-rsa': ([exponent, modulus, ...rest]) => {
    if (!exponent || !modulus || rest.length > 0) return malformed
    const bits = bitsOf(modulus)
    if (bits < shortestRsaBits) return `is an RSA key of ${bits} bits; at least ${shortestRsaBits} are needed`
    const isOdd = (number: Uint8Array) => ((number.at(-1) ?? 0) & 1) === 1
    return bits <= longestRsaBits && bitsOf(exponent) >= 2 && bitsOf(exponent) <= 64 && isOdd(exponent) && isOdd(modulus)
      ? undefined
      : malformed
  },
}

/** What is wrong with a line that is to be a public key, or undefined. The words never repeat it: it may be a private one. */
export function sshKeyProblem(line: string): string | undefined {
  if (/PRIVATE KEY|PuTTY-User-Key-File/.test(line))
    return 'is a private key: make a new pair, because this one has been sent, and give its public half (the file that ends in .pub)'
  const [type = '', text = ''] = line.trim().split(/\s+/)
  if (type === 'ssh-dss') return 'is a DSA key, which no OpenSSH takes any more; make an ed25519 one'
  const check = Object.hasOwn(checks, type) ? checks[type] : undefined
  if (!check) return `must begin with its type, one of ${Object.keys(checks).join(', ')}, with no options in front`
  const fields = fieldsIn(text)
  if (!fields || textOf(fields[0]) !== type) return malformed
  return check(fields.slice(1))
}

/** A public key on one line, without blanks around it. */
export const sshPublicKey = z
  .string()
  .max(8192)
  .trim()
  .superRefine((line, context) => {
    const problem = /[\r\n\0]/.test(line) && !/PRIVATE KEY/.test(line) ? 'is not one line' : sshKeyProblem(line)
    if (problem) context.addIssue({ code: 'custom', message: problem })
  })

/** What makes two lines the same key: type and key, whatever the comment. */
export function sshKeyIdentity(line: string): string {
  return line.trim().split(/\s+/).slice(0, 2).join(' ')
}

/** Both lists, each key once; of two lines for one key the first stays. */
export function joinedKeys(given: readonly string[], own: readonly string[]): string[] {
  const known = new Map<string, string>()
  for (const line of [...given, ...own]) if (!known.has(sshKeyIdentity(line))) known.set(sshKeyIdentity(line), line)
  return [...known.values()]
}

/** RFC 4251's strings, each with its length in front; undefined where they do not fill the text exactly. */
function fieldsIn(base64: string): Uint8Array[] | undefined {
  if (!/^(?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$|^(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)$/.test(base64))
    return undefined
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0))
  const fields: Uint8Array[] = []
  for (let at = 0; at < bytes.length; ) {
    if (at + 4 > bytes.length) return undefined
    const length = new DataView(bytes.buffer).getUint32(at)
    at += 4
    if (at + length > bytes.length) return undefined
    fields.push(bytes.subarray(at, at + length))
    at += length
  }
  return fields
}

const textOf = (bytes: Uint8Array | undefined) => new TextDecoder('latin1').decode(bytes)

/** How long a number is; 0 where it is not written as the shortest positive one (RFC 4251, mpint). */
function bitsOf(number: Uint8Array): number {
  const [first = 0, second = 0] = number
  if (first >= 0x80 || (first === 0 && second < 0x80)) return 0
  const leading = first === 0 ? 1 : 0
  return (number.length - leading) * 8 - (Math.clz32(number[leading] ?? 0) - 24)
}
