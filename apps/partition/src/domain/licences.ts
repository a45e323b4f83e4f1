// Licence keys of operating systems: documents of the global configuration, opened only here, for the machines that are deployed with what they name.
import { openText } from '@muster/server/global/sealed'
import { Refusal } from '@muster/shared/errors'
import type { LicenceDocument } from '@muster/shared/global/documents'
import type { Secret } from '@muster/shared/secret'
import type { Core } from './core.ts'

export interface Licence {
  readonly name: string
  readonly key: Secret
}

type Holder = Pick<Core, 'configuration' | 'shared' | 'log'>

/** The licence keys for an operating system. One that cannot be opened is left out, and logged. */
export function licencesFor(core: Holder, os: string | undefined): Licence[] {
  return documentsFor(core, os).flatMap(([name, document]) => {
    const key = opened(core, name, document)
    if (key !== undefined) return [{ name, key }]
    core.log.error({ licence: name, os }, 'a licence key cannot be opened with this MUSTER_SHARED_KEY; a machine starts without it')
    return []
  })
}

/** Throws not-ready where a machine would come up without a licence key that is meant for it. */
export function refuseWithoutLicence(core: Holder, os: string): void {
  const closed = documentsFor(core, os).filter(([name, document]) => opened(core, name, document) === undefined)
  if (closed.length === 0) return
  const names = closed.map(([name]) => name).join(', ')
  throw new Refusal(
    'not-ready',
    `deploy ${os}: its licence ${names} cannot be opened, because MUSTER_SHARED_KEY is not set here, or is not the fronts'`,
  )
}

function documentsFor({ configuration }: Holder, os: string | undefined): [string, LicenceDocument][] {
  const documents = Object.entries(configuration.content?.documents.licence ?? {})
  return documents.filter(([, { operatingSystems }]) => os !== undefined && operatingSystems.includes(os))
}

function opened({ shared }: Holder, name: string, document: LicenceDocument): Secret | undefined {
  if (!shared) return undefined
  try {
    return openText(shared, { kind: 'licence', name, field: 'key' }, document.key)
  } catch {
    return undefined // another key than the one it was sealed with; whoever asks says so
  }
}

/**
 * A script that writes each key into a file of its name, for root alone. A part of vendor-data of its own: lists of a cloud-config are replaced by the user's,
 * scripts of vendor and user are run both.
 */
export function licenceScript(licences: readonly Licence[]): string {
  const lines = licences.map(({ name, key }) => `printf %s ${Buffer.from(key.reveal()).toString('base64')} | base64 -d > "$folder/${name}"`)
  return ['#!/bin/sh', 'set -e', 'umask 077', 'folder=/etc/muster/licences', 'mkdir -p "$folder"', ...lines, ''].join('\n')
}
