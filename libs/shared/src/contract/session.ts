// Who am I, and what is this server? And how people, who have passwords rather than tokens, come in.
import { z } from 'zod'
import { keyName, providerName } from '../global/documents.ts'
import { duration, timestamp } from '../machine.ts'
import { sshPublicKey } from '../ssh-key.ts'
import { caller, declareCall } from './call.ts'

/** The longest a session can last. */
export const longestSession = '24h'

const lifetime = duration.optional().describe(`how long the session lasts: 12h where left out, ${longestSession} at most`)

/** A session that has begun. */
const begun = z.object({
  /** Sent as any other token: `Authorization: Bearer …`. */
  token: z.string(),
  expiresAt: timestamp,
  caller,
  /** Where it is good: one that a front gave, everywhere; one of a partition, at that partition. */
  validAt: z.enum(['everywhere', 'here']),
})
export type BegunSession = z.infer<typeof begun>

export const session = {
  whoami: declareCall({
    summary: 'Who the token belongs to, and which server this is',
    rest: { method: 'GET', path: '/whoami' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: z.object({ caller, server: z.object({ kind: z.enum(['front', 'partition']), name: z.string(), version: z.string() }) }),
    spread: { kind: 'here' },
    errors: [],
  }),
  login: declareCall({
    summary: 'Begin a session with the name and the password of a user',
    description:
      'A partition checks the password against its own copy of the global configuration, with nobody else up. That a name is unknown is not told apart from a wrong password.',
    rest: { method: 'POST', path: '/session' },
    status: 200,
    role: 'public',
    input: z.strictObject({ user: z.string().min(1).max(64), password: z.string().min(1).max(1024), lifetime }),
    answer: begun,
    spread: { kind: 'global' },
    errors: ['overloaded'],
  }),
  providers: declareCall({
    summary: 'The OpenID Connect providers that people can log in with',
    rest: { method: 'GET', path: '/session/providers' },
    status: 200,
    role: 'public',
    input: z.strictObject({}),
    answer: z.object({
      items: z.array(z.object({ name: providerName, issuer: z.string(), clientId: z.string(), scopes: z.array(z.string()) })),
    }),
    spread: { kind: 'global' },
    errors: [],
  }),
  exchange: declareCall({
    summary: 'Begin a session with the ID token of an OpenID Connect provider',
    description:
      'The token must be for the client of that provider, made within the last ten minutes, and signed with a key that the provider publishes. Whom neither ' +
      'a user nor a group of the global configuration names does not come in.',
    rest: { method: 'POST', path: '/session/oidc' },
    status: 200,
    role: 'public',
    input: z.strictObject({
      provider: providerName,
      idToken: z.string().min(1).max(20_000),
      nonce: z.string().max(200).optional().describe('what the token must carry as its nonce'),
      lifetime,
    }),
    answer: begun,
    spread: { kind: 'global' },
    errors: ['not-found', 'provider-away'],
  }),
  logout: declareCall({
    summary: "End all of the caller's sessions, everywhere",
    description: 'Partitions that can be reached know within seconds; at one that is cut off, sessions end when they expire.',
    rest: { method: 'DELETE', path: '/session' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: z.object({ generation: z.number().int() }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost', 'newer-release'],
  }),
  password: declareCall({
    summary: "Change the caller's own password",
    description:
      "The password in force is asked for once more, and guessed no more often than at a login. All of the caller's sessions end, this one too; the answer is a new one. Its API tokens stay.",
    rest: { method: 'PUT', path: '/session/password' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ password: z.string().min(1).max(1024), newPassword: z.string().min(1).max(1024), lifetime }),
    answer: begun.extend({ generation: z.number().int() }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost', 'newer-release', 'overloaded'],
  }),
}

const ownKey = z.object({ name: keyName, key: z.string() })
export type OwnKey = z.infer<typeof ownKey>

/** The caller's own SSH keys. */
export const keys = {
  list: declareCall({
    summary: "The caller's own SSH keys",
    description:
      "They are put on the machines that their owner deploys, and on the rescue systems it boots, beside the request's own keys.",
    rest: { method: 'GET', path: '/keys' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({}),
    answer: z.object({ items: z.array(ownKey) }),
    spread: { kind: 'global' },
    errors: [],
  }),
  put: declareCall({
    summary: "Add an SSH key to the caller's own, or replace the one of that name",
    description:
      'A public key of ed25519, ECDSA or RSA (2048 bits or more), on one line. A token that may do less than its user may not: it would reach what its user deploys.',
    rest: { method: 'PUT', path: '/keys/{name}' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ name: keyName, key: sshPublicKey }),
    answer: z.object({ generation: z.number().int() }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost', 'newer-release'],
  }),
  delete: declareCall({
    summary: "Remove one of the caller's own SSH keys",
    description: 'Machines that are deployed already keep it: it is theirs to take away.',
    rest: { method: 'DELETE', path: '/keys/{name}' },
    status: 200,
    role: 'read-only',
    input: z.strictObject({ name: keyName }),
    answer: z.object({ generation: z.number().int() }),
    spread: { kind: 'global' },
    errors: ['needs-front', 'not-found', 'stale-version', 'home-lost', 'newer-release'],
  }),
}
