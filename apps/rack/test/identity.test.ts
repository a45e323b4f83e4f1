// People log in: at a front for everywhere, at a partition with nobody else up; what ends a session reaches every partition that can be reached.
import { createClient } from '@muster/shared/client'
import { hashPassword } from '@muster/shared/password'
import { expect, test } from 'vitest'
import { adminToken, codeOf, startFederation } from './identity-federation.ts'
import { until } from './servers.ts'

const password = 'planted correct horse battery'

async function withAlice() {
  const federation = await startFederation()
  const { taken, put } = federation
  await taken(await put('user', 'alice', { role: 'operator', password: await hashPassword(password) }))
  return federation
}

test('a session begun at a front is good at every partition, and ends there within five seconds', async () => {
  const { partitions, url, admin, put, taken, who } = await withAlice()
  const { token, validAt } = await createClient({ url }).session.login({ user: 'alice', password })
  expect(validAt).toBe('everywhere')
  const places = [url, partitions.one.url, partitions.two.url]
  for (const place of places) expect(await who(place, token)).toEqual({ name: 'alice', role: 'operator' })

  const { documents } = await admin.config.get({ kind: 'user', name: 'alice' })
  const shown = documents[0]?.document ?? {}
  expect(shown.password).toMatch(/^hidden:.{8}$/)
  // What is shown, written back with another role, keeps the password and the session.
  await taken(await put('user', 'alice', { ...shown, role: 'read-only' }))
  for (const place of places) expect((await who(place, token)).role).toBe('read-only')

  await taken(await put('user', 'alice', { ...shown, status: 'disabled' }))
  for (const place of places) expect(await codeOf(who(place, token))).toBe('unauthenticated')
  await taken(await put('user', 'alice', { ...shown }))
  for (const place of places) expect(await codeOf(who(place, token))).toBe('answered')

  // Her own doing, which needs no admin.
  await taken((await createClient({ url, token }).session.logout()).generation)
  for (const place of places) expect(await codeOf(who(place, token))).toBe('unauthenticated')
  expect(await codeOf(createClient({ url: partitions.one.url }).session.login({ user: 'alice', password }))).toBe('answered')
  const { generation } = await admin.config.get({})
  // An earlier configuration brought back brings no session back.
  await taken((await admin.config.revert({ to: generation - 1 })).generation)
  for (const place of places) expect(await codeOf(who(place, token))).toBe('unauthenticated')
})

test('with fronts and bus gone a partition lets people in by itself; that session is good there only', async () => {
  const { start, partitions, url, put, who } = await withAlice()
  await partitions.one.stop()
  const alone = await start('one', 'cut off')
  const here = createClient({ url: alone.url })
  expect(await codeOf(here.session.login({ user: 'alice', password: 'not that one' }))).toBe('unauthenticated')
  expect(await codeOf(here.session.login({ user: 'mallory', password }))).toBe('unauthenticated')
  const { token, validAt, caller } = await here.session.login({ user: 'alice', password })
  expect({ validAt, caller }).toEqual({ validAt: 'here', caller: { name: 'alice', role: 'operator' } })
  expect(await who(alone.url, token)).toEqual(caller)
  expect((await createClient({ url: alone.url, token }).machines.list()).items).toEqual([])
  for (const place of [url, partitions.two.url]) expect(await codeOf(who(place, token))).toBe('unauthenticated')
  expect(await codeOf(createClient({ url: alone.url, token }).session.logout())).toBe('needs-front')

  // Changed meanwhile, where it could not hear: the session holds until it is back.
  const generation = await put('user', 'alice', { role: 'operator', password: await hashPassword('a new one, entirely') })
  expect(await who(alone.url, token)).toEqual(caller)
  await alone.stop()
  const back = await start('one', 'connected')
  await until(() => back.core.configuration.generation >= generation)
  expect(await codeOf(who(back.url, token))).toBe('unauthenticated')
})

test('no password, no hash and no token of a session is shown or logged', async () => {
  const { url, admin, partitions, lines } = await withAlice()
  const { token } = await createClient({ url }).session.login({ user: 'alice', password })
  await codeOf(createClient({ url }).session.login({ user: 'alice', password: 'planted-wrong-password' }))
  const hash = partitions.one.core.configuration.content?.documents.user.alice?.password as string
  const shown = JSON.stringify([
    await admin.config.get({}),
    await admin.config.diff({ from: 0 }),
    await admin.config.history({}),
    await admin.audit.fronts({}),
    await admin.config.change({ put: [{ kind: 'user', name: 'alice', document: { role: 'user' } }], dryRun: true }),
    await createClient({ url: partitions.one.url, token }).partitions.list(),
    lines,
  ])
  for (const secret of [password, 'planted-wrong-password', hash, hash.split('$').at(-1) as string, token, adminToken])
    expect(shown).not.toContain(secret)
})
