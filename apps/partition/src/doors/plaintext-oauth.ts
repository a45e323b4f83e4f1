// OAuth 1.0 with the PLAINTEXT signature (RFC 5849, section 3.4.4), as clients of MAAS's metadata service sign: the signature is the secrets
// themselves. Nonces are not remembered: who can read one request has the secret and needs no second, so the RFC lets PLAINTEXT do without.
import { Refusal } from '@muster/shared/errors'

/** Further off than this a clock is wrong; clients mend theirs from the Date header of the refusal. */
const clockToleranceMs = 300_000

/** The machine token that an Authorization header carries in three parts. Throws unauthenticated, saying what is amiss. */
export function tokenOfOauth(authorization: string | undefined, nowMs: number): string {
  const fields = fieldsOf(authorization)
  const field = (name: string) => fields.get(`oauth_${name}`)
  const consumer = field('consumer_key')
  const token = field('token')
  if (!consumer || !token) throw refused('the request is not signed with OAuth')
  if (field('signature_method') !== 'PLAINTEXT')
    throw refused(`the signature method is ${field('signature_method') ?? 'not named'}, not PLAINTEXT`)
  if ((field('version') ?? '1.0') !== '1.0') throw refused(`the version of OAuth is ${field('version')}, not 1.0`)
  const timestamp = field('timestamp')
  if (timestamp !== undefined && !(Math.abs(Number(timestamp) * 1000 - nowMs) <= clockToleranceMs))
    throw refused('the timestamp is more than 300 s from the time here, which the Date header tells')
  const signature = /^&(.+)$/.exec(field('signature') ?? '')?.[1]
  if (signature === undefined) throw refused('the signature is not an empty consumer secret, "&" and the token secret')
  return `${consumer}.${token}.${decoded(signature)}`
}

/** The fields of the header, decoded. Clients separate them with "," or ", ", in any order. */
function fieldsOf(authorization: string | undefined): Map<string, string> {
  const list = /^OAuth\s+(.*)$/i.exec(authorization ?? '')?.[1] ?? ''
  return new Map([...list.matchAll(/([a-z_]+)="([^"]*)"/g)].map(([, name, value]) => [name as string, decoded(value as string)]))
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    // No percent-encoding: it is no secret of ours either.
    return text
  }
}

const refused = (why: string) => new Refusal('unauthenticated', why)
