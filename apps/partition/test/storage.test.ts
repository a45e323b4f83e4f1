// Deploying an image that is a root tarball: its agent is told what to make of the disks, and what does not fit is refused when it is asked for.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { StorageLayout } from '@muster/shared/storage'
import { expect, onTestFinished, test } from 'vitest'
import { machineToken } from '../src/domain/machine-token.ts'
import { addMachine, reread, runPartition, writeImage } from './harness.ts'

const disks = ['sda', 'sdb'].map(name => ({ name, serial: `S-${name}`, model: '', sizeBytes: 8 * 2 ** 30, kind: 'ssd' as const }))
const owned = { state: 'allocated' as const, owner: 'alice', allocation_id: 'a-0123456789bcdfgh', attention_at: null }

async function place() {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-files-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  writeImage(folder, 'debian/12', 'amd64')
  const tarball = writeImage(folder, 'ubuntu/24.04', 'amd64')
  writeFileSync(tarball, JSON.stringify({ ...JSON.parse(readFileSync(tarball, 'utf8')), form: 'tar' }))
  const partition = await runPartition({ folder })
  const machine = (count: number) => addMachine(partition.core, owned, { powerDriver: 'manual', disks: disks.slice(0, count) })
  const jobOf = async (id: string) => {
    const { run } = await reread(partition.core, id)
    const token = machineToken(partition.core.seal, 'agent', { id, run: run as string })
    const { status, text } = await partition.ask('GET', '/agent/job', { token })
    return { status, job: JSON.parse(text) as { image?: { form: string }; storage?: string[]; code?: string } }
  }
  return { partition, machine, jobOf, alice: partition.as('alice').machines }
}

test('a tarball goes to one disk where nothing else was said, and to the layout that was; a whole disk has its own', async () => {
  const { partition, machine, jobOf, alice } = await place()
  const [plain, mirrored, whole] = [await machine(1), await machine(2), await machine(1)]
  await alice.deploy({ id: plain.id, os: 'ubuntu/24.04' })
  await alice.deploy({ id: mirrored.id, os: 'ubuntu/24.04', storage: { kind: 'raid1', fileSystem: 'xfs' } })
  await alice.deploy({ id: whole.id, os: 'debian/12' })
  const flat = (await jobOf(plain.id)).job
  expect(flat.image?.form).toBe('tar')
  expect(flat.storage).toEqual([
    'disk system sda 8589934592 S-sda',
    'partition system 1 1 1 bios',
    'partition system 2 2 256 efi',
    'partition system 3 258 7933 linux',
    'format part:system:3 ext4',
    'mount part:system:3 ext4 / defaults',
    'boot system',
  ])
  const two = (await jobOf(mirrored.id)).job.storage
  expect(two).toContain('mirror root part:first:3 part:second:3')
  expect(two).toContain('mount md:root xfs / defaults')
  expect((await jobOf(whole.id)).job).toMatchObject({ image: { form: 'disk' } })
  expect((await jobOf(whole.id)).job.storage).toBeUndefined()

  // A disk that has gone since is told, not guessed.
  await partition.sql`update machines set disks = ${partition.sql.json(disks.slice(0, 1))} where id = ${mirrored.id}`
  expect(await jobOf(mirrored.id)).toMatchObject({
    status: 422,
    job: { code: 'invalid-input', detail: expect.stringContaining('two disks') },
  })
  // It goes with its deployment.
  expect((await reread(partition.core, mirrored.id)).deployment_storage).not.toBeNull()
  await alice.abort({ id: mirrored.id })
  expect((await reread(partition.core, mirrored.id)).deployment_storage).toBeNull()
})

test('a layout that does not fit the machine or the image is refused by field, and nothing begins', async () => {
  const { partition, machine, alice } = await place()
  const { id } = await machine(1)
  const refused = async (os: string, storage: unknown) => {
    const error = await alice.deploy({ id, os, storage: storage as StorageLayout }).catch((thrown: unknown) => thrown)
    expect(error).toMatchObject({ code: 'invalid-input' })
    return (error as { details?: { errors?: { field: string }[] }; message: string }).message
  }
  expect(await refused('ubuntu/24.04', { kind: 'raid1' })).toContain('storage.disk: needs two disks')
  expect(await refused('debian/12', { kind: 'flat' })).toContain('is a whole disk')
  expect(await refused('ubuntu/24.04', { kind: 'flat', colour: 'red' })).toContain('colour')
  expect(await refused('ubuntu/24.04', { kind: 'custom', disks: {}, fileSystems: [{ on: 'a', type: 'ext4', mount: '/' }] })).toContain(
    'no disk is bootable',
  )
  expect(await reread(partition.core, id)).toMatchObject({ state: 'allocated', deployment: null })
})
