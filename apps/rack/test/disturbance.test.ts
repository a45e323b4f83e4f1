// What the lab does to a machine at a step; and that the steps it knows are those that the real agent tells of, the tests of a commissioning, and the first boot.
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { defaultRules } from '@muster/partition/domain/core'
import type { Client } from '@muster/shared/client'
import type { Machine } from '@muster/shared/machine'
import { expect, test } from 'vitest'
import type { Computer } from '../src/lab/computer.ts'
import { type Disturbance, Disturber, everyStep } from '../src/lab/disturbance.ts'
import { Teller } from '../src/lab/teller.ts'

const agent = fileURLToPath(new URL('../../agent/root/muster/', import.meta.url))

test('the lab knows every step that the agent tells of', () => {
  const text = readdirSync(agent)
    .filter(name => name.endsWith('.sh'))
    .map(name => readFileSync(`${agent}${name}`, 'utf8'))
    .join('\n')
  const told = new Set([...text.matchAll(/\bstand ([a-z-]+) /g)].map(([, step]) => step as string))
  // A machine stays in rescue until somebody ends it.
  expect(told.delete('rescue')).toBe(true)
  expect(new Set(everyStep('tar'))).toEqual(new Set([...told, ...defaultRules.tests, 'first-boot']))
  expect(everyStep('disk')).toEqual(everyStep('tar').filter(step => step !== 'layout' && step !== 'boot'))
})

/** A machine that stands where it is told, and whatever is done to it and ordered, in its order. */
function stage(planned: readonly Disturbance[]) {
  const done: string[] = []
  let machine = {} as Partial<Machine>
  const act = (what: string, then: Partial<Machine>) => async () => {
    done.push(what)
    machine = { ...machine, ...then }
  }
  const abort = act('abort', { state: 'allocated', power: 'off', progress: null, waitingFor: null })
  const client = {
    machines: { get: async () => machine, abort: () => abort().then(() => machine) },
  } as unknown as Client
  const computer = { name: 'm1', cutPower: act('cut', { waitingFor: 'the power cycle into network boot' }) } as unknown as Computer
  const teller = new Teller({ client, computer, stepLimitMs: 5_000, say: () => {} })
  const disturber = new Disturber({ ...{ client, computer, teller, planned }, killPartition: act('kill', {}), say: () => {} })
  const see = async (at: Partial<Machine>) => {
    machine = { id: 'p1-1', power: 'on', progress: 50, fault: null, ...at } as Machine
    return disturber.see(machine as Machine, act('order', { state: 'deploying' }))
  }
  return { done, disturber, see }
}

test('at its step the partition dies, then the power goes, then somebody aborts and orders again; elsewhere nothing happens', async () => {
  const { done, disturber, see } = stage([
    { how: 'kill', at: 'write' },
    { how: 'cut', at: 'write' },
    { how: 'abort', at: 'write' },
    { how: 'cut', at: 'first-boot' },
    { how: 'kill', at: 'releasing' },
  ])
  expect(await see({ state: 'deploying', waitingFor: 'the agent: download (3 of 9)' })).toBe('left alone')
  expect(await see({ state: 'commissioning', waitingFor: 'the agent: write' })).toBe('left alone')
  for (let time = 0; time < 3; time++) expect(await see({ state: 'deploying', waitingFor: 'the agent: write' })).toBe('disturbed')
  expect(done.splice(0)).toEqual(['kill', 'cut', 'abort', 'order'])
  expect(await see({ state: 'deploying', waitingFor: 'the agent: write' })).toBe('left alone')
  await see({ state: 'deploying', waitingFor: 'the first boot of the installed system to phone home' })
  expect(await see({ state: 'releasing', progress: null, waitingFor: 'the power cycle into network boot' })).toBe('left alone')
  await see({ state: 'releasing', waitingFor: 'the agent: erase' })
  expect(done).toEqual(['cut', 'kill'])
  expect(disturber.left).toEqual([])
})

test('a machine that lost its power once too often has a fault that says so, and the same order is given again', async () => {
  const { done, see } = stage([{ how: 'cut', at: 'seed' }])
  const fault = { code: 'power-lost', message: 'the machine was found off 3 times', since: '' }
  expect(await see({ state: 'failed_deployment', power: 'off', fault })).toBe('left alone')
  await see({ state: 'deploying', waitingFor: 'the agent: seed' })
  expect(await see({ state: 'failed_deployment', power: 'off', fault })).toBe('disturbed')
  expect(done).toEqual(['cut', 'order'])
})
