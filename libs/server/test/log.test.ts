import { Refusal } from '@muster/shared/errors'
import { Secret } from '@muster/shared/secret'
import { expect, test } from 'vitest'
import { createLog } from '../src/log.ts'

function linesOf(write: (log: ReturnType<typeof createLog>) => void) {
  const lines: string[] = []
  write(createLog({ level: 'info', name: 'lon1', destination: { write: line => void lines.push(line) } }))
  return lines
}

test('a line is JSON, with a level in words and a time to read', () => {
  const [line] = linesOf(log => log.info({ machine: 'lon1-000000' }, 'moved'))
  expect(JSON.parse(line as string)).toMatchObject({
    level: 'info',
    name: 'lon1',
    machine: 'lon1-000000',
    msg: 'moved',
    time: expect.stringMatching(/^\d{4}-/),
  })
  expect(linesOf(log => log.debug('not at this level'))).toEqual([])
})

test('a planted secret is in no line', () => {
  const planted = 'hunter2'
  const cause = Object.assign(new Error('inner'), { parameters: [planted], headers: { authorization: planted } })
  const lines = linesOf(log => {
    log.info(
      { password: planted, settings: { BMC_PASSWORD: planted, kg: planted, deep: [{ apiKey: planted, api_key: planted }] } },
      'facts',
    )
    log.info({ headers: { authorization: `Bearer ${planted}`, Cookie: planted } }, 'headers')
    log.info({ token: planted, tokens: { a: planted }, clientSecret: planted, privateKey: planted, secret: new Secret(planted) }, 'more')
    log.info(`sent Authorization: Bearer ${planted} to postgres://muster:${planted}@db/muster`)
    log.error({ err: new Error(`Bearer ${planted}`, { cause }) }, 'an error')
    log.info({ settings: [`NATS_URL=nats://${planted}@one:4222,tls://${planted}@two:4222`] }, 'settings')
    log.error(new Refusal('internal', 'refused', { password: planted }))
    log.child({ requestId: 'r1' }).info({ passwd: planted }, 'child')
  })
  expect(lines).toHaveLength(8)
  expect(lines.join('')).not.toContain(planted)
  for (const line of lines) JSON.parse(line)
  expect(lines[4]).toContain('inner')
})

test('a cycle does not end the process', () => {
  const facts: Record<string, unknown> = { name: 'a' }
  facts.self = facts
  expect(linesOf(log => log.info(facts, 'round'))).toHaveLength(1)
})
