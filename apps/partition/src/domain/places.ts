// Pools and zones that belong to the whole federation: where the global configuration names some, there are no others. A machine that was in another before
// stays there until somebody moves it.
import type { LabelEntry, LabelKind } from '@muster/shared/contract/labels'
import { wrongFields } from '@muster/shared/errors'
import { isPlace, placeKinds } from '@muster/shared/global/documents'
import type { Core } from './core.ts'

type Descriptions = Readonly<Record<string, { readonly description: string }>>

/** The federation's labels of a kind; undefined where it names none, and every partition has its own. */
function federal({ configuration }: Core, kind: LabelKind): Descriptions | undefined {
  const place = placeKinds.find(each => each === kind)
  const named = place && configuration.content?.documents[place]
  return named && Object.keys(named).length > 0 ? named : undefined
}

/** Throws invalid-input where a machine is to come into a pool or a zone that the federation does not have. */
export function refuseUnknownPlaces(core: Core, places: { readonly pool?: string | undefined; readonly zone?: string | undefined }): void {
  const errors = placeKinds.flatMap(kind => {
    const [named, wanted] = [federal(core, kind), places[kind]]
    if (!named || wanted === undefined || isPlace(named, wanted)) return []
    return [{ field: kind, message: `there is no ${kind} ${wanted}; the global configuration names ${Object.keys(named).join(', ')}` }]
  })
  if (errors.length > 0) throw wrongFields(errors)
}

/** Throws invalid-input where a label is described by the global configuration, which a partition does not change. */
export function refuseFederal(core: Core, kind: LabelKind, name: string, verb: 'put' | 'delete'): void {
  const named = federal(core, kind)
  if (!named || (verb === 'delete' && !Object.hasOwn(named, name))) return
  const message = `the ${kind}s are named by the global configuration; change it there: muster config set`
  throw wrongFields([{ field: 'name', message }])
}

/** Labels as they are here, and those of the federation, which exist everywhere and are described there. */
export function withFederal(core: Core, kind: LabelKind, here: readonly LabelEntry[]): LabelEntry[] {
  const named = federal(core, kind)
  if (!named) return [...here]
  const described = here.map(entry => ({ ...entry, description: named[entry.name]?.description ?? entry.description }))
  const elsewhere = Object.entries(named).filter(([name]) => !here.some(entry => entry.name === name))
  return [...described, ...elsewhere.map(([name, { description }]) => ({ name, description, machines: 0, ready: 0 }))].sort((a, b) =>
    a.name < b.name ? -1 : 1,
  )
}
