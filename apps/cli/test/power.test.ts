// `muster power status`: of which machines the power is not known, and why.
import { Refusal } from '@muster/shared/errors'
import type { Explanation, Machine, PowerOrder } from '@muster/shared/machine'
import { expect, test } from 'vitest'
import { isStale, seenOf } from '../src/commands/power.ts'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { aMachine, type TestServer, wholeCoverage } from './server.ts'

let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
})

function explanationOf(machine: Machine, facts: Partial<Explanation> = {}): Explanation {
  const { id, state, power, powerSeenAt } = machine
  return {
    ...{ id, state, since: machine.stateSince, does: '', wantedPower: 'user', power, powerSeenAt, waitingFor: null, deadline: null },
    ...{ lastFault: null, nextStep: '', allowed: [], powerOrders: [], ...facts },
  }
}

const now = new Date().toISOString()

test('--stale lists the machines nobody knows the power of, each with the reason, and asks about no other', async () => {
  const machines = [
    aMachine({ id: 'lon1-111111', power: 'on', powerSeenAt: now }),
    aMachine({ id: 'lon1-222222', power: 'on', powerSeenAt: '2026-01-02T03:04:05Z' }),
    aMachine({ id: 'lon1-333333', power: 'unknown', powerSeenAt: null, powerDriver: null }),
    aMachine({ id: 'lon1-444444', power: 'unknown', powerSeenAt: null }),
  ]
  server.answers['machines.list'] = ({ cursor }) => ({
    items: cursor ? machines.slice(2) : machines.slice(0, 2),
    nextCursor: cursor ? null : 'more',
    coverage: wholeCoverage,
  })
  server.answers['machines.explain'] = ({ id }) => {
    const machine = machines.find(known => known.id === id) as Machine
    if (id === 'lon1-444444') throw new Refusal('partition-silent', 'lon1 did not answer')
    const lastFault = {
      code: 'power-silent',
      message: 'power status via ipmi 10.0.3.9: nothing listens there',
      since: now,
      hint: 'Is IPMI over LAN on?',
    }
    return explanationOf(machine, { lastFault: machine.powerDriver === null ? null : lastFault })
  }
  const [table, json] = await Promise.all([
    home.muster(['power', 'status', '--stale', '--partition', 'lon1']),
    home.muster(['power', 'status', '--stale', '-o', 'json']),
  ])
  expect(table.code).toBe(0)
  expect(table.stdout).toMatch(
    /^lon1-222222 +web1 +on +\d+d ago +ipmi +power status via ipmi 10.0.3.9: nothing listens there \(power-silent\)$/m,
  )
  expect(table.stdout).toMatch(/^lon1-333333 +web1 +unknown +never +none +it has no power driver$/m)
  expect(table.stdout).toMatch(/^lon1-444444 .*lon1 did not answer$/m)
  expect(table.stdout).not.toContain('lon1-111111')
  expect(JSON.parse(json.stdout).items[0]).toMatchObject({ id: 'lon1-222222', hint: 'Is IPMI over LAN on?' })
  const explained = server.asked.filter(({ name }) => name === 'machines.explain').map(({ input }) => input.id)
  expect(explained).not.toContain('lon1-111111')
  expect(server.asked.map(({ input }) => input.partition)).toContainEqual(['lon1'])
})

test('where all is known, that is said; without --stale every machine is shown', async () => {
  server.answers['machines.list'] = () => ({
    items: [aMachine({ power: 'on', powerSeenAt: now })],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  const [stale, all] = await Promise.all([home.muster(['power', 'status', '--stale']), home.muster(['power', 'status'])])
  expect(stale).toEqual({ code: 0, stdout: '', stderr: 'The power of every machine is known.\n' })
  expect(all).toMatchObject({ code: 0, stdout: expect.stringContaining('lon1-4y3h7n') })
})

test('what is long ago, and the most telling reason', () => {
  const at = Date.parse('2026-01-02T03:04:05Z')
  const seen = { power: 'on', powerSeenAt: '2026-01-02T03:04:05Z' } as const
  expect(isStale(seen, { now: at + 60_000, olderThanMs: 60_000 })).toBe(false)
  expect(isStale(seen, { now: at + 60_001, olderThanMs: 60_000 })).toBe(true)
  const machine = aMachine({ powerDriver: 'ipmi' })
  const broken = { code: 'deploy-failed', message: 'no disk', since: now }
  const order: PowerOrder = {
    ...{ id: 1, machine: machine.id, action: 'on', how: 'hard', state: 'running', askedBy: 'ann', askedAt: now },
    ...{ reason: '', startedAt: now, endedAt: null, fault: null },
  }
  // A fault of the machine itself says nothing about its BMC.
  expect(seenOf(machine, explanationOf(machine, { lastFault: broken })).why).toBe('it has not been looked at since')
  expect(seenOf(machine, explanationOf(machine, { lastFault: broken, powerOrders: [order] })).why).toBe('power on is running')
  expect(seenOf(aMachine({ powerDriver: 'manual' }), explanationOf(machine)).why).toBe('it is switched by hand')
})

test('machine rotate-credentials tells what became of it, and ends as the BMC did', async () => {
  const rotation = { id: 1, state: 'done', askedBy: 'olga', askedAt: now, startedAt: now, endedAt: now, fault: null }
  const machines = ['lon1-111111', 'lon1-222222']
  server.answers['machines.rotateCredentials'] = ({ id, wait }) => {
    expect(wait).toBe('2m')
    return { ...aMachine({ id: id as string }), rotation: { ...rotation, machines } } as never
  }
  const done = await home.muster(['machine', 'rotate-credentials', 'lon1-111111', '--wait'])
  expect(done).toMatchObject({ code: 0, stdout: 'lon1-111111  rotation of the password done, with lon1-222222\n' })
  const fault = { code: 'power-privilege', message: 'set the password via ipmi x: no', since: now, hint: 'use an administrator' }
  server.answers['machines.rotateCredentials'] = ({ id }) =>
    ({ ...aMachine({ id: id as string }), rotation: { ...rotation, machines, state: 'failed', fault } }) as never
  const failed = await home.muster(['machine', 'rotate-credentials', 'lon1-111111', '--wait'])
  expect(failed.code).toBe(13)
  expect(failed.stderr).toContain('The old password stays. use an administrator')
})
