// Secrets within documents of the global configuration: sealed by a front, opened by a partition, with the key they share. Each is bound to its
// document and field.
import type { DocumentKind } from '@muster/shared/global/documents'
import { Secret } from '@muster/shared/secret'
import { Sealer } from '../seal.ts'

/** A document's secret by its place. */
export interface SecretPlace {
  readonly kind: DocumentKind
  readonly name: string
  readonly field: string
}

const prefix = 'sealed:'
const contextOf = ({ kind, name, field }: SecretPlace) => `global ${kind} ${name} ${field}`

/** The sealer of what fronts and partitions share. `key`: 32 bytes. */
export function createSharedSealer(key: Buffer): Sealer {
  return new Sealer(key, 'muster shared')
}

/** The text that stands in the document. */
export function sealText(sealer: Sealer, place: SecretPlace, secret: Secret): string {
  return prefix + sealer.seal(secret.reveal(), contextOf(place)).toString('base64')
}

/** What {@link sealText} made for the same place. Throws where the key or the place is another. */
export function openText(sealer: Sealer, place: SecretPlace, text: string): Secret {
  return new Secret(String(sealer.open(Buffer.from(text.slice(prefix.length), 'base64'), contextOf(place))))
}
