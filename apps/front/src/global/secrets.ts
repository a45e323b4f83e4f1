// Secrets within a change of the global configuration: sealed before the change is looked at, kept where they are not said, made where there are none.
import { randomBytes } from 'node:crypto'
import { openText, type SecretPlace, sealText } from '@muster/server/global/sealed'
import type { Sealer } from '@muster/server/seal'
import { durationMs } from '@muster/shared/duration'
import { Refusal, wrongFields } from '@muster/shared/errors'
import { type Change, type DocumentKind, type Documents, sealedFieldsOf } from '@muster/shared/global/documents'
import { Secret } from '@muster/shared/secret'

/** A secret that was made here: its owner is told it once. */
export interface MadeSecret extends SecretPlace {
  readonly secret: string
}

/** How a secret is made for who gives none; of the other kinds one must be given. */
const makers: { readonly [Kind in DocumentKind]?: () => Secret } = {
  webhook: () => new Secret(`whsec_${randomBytes(32).toString('base64')}`),
}

/** How long the secret before signs beside a new one, where nothing else is said: time for a receiver to take the new one. */
const overlapMs = durationMs('24h')

/** The change with its secrets sealed, and those that were made. Throws not-ready where there is no key to seal them with, and invalid-input. */
export function sealedChange(change: Change, documents: Documents, sealer: Sealer | undefined): { change: Change; made: MadeSecret[] } {
  const made: MadeSecret[] = []
  const put = change.put.map(({ kind, name, document }, index) => {
    const isDeleted = change.delete.some(gone => gone.kind === kind && gone.name === name)
    const known = isDeleted ? undefined : (documents[kind][name] as Readonly<Record<string, unknown>> | undefined)
    const fields = Object.entries(sealedFieldsOf(kind)).map(([field, form]) => {
      const place = { kind, name, field }
      const kept = known?.[field] as string | undefined
      const given = document[field]
      if (kind === 'webhook' && field === 'secretBefore') {
        if (given !== undefined) throw invalid(index, field, 'is kept by the front itself when the secret changes')
        return [field, kept] as const
      }
      if (given === undefined && kept !== undefined) return [field, kept] as const
      if (!sealer) throw withoutKey(place)
      if (given !== undefined) {
        const parsed = form.safeParse(given)
        if (!parsed.success) throw invalid(index, field, parsed.error.issues[0]?.message ?? 'is not a secret')
        return [field, sealedAs(sealer, place, new Secret(parsed.data), kept)] as const
      }
      const secret = makers[kind]?.()
      if (!secret) throw invalid(index, field, 'is needed')
      made.push({ ...place, secret: secret.reveal() })
      return [field, sealText(sealer, place, secret)] as const
    })
    const sealed = { ...document, ...Object.fromEntries(fields.filter(([, text]) => text !== undefined)) }
    return { kind, name, document: kind === 'webhook' && sealer ? withSecretBefore(name, sealed, known, sealer) : sealed }
  })
  return { change: { ...change, put }, made }
}

/**
 * A webhook whose secret changed keeps the one before for a while, or until the time that is given with the change; one whose secret did not change keeps what it has.
 * What was sealed with a key that is gone cannot be kept.
 */
function withSecretBefore(
  name: string,
  document: Readonly<Record<string, unknown>>,
  known: Readonly<Record<string, unknown>> | undefined,
  sealer: Sealer,
): Record<string, unknown> {
  const until = document.secretBeforeUntil ?? known?.secretBeforeUntil
  if (known === undefined || document.secret === known.secret)
    return { ...document, ...(until !== undefined && { secretBeforeUntil: until }) }
  const isGiven = document.secretBeforeUntil !== undefined && document.secretBeforeUntil !== known.secretBeforeUntil
  const { secretBefore: _, secretBeforeUntil: __, ...rest } = document
  try {
    const kept = openText(sealer, { kind: 'webhook', name, field: 'secret' }, known.secret as string)
    return {
      ...rest,
      secretBefore: sealText(sealer, { kind: 'webhook', name, field: 'secretBefore' }, kept),
      secretBeforeUntil: isGiven ? document.secretBeforeUntil : new Date(Date.now() + overlapMs).toISOString(),
    }
  } catch {
    return rest // no partition could open it either: nothing was signed with it any more
  }
}

/** The text that is kept where it holds this secret already: sealed again it would look like a change. */
function sealedAs(sealer: Sealer, place: SecretPlace, secret: Secret, kept: string | undefined): string {
  try {
    if (kept !== undefined && openText(sealer, place, kept).reveal() === secret.reveal()) return kept
  } catch {
    // Sealed with a key that is gone: this one takes its place.
  }
  return sealText(sealer, place, secret)
}

function withoutKey({ kind, name, field }: SecretPlace): Refusal {
  return new Refusal(
    'not-ready',
    `put ${kind} ${name}: its ${field} cannot be sealed, because this front has no MUSTER_SHARED_KEY; give all fronts and partitions the same one (openssl rand -hex 32)`,
  )
}

function invalid(index: number, field: string, message: string): Refusal {
  const path = `put.${index}.document.${field}`
  return wrongFields([{ field: path, message }])
}
