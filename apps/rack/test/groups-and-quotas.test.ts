// Groups and quotas by their commands, at a real front: what they write is what the documents say then, and slips are told before anything is written.
import { expect, onTestFinished, test } from 'vitest'
import { aHome } from '../../cli/test/muster.ts'
import { adminToken, startFederation } from './identity-federation.ts'

async function started() {
  const { url, admin } = await startFederation()
  const home = aHome({ MUSTER_URL: url, MUSTER_TOKEN: adminToken })
  onTestFinished(() => home[Symbol.dispose]())
  const users = ['alice', 'bob', 'carol'].map(name => ({ kind: 'user' as const, name, document: { role: 'user' } }))
  await admin.config.change({ put: users })
  const document = async (kind: 'group' | 'quota', name: string) => (await admin.config.get({ kind, name })).documents[0]?.document
  const generation = async () => (await admin.config.get({})).generation
  return { muster: (line: string) => home.muster(line.split(' ')), document, generation, admin }
}

test('a group is made, gains and loses members, and goes', { timeout: 240_000 }, async () => {
  const { muster, document, generation } = await started()
  expect((await muster('group create lab --role operator --member alice')).stdout).toContain('group/lab')
  expect(await document('group', 'lab')).toEqual({ description: '', members: ['alice'], role: 'operator' })
  expect(await muster('group add lab bob carol')).toMatchObject({ code: 0 })
  expect(await muster('group remove lab alice')).toMatchObject({ code: 0 })
  expect(await document('group', 'lab')).toEqual({ description: '', members: ['bob', 'carol'], role: 'operator' })
  expect((await muster('group list -o wide')).stdout).toMatch(/NAME +ROLE +POOLS +MEMBERS.*\nlab +operator +all +bob carol/)

  const before = await generation()
  const slips: [string, number, string][] = [
    ['group add lab bob', 2, 'bob is in group lab already'],
    ['group add lab dora', 3, 'there is no user dora'],
    ['group remove lab alice', 2, 'alice is not in group lab'],
    ['group create lab', 2, 'group lab exists'],
  ]
  for (const [line, code, stderr] of slips)
    expect(await muster(line), line).toMatchObject({ code, stderr: expect.stringContaining(stderr) })
  expect(await generation()).toBe(before)

  expect(await muster('group delete lab')).toMatchObject({ code: 0 })
  await expect(document('group', 'lab')).rejects.toMatchObject({ code: 'not-found' })
})

test('a quota is set, changed in what is given only, and deleted', { timeout: 240_000 }, async () => {
  const { muster, document, generation, admin } = await started()
  await admin.config.change({ put: [{ kind: 'group', name: 'lab', document: { members: ['alice'] } }] })
  expect((await muster('quota set everybody 10 --everybody')).stdout).toContain('quota/everybody')
  expect(await muster('quota set lab 8 --group lab --description shared')).toMatchObject({ code: 0 })
  expect(await muster('quota set lab 9')).toMatchObject({ code: 0 })
  expect(await document('quota', 'lab')).toEqual({ description: 'shared', group: 'lab', machines: 9 })
  expect(await muster('quota set lab 9 --user bob')).toMatchObject({ code: 0 })
  expect(await document('quota', 'lab')).toEqual({ description: 'shared', user: 'bob', machines: 9 })
  expect((await muster('quota list')).stdout).toMatch(
    /NAME +FOR +POOL +MACHINES.*\neverybody +everybody, each +all +10.*\nlab +user bob +all +9 +shared/,
  )

  const before = await generation()
  const slips: [string, number, string][] = [
    ['quota set bobb 5', 2, 'there is no quota bobb yet: whom is it for?'],
    ['quota set dora 5 --user dora', 3, 'there is no user dora'],
    ['quota set bob many --user bob', 2, 'must be a number of machines'],
  ]
  for (const [line, code, stderr] of slips)
    expect(await muster(line), line).toMatchObject({ code, stderr: expect.stringContaining(stderr) })
  expect(await generation()).toBe(before)

  expect(await muster('quota delete lab')).toMatchObject({ code: 0 })
  await expect(document('quota', 'lab')).rejects.toMatchObject({ code: 'not-found' })
})
