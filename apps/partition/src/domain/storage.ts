// The disks of a deployment: which layout an image needs, and what the agent is told of it. The plan itself is libs/shared's, a pure function.
import { Refusal, wrongFields } from '@muster/shared/errors'
import { type StorageLayout, storageLayout } from '@muster/shared/storage'
import { planStorage, storageLine } from '@muster/shared/storage-plan'
import type { MachineRow } from '../db/machines.ts'
import type { Image } from './catalogue.ts'

type Disks = Pick<MachineRow, 'id' | 'disks'>

/** The layout of a deployment: as asked for, else flat; null where the image is a whole disk. Throws invalid-input where it fits neither image nor machine. */
export function layoutFor(image: Image, row: Disks, asked: StorageLayout | undefined): StorageLayout | null {
  if (image.form === 'disk') {
    if (asked === undefined) return null
    const message = `the image of ${image.os} is a whole disk, which has its own; a layout is for images that are root tarballs`
    throw wrongFields([{ field: 'storage', message }])
  }
  const layout = asked ?? storageLayout.parse({ kind: 'flat' })
  linesOf(layout, row)
  return layout
}

/** What the agent makes of the disks, a line each. Throws as {@link layoutFor}: the machine may have other disks than when it was asked for. */
export function linesOf(layout: StorageLayout, row: Disks): string[] {
  const plan = planStorage(layout, row.disks)
  if (plan.kind === 'plan') return plan.steps.map(storageLine)
  const errors = plan.problems.map(({ field, message }) => ({ field: `storage.${field}`, message }))
  throw new Refusal('invalid-input', `${row.id}: ${errors.map(({ field, message }) => `${field}: ${message}`).join('; ')}`, { errors })
}
