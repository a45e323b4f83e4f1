// Passwords of people: argon2id (RFC 9106) as Node has it built in, kept in PHC form. Made where the password is typed, checked where people log in.
import { argon2, randomBytes, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'

/** OWASP's first choice for argon2id: 19 MiB, two passes, one lane. Hashes with other parameters are not taken (global/documents.ts). */
const parameters = { memory: 19_456, passes: 2, parallelism: 1, tagLength: 32 }
const head = '$argon2id$v=19$m=19456,t=2,p=1'

export const shortestPassword = 12
export const longestPassword = 1024

const derive = promisify(argon2)

/** The same password may be typed in several ways: é is one character, or two. */
const message = (password: string) => password.normalize('NFC')
/** PHC strings have base64 without its padding. */
const text = (bytes: Buffer) => bytes.toString('base64').replace(/=+$/, '')

/** The hash of a password, with a salt of its own, in PHC form. Takes 19 MiB and some tens of milliseconds on a thread of libuv. */
export async function hashPassword(password: string, salt: Buffer = randomBytes(16)): Promise<string> {
  const tag = await derive('argon2id', { ...parameters, message: message(password), nonce: salt })
  return `${head}$${text(salt)}$${text(tag)}`
}

/** Whether `hash` is that of the password. Costs the same whatever the answer. */
export async function isPassword(password: string, hash: string): Promise<boolean> {
  const [salt, tag] = hash.split('$').slice(-2) as [string, string]
  const found = await derive('argon2id', { ...parameters, message: message(password), nonce: Buffer.from(salt, 'base64') })
  return timingSafeEqual(found, Buffer.from(tag, 'base64'))
}

/** What is wrong with a password that a user would take, or undefined. Length is what helps; rules about characters do not (NIST SP 800-63B). */
export function passwordProblem(user: string, password: string): string | undefined {
  const length = [...message(password)].length
  if (length < shortestPassword) return `a password has at least ${shortestPassword} characters, this one ${length}`
  if (password.length > longestPassword) return `a password has at most ${longestPassword} characters`
  const word = password.toLowerCase()
  if (word.includes(user) && word.length - user.length < shortestPassword) return 'this password is little more than the name of the user'
  if (new Set(word).size < 4) return 'this password repeats very few characters'
  return undefined
}
